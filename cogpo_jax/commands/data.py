"""Commands that make training data: CRV, its pool of servers, conversions, a small tokenizer. None needs jax."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator

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


def crv(given: cli.Flags) -> int:
    """CRV: problems in, training records out (Critique, Rethink, Verify)."""
    from crv.driver import run, show_preview
    from crv.ledger import merge
    from crv.options import Options
    from crv.review import take_audit, why, write_audit

    if given.preview:
        show_preview(Options.from_config(given.load_config()), given.preview)
        return 0
    (folder,) = given.require("workdir")
    if given.why is not None:
        print(why(folder, given.why))
        return 0
    if given.audit:
        print(write_audit(folder, given.audit))
        return 0
    if given.audited is not None:
        take_audit(folder, given.audited)
    options = Options.from_config(given.load_config())
    if given.merge:
        merge(given.merge, folder, options)
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


def serve_pool(given: cli.Flags) -> None:
    """Serves a model for CRV: SGLang workers behind sglang-router, watched and restarted, until Ctrl-C."""
    from crv.serve import PoolServer, ServeOptions

    PoolServer(ServeOptions.from_config(given.load_config())).run()


def convert(given: cli.Flags) -> None:
    """Preference rows of any published form (yours, TRL's, the CogPO authors') -> shards that `cogpo train` reads."""
    rows, folder = given.require("input", "output")
    from cogpo_jax.errors import UserError
    from cogpo_jax.records.convert import ConvertOptions, convert_pairs

    if given.gold:
        raise UserError(f"--gold: {given.gold}: pairs have no gold; `cogpo crv` reads problems with golds")
    options = ConvertOptions(
        given.input_split,
        given.validation_fraction,
        given.shards,
        given.source,
        given.preset,
        given.columns,
        given.strict,
    )
    with _stage_bars() as progress:
        summary = convert_pairs(rows, folder, options, progress, tell=lambda line: print(line, file=sys.stderr))
    print(json.dumps(summary, ensure_ascii=False))


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


def train_tokenizer(given: cli.Flags) -> None:
    """Trains a small tokenizer (byte-level BPE, Qwen's special tokens and ChatML template) on a folder of records."""
    records, folder = given.require("data", "output")
    from cogpo_jax.text import train_tokenizer

    texts = sorted(set(_texts(records)))
    train_tokenizer(texts, folder, given.vocab_size)
    report = {"output": folder, "vocab_size": given.vocab_size, "texts": len(texts)}
    print(json.dumps(report | {"characters": sum(map(len, texts))}))


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
