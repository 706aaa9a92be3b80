"""Commands that make training data: CRV, its pool of servers, conversions, a small tokenizer. None needs jax."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator

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
from cogpo_jax.progress import say


def crv() -> cli.Main:
    """CRV: problems in, training records out (Critique, Rethink, Verify).

        cogpo crv --config=crv_recorded --workdir=runs/crv
        cogpo crv --config=crv_sglang --config.input=problems.jsonl --preview=5
        cogpo crv --config=crv_sglang --config.input=problems.jsonl --workdir=runs/crv
        cogpo crv --workdir=runs/crv --why=PROBLEM_ID
        cogpo crv --config=... --config.partition.drivers=2 --config.partition.driver=0 --workdir=runs/part0
        cogpo crv --config=... --workdir=runs/all --merge=runs/part0,runs/part1

    Leaves sft/, groups/ and manifest.json in the workdir, beside ledger.sqlite, where every finished call is kept: the
    same command resumes a run that was stopped, and asks nothing twice. Prints a summary as one JSON object.

    Exit codes: 0; 2 for bad input or a wrong set-up; 3 where most problems were dropped for one reason, which is told;
    130 where it was stopped (Ctrl-C, once): what is done is written.
    """
    config = cli.define_config()
    merge_from = flags.DEFINE_list("merge", [], "Workdirs of drivers (config.partition) to join into --workdir.")
    problem = flags.DEFINE_string("why", None, "Prints this problem's whole story from --workdir's ledger, and ends.")
    audit = flags.DEFINE_integer("audit", 0, "Writes audit.html with so many problems for a person to judge, and ends.")
    audited = flags.DEFINE_string("audited", None, "Takes the audit.json that the page saved; counted in the manifest.")
    preview = flags.DEFINE_integer("preview", 0, "Walks and shows so many problems, keeps nothing, and ends.")
    workdir = flags.DEFINE_string("workdir", None, "Folder for the ledger and the records.")

    def main() -> int:
        from crv.driver import run, show_preview
        from crv.ledger import merge
        from crv.options import Options
        from crv.review import take_audit, why, write_audit

        if preview.value:
            show_preview(Options.from_config(cli.load_config(config)), preview.value)
            return 0
        (folder,) = cli.require(workdir)
        if problem.value is not None:
            print(why(folder, problem.value))
            return 0
        if audit.value:
            print(write_audit(folder, audit.value))
            return 0
        if audited.value is not None:
            take_audit(folder, audited.value)
        options = Options.from_config(cli.load_config(config))
        if merge_from.value:
            merge(merge_from.value, folder, options)
        summary = run(options, folder)
        print(json.dumps(summary))
        if summary.get("stopped"):
            done, left = summary["problems"]["total"], summary["left"]
            say(f"stopped: {done} problems are done and written, {left} are left; the same command goes on")
            return 130
        if told := summary.get("went_badly"):
            say(f"this run went badly: {told}")
            return 3
        return 0

    return main


def serve_pool() -> cli.Main:
    """Serves a model for CRV: SGLang workers behind sglang-router, watched and restarted, until Ctrl-C.

        cogpo serve-pool --config.model=MODEL_FOLDER --config.workers=8

    Writes pool.json (url, workers, health, restarts) and the logs under config.output; prints one JSON line when ready.
    """
    config = cli.define_config("serve_pool")

    def main() -> None:
        from crv.serve import PoolServer, ServeOptions

        PoolServer(ServeOptions.from_config(cli.load_config(config))).run()

    return main


def convert() -> cli.Main:
    """Preference rows of any published form (yours, TRL's, the CogPO authors') -> shards that `cogpo train` reads.

        cogpo convert --input=PAIRS.jsonl --output=DIR
        cogpo convert --input=hf:NAME@CONFIG:SPLIT --columns=prompt=question,chosen=good,rejected=bad --output=DIR

    The input is JSONL, JSON, CSV, Parquet or Arrow, compressed or not, a folder or glob of those, or a data set. A row
    has `prompt`, `chosen`, `rejected` (texts or conversations; docs/data.md lists the other forms that are known), and
    may have `beta` (a number above 0) or `gap` (small, medium, large, none: the config's beta of that gap), `system`
    and `weight`. Equal prompts with equal system messages join in one group, equal responses are shared, duplicate
    pairs are joined. Text that lost its backslashes (a backspace before `oxed`) is mended; `<think>` and its like part
    a response into thought and solution. A bad row is dropped and counted by reason; with --strict it ends the command.

    DIR gets groups/ and manifest.json. What was understood of the columns is told on stderr; a summary with all the
    counts is printed on stdout as one line of JSON.
    """
    source = flags.DEFINE_string("input", None, "File, folder or glob of rows, or hf:NAME[@CONFIG][:SPLIT].")
    split = flags.DEFINE_string("input_split", "", "Which split, where the input has several; empty: train.")
    output = flags.DEFINE_string("output", None, "Folder to write; records that it holds are replaced. Local or gs://.")
    heldout = flags.DEFINE_float("validation_fraction", 0.0, "Share of the prompts (0..1, by hash) to hold out.")
    shards = flags.DEFINE_integer("shards", 1, "Number of files per split.")
    name = flags.DEFINE_string("source", "", "Name of the data, kept in each record; empty: the preset's name.")
    preset = flags.DEFINE_string("preset", "", "What the columns are, by name (docs/data.md); empty: as they look.")
    columns = flags.DEFINE_string(
        "columns", "", "ROLE=COLUMN, ...: prompt, chosen, rejected, system, beta, gap, weight."
    )
    gold = flags.DEFINE_string("gold", "", "Not for pairs: they need no gold answers; a set of problems does.")
    strict = flags.DEFINE_bool("strict", False, "The first bad row ends the command.")

    def main() -> None:
        rows, folder = cli.require(source, output)
        from cogpo_jax.errors import UserError
        from cogpo_jax.records.convert import ConvertOptions, convert_pairs

        if gold.value:
            raise UserError(f"--gold: {gold.value}: pairs have no gold; `cogpo crv` reads problems with golds")
        options = ConvertOptions(
            split.value, heldout.value, shards.value, name.value, preset.value, columns.value, strict.value
        )
        with _stage_bars() as progress:
            summary = convert_pairs(rows, folder, options, progress, tell=lambda line: print(line, file=sys.stderr))
        print(json.dumps(summary, ensure_ascii=False))

    return main


@contextlib.contextmanager
def _stage_bars() -> Iterator[Callable[[str, float], None]]:
    """A function (stage, share done 0..1) that moves a bar for each stage, where stderr is a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=done)

        yield progress


