"""Writes one self-contained HTML page about a run: its data, its training, and what the held-out pairs say.

    python launch/report.py --data=DIR --sft=WORKDIR --cogpo=WORKDIR --output=report.html

Each of the three is optional: the page has a section for each part that is given. Prints the held-out table as JSON.
"""

import json
from pathlib import Path

from absl import flags

from cogpo_jax import cli
from cogpo_jax.atomic import write_atomic
from cogpo_jax.errors import UserError
from cogpo_jax.report.heldout import heldout_table
from cogpo_jax.report.page import build_page
from cogpo_jax.report.run_files import read_data, read_training

_DATA = flags.DEFINE_string("data", None, "Folder of records that launch/crv.py wrote.")
_SFT = flags.DEFINE_string("sft", None, "Workdir of launch/train.py with objective sft.")
_COGPO = flags.DEFINE_string("cogpo", None, "Workdir of launch/train.py with objective cogpo or dpo.")
_SUMMARY = flags.DEFINE_string("summary", None, "summary.json of the quickstart: adds its checks and times.")
_OUTPUT = flags.DEFINE_string("output", "report.html", "The page.")


def main() -> None:
    if not (_DATA.value or _SFT.value or _COGPO.value):
        raise UserError("report: nothing to show: give at least one of --data, --sft, --cogpo")
    if _SUMMARY.value and not Path(_SUMMARY.value).is_file():
        raise UserError(f"--summary: {_SUMMARY.value}: no such file")
    data = read_data(_DATA.value) if _DATA.value else None
    sft = read_training(_SFT.value) if _SFT.value else None
    cogpo = read_training(_COGPO.value) if _COGPO.value else None
    summary = json.loads(Path(_SUMMARY.value).read_text()) if _SUMMARY.value else None
    write_atomic(_OUTPUT.value, build_page(data, sft, cogpo, summary))
    print(json.dumps({"report": _OUTPUT.value, "heldout": heldout_table(cogpo.pairs) if cogpo else {}}))


if __name__ == "__main__":
    cli.run(main)
