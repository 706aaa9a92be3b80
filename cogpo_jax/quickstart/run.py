"""The quickstart's story: which command follows which, with which settings, and what is said on the way."""

import importlib.util
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cogpo_jax.atomic import write_json
from cogpo_jax.quickstart.stages import Finished, Stage, code_digest, run_stage, shown_command
from cogpo_jax.quickstart.summary import summarise

HELDOUT_PROBLEMS = 70
VOCAB_SIZE = 2048  # the student's vocab_size, in configs/models/tiny.json
_BASE = "--config=tiny_cpu"
# No response of the shipped problems is longer than this row; one compiled shape saves more than it wastes.
_ROWS = ("--config.rows.length=896", "--config.rows.shapes=1")
# Small steps and few epochs: where SFT has learned the chosen responses by heart, CogPO pushes down all that is new to
# the model, and a held-out response loses by its length (correlation of margin and length: -0.5 where the held-out NLL
# was 0.4 above the training's).
_SFT = (
    "--config.rows.per_device=2",
    "--config.epochs=2",
    "--config.batch.groups=4",
    "--config.optimizer.learning_rate=2e-3",
    "--config.eval.every=14",
)
# 5e-7, the published rate for billions of parameters, moves nothing in so few steps; more than 4e-5 adds noise that
# costs long responses. Without the penalty (DPOP) shorter responses gain, with one of 3 longer ones do.
_COGPO = (
    "--config.rows.per_device=4",
    "--config.epochs=2",
    "--config.batch.groups=16",
    "--config.optimizer.learning_rate=4e-5",
    "--config.loss.displacement_penalty=1.0",
    "--config.eval.every=9",
)


def stages(folder: str) -> list[Stage]:
    """The stages that leave their outputs in `folder` (as given on the command line)."""
    data, tokenizer, sft, cogpo, hf = (f"{folder}/{name}" for name in ("crv", "tokenizer", "sft", "cogpo", "hf"))
    train = ("train", _BASE, f"--config.data={data}", f"--config.eval.data={data}", *_ROWS)
    crv = ("crv", "--config=crv_recorded", f"--config.heldout={HELDOUT_PROBLEMS}")
    torch = "with torch" if importlib.util.find_spec("torch") else "without torch"
    return [
        Stage("crv", (*crv, f"--workdir={data}"), "crv"),
        Stage(
            "tokenizer",
            ("train-tokenizer", f"--data={data}", f"--output={tokenizer}", f"--vocab_size={VOCAB_SIZE}"),
            "tokenizer",
        ),
        Stage(
            "sft",
            (*train, "--config.objective=sft", f"--config.tokenizer={tokenizer}", *_SFT, f"--workdir={sft}"),
            "sft",
        ),
        Stage(
            "cogpo",
            (*train, "--config.objective=cogpo", f"--config.init_from={sft}", *_COGPO, f"--workdir={cogpo}"),
            "cogpo",
        ),
        Stage("export", ("export", f"--workdir={cogpo}", f"--output={hf}", "--dtype=float32"), "hf"),
        Stage(
            "compare",
            ("compare-hf", f"--workdir={cogpo}", f"--model={hf}", f"--data={data}"),
            None,
            salt=torch,
        ),
    ]


def report_stage(folder: str) -> Stage:
    """The last stage: the page, which shows the summary of all the others."""
    parts = (f"--data={folder}/crv", f"--sft={folder}/sft", f"--cogpo={folder}/cogpo")
    command = ("report", *parts, f"--summary={folder}/summary.json", f"--output={folder}/report.html")
    return Stage("report", command, "report.html")


def quickstart(folder: str) -> int:
    """Runs all stages from the working folder; 0 if every check passed.

    Writes summary.json and report.html into `folder`.
    """
    console, run = Console(), Path(folder)
    finished: dict[str, Finished] = {}
    key = code_digest()
    todo = stages(folder)
    for number, stage in enumerate(todo, 1):
        console.rule(f"[bold]{number}/{len(todo) + 1} {stage.name}", align="left")
        console.print(shown_command(stage), style="dim", highlight=False, soft_wrap=True)
        finished[stage.name], key = run_stage(stage, run, key)
        console.print(_said(finished[stage.name]))
    results = {name: done.result for name, done in finished.items()}
    seconds = {name: done.seconds for name, done in finished.items()}
    write_json(run / "summary.json", summarise(run, results, seconds))
    last = report_stage(folder)
    console.rule(f"[bold]{len(todo) + 1}/{len(todo) + 1} {last.name}", align="left")
    (run / "report.html").unlink(missing_ok=True)  # cheap, and the summary it shows may be new
    seconds["report"] = run_stage(last, run, key)[0].seconds
    summary = summarise(run, results, seconds)
    write_json(run / "summary.json", summary)
    return _tell(console, summary, folder)


def _said(done: Finished) -> str:
    return f"done before, in {done.seconds:.0f} s" if done.skipped else f"done in {done.seconds:.0f} s"


def _tell(console: Console, summary: dict[str, Any], folder: str) -> int:
    words = {True: "[green]passed", False: "[red]failed", None: "[yellow]skipped"}
    table = Table("check", "value", "", title=f"quickstart, {summary['seconds']['total']:.0f} s", title_justify="left")
    for check in summary["checks"]:
        table.add_row(check["name"], check["value"], words[check["passed"]])
    console.print(table)
    console.print(f"The report: {folder}/report.html; the figures: {folder}/summary.json", highlight=False)
    return 1 if any(check["passed"] is False for check in summary["checks"]) else 0
