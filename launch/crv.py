"""CRV: problems in, training records out (Critique, Rethink, Verify).

    python launch/crv.py --config=configs/crv_recorded.py --workdir=runs/crv
    python launch/crv.py --config=configs/crv_sglang.py --workdir=runs/crv --config.input=problems.jsonl
    python launch/crv.py --workdir=runs/crv --why=PROBLEM_ID
    python launch/crv.py --config=... --config.partition.drivers=2 --config.partition.driver=0 --workdir=runs/part0
    python launch/crv.py --config=... --workdir=runs/all --merge=runs/part0,runs/part1

Leaves sft/, groups/ and manifest.json in the workdir, beside ledger.sqlite, where every finished call is kept: the same
command resumes a run that was stopped, and asks nothing twice. Prints a summary as one JSON object.
"""

import json
import sys

sys.path.pop(0)  # this folder, in which crv.py would stand for the package crv

from absl import flags

from cogpo_jax import cli

_CONFIG = cli.define_config()
_MERGE = flags.DEFINE_list("merge", [], "Workdirs of drivers (config.partition) to join into --workdir.")
_WHY = flags.DEFINE_string("why", None, "Prints this problem's whole story from --workdir's ledger, and ends.")
_AUDIT = flags.DEFINE_integer("audit", 0, "Writes audit.html with so many problems for a person to judge, and ends.")
_AUDITED = flags.DEFINE_string("audited", None, "Takes the audit.json that the page saved; counted in the manifest.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the ledger and the records.", required=True)


def main() -> None:
    """Runs or resumes CRV, joins ledgers, tells a problem's story, or makes and takes an audit."""
    from crv.driver import run
    from crv.ledger import merge
    from crv.options import Options
    from crv.review import take_audit, why, write_audit

    if _WHY.value is not None:
        print(why(_WORKDIR.value, _WHY.value))
        return
    if _AUDIT.value:
        print(write_audit(_WORKDIR.value, _AUDIT.value))
        return
    if _AUDITED.value is not None:
        take_audit(_WORKDIR.value, _AUDITED.value)
    options = Options.from_config(cli.load_config(_CONFIG))
    if _MERGE.value:
        merge(_MERGE.value, _WORKDIR.value, options)
    print(json.dumps(run(options, _WORKDIR.value)))


if __name__ == "__main__":
    cli.run(main)
