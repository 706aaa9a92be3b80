"""Trains any small folder of records on one CPU; the base of the other configs, and the list of all fields.

    python launch/train.py --config=configs/tiny_cpu.py --config.data=DATA --config.tokenizer=FOLDER --workdir=runs/tiny

A 2-layer student of 1.3 M parameters; a step of 32 triangles takes about 2 s on 2 cores. Every field can be set on the
command line, as `--config.rows.length=2048`.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The config; every field has its unit or choices beside it."""
    return config_dict.create(
        objective="cogpo",  # sft | cogpo | dpo (dpo: beta.default for every pair)
        init_from="",  # Hugging Face folder, or the workdir of an earlier run; empty: random weights of `model`
        model="configs/models/tiny.json",  # a config.json; read only where init_from is empty
        tokenizer="",  # Hugging Face folder; empty: the one of init_from
        data="",  # folder of shards with manifest.json
        epochs=1,  # passes over the training split
        max_steps=0,  # stop after so many steps in all; 0: when the epochs end
        seed=0,  # of random weights and of the order of examples
        batch=dict(groups=32),  # groups (sft: examples) per optimizer step, whatever the machine
        rows=dict(
            length=1024,  # tokens per row; longer responses (with their prompt) are dropped and counted
            per_device=4,  # rows per device and micro-batch
            shapes=3,  # compiled micro-batch shapes, 1 to 3
        ),
        text=dict(
            prompt="chat",  # chat (the tokenizer's template) | raw
            response="think",  # think | r1 | plain
            system="",  # system message for rows without one; empty: the template decides
            end_token="<|im_end|>",  # ends a response; where the tokenizer has no such token: what its template ends by
            template_kwargs="",  # for the template, as JSON: '{"enable_thinking": false}' (Qwen3)
        ),
        beta=dict(  # of the authors' betas only 0.5 is published: the others are guesses
            small=0.1,  # of a pair of this gap without a beta of its own
            medium=0.2,
            large=0.5,
            default=0.1,  # gap none; dpo: every pair
        ),
        loss=dict(  # terms beside the plain loss, off at 0 / False: sources in cogpo_jax/objective/cogpo.py
            label_smoothing=0.0,
            nll_weight=0.0,
            length_normalized=False,
            length_penalty=0.0,
            displacement_penalty=0.0,
        ),
        reference="cached",  # cached (read from reference_cache) | live (second model in memory)
        reference_cache=dict(
            dir="",  # shared between runs; empty: reference_cache/ in the workdir
            max_drift=1.0,  # nats: largest accepted difference of a cached and a live response log-prob at the start
        ),
        optimizer=dict(
            learning_rate=5e-7,  # at the end of the warm-up
            schedule="cosine",  # cosine | linear | constant, after the warm-up
            schedule_steps=0,  # length of the schedule; 0: all steps of the epochs (without epochs: max_steps)
            warmup_ratio=0.1,  # share of the schedule
            min_learning_rate_ratio=0.0,  # of learning_rate, where the schedule ends
            weight_decay=0.05,  # not on norms and biases
            b1=0.9,  # AdamW's decay of the mean gradient
            b2=0.999,  # AdamW's decay of the mean squared gradient
            eps=1e-8,  # added to AdamW's denominator
            clip_norm=1.0,  # global gradient norm; 0: no clipping
        ),
        mesh=dict(replica=1, data=1, fsdp=-1, tensor=1),  # -1: whatever is left
        param_dtype="float32",  # master weights: float32 | bfloat16 (then updates are rounded stochastically)
        compute_dtype="float32",  # float32 | bfloat16
        attention="auto",  # auto (splash on TPU, gpu on GPU, xla elsewhere) | xla | splash | gpu
        remat="none",  # none | dots | full | offload
        logits_chunk=512,  # tokens whose logits exist at a time
        eval=dict(  # what is measured beside training
            data="",  # held-out records
            every=0,  # steps between evaluations; 0: only at the end
            split="validation",
            generate=dict(  # the student answers problems of a task (configs/tasks): accuracy, lengths
                task="",  # empty: off
                data="",  # its problems, any file that `cogpo evaluate` reads
                problems=64,  # the first so many
                every=0,  # steps between; 0: only at the end
                max_tokens=256,
            ),
        ),
        checkpoint=dict(every=50, keep=2),  # steps between checkpoints (one more at the end); how many stay
        log=dict(
            tensorboard=True,  # also write tensorboard/ in the workdir
            wandb="",  # project at Weights & Biases (pip install wandb); empty: off
            trackio="",  # project of trackio (pip install trackio); empty: off
        ),
        profile=dict(steps=""),  # "10:12": profile steps 10 and 11 into workdir/profile
        token_cache=dict(dir=""),  # on local disk; empty: token_cache/ in the workdir
        compile_cache=dict(dir=""),  # XLA's compiled programs, kept between runs; empty: off
        watchdog=dict(seconds=1800),  # say on stderr when no step was finished for so long; 0: never
        distributed=dict(coordinator="", num_processes=0, process_id=-1),  # empty: auto-detected on TPU pods
    )
