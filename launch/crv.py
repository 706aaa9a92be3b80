"""CRV: problems in, training records out (Critique, Rethink, Verify).

    python launch/crv.py --config=configs/crv_recorded.py --workdir=runs/crv
    python launch/crv.py --config=configs/crv_sglang.py --workdir=runs/crv --config.input=problems.jsonl

Leaves sft/, groups/ and manifest.json in the workdir, beside ledger.sqlite, where every finished call is kept: the same
command resumes a run that was stopped, and asks nothing twice. Prints a summary as one JSON object.
"""

import json
import sys

sys.path.pop(0)  # this folder, in which crv.py would stand for the package crv

from absl import flags

from cogpo_jax import cli

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the ledger and the records.", required=True)


def main() -> None:
    """Runs or resumes CRV."""
    from crv.driver import run
    from crv.options import Options

    print(json.dumps(run(Options.from_config(cli.load_config(_CONFIG)), _WORKDIR.value)))


if __name__ == "__main__":
    cli.run(main)
