"""Flat preference rows (yours, TRL's, the CogPO authors') -> group shards that launch/train.py trains on.

    python launch/convert_pairs.py --input=PAIRS.jsonl --output=DIR

A row has `prompt`, `chosen`, `rejected` (texts, or lists of chat messages as in TRL), and may have `beta` (a number
above 0) or `gap` (small, medium, large, none: the config's beta of that gap), `system` and `weight`. Equal prompts with
equal system messages join in one group, equal responses are shared, duplicate pairs are joined. Text that lost its
backslashes (a backspace before `oxed`) is mended. A malformed row ends the command: file and line are named, exit
code 2, nothing is written. Rows without a usable pair are dropped and counted by reason.

DIR gets groups/ and manifest.json; a summary with all the counts is printed on stdout as one line of JSON.
"""

import json

from absl import flags
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cogpo_jax import cli
from cogpo_jax.errors import UserError
from cogpo_jax.records.convert import ConvertOptions, convert_pairs

_INPUT = flags.DEFINE_string("input", None, "JSONL file, folder written by datasets.save_to_disk, or hf:NAME.")
_INPUT_SPLIT = flags.DEFINE_string("input_split", "train", "Which split, where the input is a data set with splits.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; records that it holds are replaced. Local or gs://.")
_VALIDATION = flags.DEFINE_float("validation_fraction", 0.0, "Share of the prompts (0..1, by hash) to hold out.")
_SHARDS = flags.DEFINE_integer("shards", 1, "Number of files per split.")
_SOURCE = flags.DEFINE_string("source", "", "Name of the data, kept in each record; empty: the input's file name.")


def main() -> None:
    for name, value in (("--input", _INPUT.value), ("--output", _OUTPUT.value)):
        if not value:
            raise UserError(f"{name}: missing; see --help")
    options = ConvertOptions(_INPUT_SPLIT.value, _VALIDATION.value, _SHARDS.value, _SOURCE.value)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=done)

        summary = convert_pairs(_INPUT.value, _OUTPUT.value, options, progress)
    print(json.dumps(summary, ensure_ascii=False))


if __name__ == "__main__":
    cli.run(main)
