"""SFT on the suitable CoTs on a TPU slice, by student size: Qwen2.5 0.5B to 14B, rows of 16,384 tokens.

    python launch/train.py --config=configs/sft_tpu.py:7b --config.init_from=gs://B/Qwen2.5-7B-Instruct \
        --config.data=gs://B/crv --workdir=gs://B/sft-7b

Slices and HBM as in configs/cogpo_tpu.py: the micro-step is the same program with another loss, and takes the same
memory; there is no reference pass. The published recipe: 3 epochs, learning rate 1e-5, weight decay 0.05, warm-up 10%,
cosine. `batch.groups` counts examples: 96 of 2,536 tokens fill 93% of the 16 rows of a v5e:4x4, a v5p:2x2x4 or a
v5p:4x4x4 with tensor=4, and 46% of the 32 of a v6e:4x8 (batch.groups=200 fills those).
"""

from ml_collections import config_dict

from cogpo_jax.configs import cogpo_tpu

SIZES = cogpo_tpu.SIZES


def get_config(size: str = "7b") -> config_dict.ConfigDict:
    """The config of a size: what is not the recipe comes from configs/cogpo_tpu.py."""
    config = cogpo_tpu.get_config(size)
    config.objective = "sft"
    config.epochs = 3
    config.batch.groups = 96
    config.optimizer.learning_rate = 1e-5
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_ratio = 0.1
    return config
