"""Writes one self-contained HTML page about a run: its data, its training, and what the held-out pairs say.

    python launch/report.py --data=DIR --sft=WORKDIR --cogpo=WORKDIR --output=report.html

Each of the three is optional: the page has a section for each part that is given. A --data folder that is CRV's workdir
(finished or not) also gives flows, lengths, rounds, cost, and a browser of --problems problems, from its ledger. The
page needs no network. Prints the held-out table as JSON.
"""

import json
import sys
from pathlib import Path

sys.path.pop(0)  # this folder, in which crv.py would stand for the package crv

from absl import flags

from cogpo_jax import cli
from cogpo_jax.atomic import write_atomic
from cogpo_jax.errors import UserError
from cogpo_jax.report.heldout import heldout_table
from cogpo_jax.report.page import build_page
from cogpo_jax.report.run_files import read_data, read_training
from crv.review import SHOWN, read_overview

_DATA = flags.DEFINE_string("data", None, "Folder of records: of launch/crv.py (its workdir), or of any conversion.")
_PROBLEMS = flags.DEFINE_integer("problems", SHOWN, "At most so many problems of CRV's ledger in the page.", 0)
_SFT = flags.DEFINE_string("sft", None, "Workdir of launch/train.py with objective sft.")
_COGPO = flags.DEFINE_string("cogpo", None, "Workdir of launch/train.py with objective cogpo or dpo.")
_SUMMARY = flags.DEFINE_string("summary", None, "summary.json of the quickstart: adds its checks and times.")
_OUTPUT = flags.DEFINE_string("output", "report.html", "The page.")


def main() -> None:
    if not (_DATA.value or _SFT.value or _COGPO.value):
        raise UserError("report: nothing to show: give at least one of --data, --sft, --cogpo")
    if _SUMMARY.value and not Path(_SUMMARY.value).is_file():
        raise UserError(f"--summary: {_SUMMARY.value}: no such file")
    crv = read_overview(_DATA.value, _PROBLEMS.value) if _has(_DATA.value, "ledger.sqlite") else None
    # A run that goes on has a ledger, and no records yet.
    data = read_data(_DATA.value) if _DATA.value and (crv is None or _has(_DATA.value, "manifest.json")) else None
    sft = read_training(_SFT.value) if _SFT.value else None
    cogpo = read_training(_COGPO.value) if _COGPO.value else None
    summary = json.loads(Path(_SUMMARY.value).read_text()) if _SUMMARY.value else None
    write_atomic(_OUTPUT.value, build_page(data, sft, cogpo, summary, crv))
    print(json.dumps({"report": _OUTPUT.value, "heldout": heldout_table(cogpo.pairs) if cogpo else {}}))


def _has(folder: str | None, name: str) -> bool:
    return bool(folder) and Path(folder, name).is_file()


if __name__ == "__main__":
    cli.run(main)
