"""Runs the whole loop on the shipped problems with a tiny student, on the CPU, in minutes.

    python launch/quickstart.py [--workdir=runs/quickstart]

CRV on recorded answers -> a tokenizer -> SFT -> CogPO -> Hugging Face folder -> comparison with transformers -> report.
Each stage is a command that is printed before it runs, and can be typed alone. Started again it skips what is done and
goes on with what was interrupted. Leaves crv/, tokenizer/, sft/, cogpo/, hf/, report.html and summary.json in the
workdir; exit code 1 if a check failed.
"""

import os
from pathlib import Path

from absl import flags

from cogpo_jax import cli
from cogpo_jax.quickstart.run import quickstart

_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Folder of the results, below the project's.")


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    return quickstart(os.fspath(_WORKDIR.value), root)


if __name__ == "__main__":
    cli.run(main)