def train_tokenizer() -> cli.Main:
    """Trains a small tokenizer (byte-level BPE, Qwen's special tokens and ChatML template) on a folder of records.

        cogpo train-tokenizer --data=runs/crv --output=runs/tokenizer --vocab_size=2048

    For tiny students only: a student of a published size keeps its own tokenizer. Reads the training split alone.
    Prints one JSON object: output, vocab_size, texts, characters.
    """
    data = flags.DEFINE_string("data", None, "Folder of records that `cogpo crv` wrote.")
    output = flags.DEFINE_string("output", None, "Folder of the tokenizer.")
    vocab_size = flags.DEFINE_integer("vocab_size", 2048, "Tokens in all, special ones included.")

    def main() -> None:
        records, folder = cli.require(data, output)
        from cogpo_jax.text import train_tokenizer

        texts = sorted(set(_texts(records)))
        train_tokenizer(texts, folder, vocab_size.value)
        report = {"output": folder, "vocab_size": vocab_size.value, "texts": len(texts)}
        print(json.dumps(report | {"characters": sum(map(len, texts))}))

    return main


def _texts(folder: str) -> Iterator[str]:
    from cogpo_jax.records import read_groups, read_sft
    from cogpo_jax.text import TextFormat, response_text

    text_format = TextFormat()
    for group in read_groups(folder, "train"):
        yield group.prompt
        for response in group.responses:
            yield response_text(response.thought, response.solution, response.text, text_format=text_format)
    for row in read_sft(folder, "train"):
        yield row.prompt
        yield response_text(row.thought, row.solution, row.text, text_format=text_format)
