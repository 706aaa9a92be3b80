"""CogPO on a TPU slice, by student size: Qwen2.5 0.5B, 1.5B, 3B, 7B (the default) or 14B, rows of 16,384 tokens.

    python launch/train.py --config=configs/cogpo_tpu.py:7b --config.init_from=gs://B/sft-7b --config.data=gs://B/crv \
        --workdir=gs://B/cogpo-7b

The same command on every host (launch/tpu_pod.sh runs it there); again, and it goes on. `init_from`: the workdir of the
SFT run (configs/sft_tpu.py), or a Hugging Face folder. Sizes, slices and figures, by launch/compile_check.py:

    size  slice       peak of a chip's HBM   micro-step     fill   groups to fill
    0.5b  v5e:4x4      2.2 of 15.75 GiB      2.0 PFLOP    93%     33
    1.5b  v5e:4x4      4.8 of 15.75 GiB      5.1 PFLOP    93%     33
    3b    v5p:2x2x4    8.1 of 95.74 GiB      9.6 PFLOP    93%     33
    7b    v5p:2x2x4   15.8 of 95.74 GiB     18.6 PFLOP    93%     33
    14b   v5p:4x4x4   13.3 of 95.74 GiB     39.4 PFLOP    93%     33

Peak is what a chip holds at the worst moment of a step, Adam's moments included. Micro-step: FLOPs of a micro-batch
whose every row is full, the recomputation of remat=full included, attention and head at their most. Fill: what a step
of 32 triangles of long CoTs (7,600 tokens each with their prompts, 243k in all: the lengths of real traces, see
benchmarks/attention_excess.py) takes of one full micro-batch. Two smaller compiled shapes (rows of 8,192 and 4,096)
catch a step's remainder where its responses are short enough; what else a step leaves empty on a large slice, only a
larger `batch.groups` fills (last column).
"""

from ml_collections import config_dict

from cogpo_jax.configs import tiny_cpu

SIZES = ("0.5b", "1.5b", "3b", "7b", "14b")


def get_config(size: str = "7b") -> config_dict.ConfigDict:
    """The config of a size; all fields and their meaning stand in configs/tiny_cpu.py."""
    if size not in SIZES:
        raise ValueError(f"configs/cogpo_tpu.py:{size}: no such size; known are {', '.join(SIZES)}")
    config = tiny_cpu.get_config()
    config.objective = "cogpo"
    config.model = f"configs/models/qwen2.5-{size}.json"
    config.epochs = 1
    config.batch.groups = 32  # 96 pairs; like the learning rate not in the authors' released files
    config.rows.length = 16384
    config.rows.per_device = 1
    config.optimizer.learning_rate = 5e-7
    if size == "14b":  # over 64 chips fsdp alone sends twice as much: 180 GB a micro-step, not 84
        config.mesh.tensor = 4
    config.compute_dtype = "bfloat16"  # products; master weights, moments and the head's gradient stay float32
    config.attention = "splash"
    config.remat = "full"
    config.logits_chunk = 1024
    config.checkpoint.every = 20
    config.eval.every = 20
    return config
