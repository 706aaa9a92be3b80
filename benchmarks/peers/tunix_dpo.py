"""Tunix's DPO step on flat pairs, timed after the first step. Runs in its own environment: see ../against_peers.py.

    python tunix_dpo.py --pairs=PAIRS.jsonl --model=HF_FOLDER

The step of `tunix.sft.dpo.dpo_trainer` (its own loss, log-probs and reference pass), decoder layers rematerialised,
every pair trained on once, in steps of `--batch` pairs; the first step warms up (compiles) and is not counted. Prompts
and responses are padded, or cut, to fixed lengths, as Tunix does. Weights are random: they do not change the work.
Prints one JSON line.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import jax.numpy as jnp
import optax
from flax import nnx
from transformers import AutoTokenizer
from tunix.models.qwen2 import model as qwen2
from tunix.rl import common
from tunix.sft.dpo import dpo_trainer


def make_model(folder):
    """A Qwen2 of Tunix with the architecture of a Hugging Face folder."""
    c = json.loads((Path(folder) / "config.json").read_text())
    config = qwen2.ModelConfig(
        num_layers=c["num_hidden_layers"],
        vocab_size=c["vocab_size"],
        embed_dim=c["hidden_size"],
        hidden_dim=c["intermediate_size"],
        num_heads=c["num_attention_heads"],
        head_dim=c["hidden_size"] // c["num_attention_heads"],
        num_kv_heads=c["num_key_value_heads"],
        rope_theta=int(c["rope_theta"]),
        norm_eps=c["rms_norm_eps"],
        use_tied_embedding=c["tie_word_embeddings"],
    )
    config.remat_config = qwen2.RematConfig.DECODER
    return qwen2.Qwen2(config, rngs=nnx.Rngs(0))


def padded(ids, length, pad, left):
    """(ids, mask) of exactly `length`."""
    ids = list(ids)[:length]
    filling, mask = [pad] * (length - len(ids)), [1] * len(ids)
    zeros = [0] * len(filling)
    return (filling + ids, zeros + mask) if left else (ids + filling, mask + zeros)


def batch_of(rows, tokenizer, prompt_length, response_length):
    """Arrays of some pairs: prompts padded on the left, responses on the right."""
    out = {name: ([], []) for name in ("prompt", "chosen", "rejected")}
    for row in rows:
        turn = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=False)
        texts = {name: tokenizer.encode(row[name] + "<|im_end|>") for name in ("chosen", "rejected")}
        for name, ids in ({"prompt": prompt} | texts).items():
            length = prompt_length if name == "prompt" else response_length
            for column, values in zip(
                out[name], padded(ids, length, tokenizer.pad_token_id, name == "prompt"), strict=True
            ):
                column.append(values)
    return {name: tuple(jnp.array(column, jnp.int32) for column in columns) for name, columns in out.items()}


def example_of(batch, reference, response_length):
    """Tunix's TrainExample with the reference's log-probs, as its trainer makes it."""
    (prompt, prompt_mask), (chosen, chosen_mask), (rejected, rejected_mask) = batch.values()
    ids = jnp.concatenate([jnp.concatenate([prompt, prompt]), jnp.concatenate([chosen, rejected])], axis=1)
    completion = jnp.concatenate([chosen_mask, rejected_mask])
    mask = jnp.concatenate([jnp.concatenate([prompt_mask, prompt_mask]), completion], axis=1)
    attention, positions = common.make_causal_attn_mask(mask.astype(bool)), common.build_positions_from_mask(mask)
    logps = dpo_trainer.compute_logps(reference, ids, positions, attention, response_length, completion)
    return dpo_trainer.TrainExample(
        input_ids=ids,
        positions=positions,
        attention_mask=attention,
        ref_chosen_logps=logps[0],
        ref_rejected_logps=logps[1],
        completion_mask=completion,
        logits_to_keep=response_length,
    )


@nnx.jit
def train_step(model, optimizer, example):
    """One update; the loss."""
    (loss, _), grads = nnx.value_and_grad(dpo_trainer.dpo_loss_fn, has_aux=True)(model, example)
    optimizer.update(model, grads)
    return loss


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prompt_length", type=int, default=256)
    parser.add_argument("--response_length", type=int, default=768)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = make_model(args.model)
    reference = nnx.clone(model)
    optimizer = nnx.Optimizer(model, optax.adamw(5e-7), wrt=nnx.Param)
    with open(args.pairs) as f:
        rows = [json.loads(line) for line in f]
    counted, losses = [], []
    for first in range(0, len(rows) - args.batch + 1, args.batch):
        began = time.perf_counter(), time.process_time()
        batch = batch_of(rows[first : first + args.batch], tokenizer, args.prompt_length, args.response_length)
        losses.append(float(train_step(model, optimizer, example_of(batch, reference, args.response_length))))
        counted.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    counted = counted[1:]
    print(
        json.dumps(
            {
                "pairs": args.batch * len(counted),
                "seconds": sum(s for s, _ in counted),
                "cpu_seconds": sum(c for _, c in counted),
                "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
                "first_loss": losses[0],
            }
        )
    )


if __name__ == "__main__":
    main()
