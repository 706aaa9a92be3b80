"""CRV on the shipped problems, with answers replayed from a file: no server, no GPU, no network.

    python launch/crv.py --config=configs/crv_recorded.py --workdir=runs/crv

Cost: seconds on a laptop. Result: what `crv` prints; about 190 triangles in `groups/` and as many chains of thought in
`sft/`.
"""

from ml_collections import config_dict

from crv.config import default_config
from crv.options import Options


def get_config() -> config_dict.ConfigDict:
    """Every field at its default (crv/options.py explains them), but what is set here."""
    c = default_config(Options)
    c.input = "examples/gsm8k_cots/problems.jsonl"
    c.pool.kind = "recorded"
    c.pool.recordings = "examples/gsm8k_cots/recordings.jsonl"
    c.pool.model = "recorded"
    c.heldout = 50.0  # problems in the validation split
    return c
