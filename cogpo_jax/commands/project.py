"""Commands about the whole: the quickstart, the shipped configs, evaluations, the report page."""

import json
from pathlib import Path
from typing import Any

from cogpo_jax import cli, config_files
from cogpo_jax.atomic import write_atomic
from cogpo_jax.errors import UserError
from cogpo_jax.text import TextFormat


def quickstart(given: cli.Flags) -> int:
    """Runs the whole loop on the shipped problems with a tiny student, on the CPU, in minutes."""
    from cogpo_jax.quickstart import quickstart

    if Path(given.workdir).exists() and not Path(given.workdir).is_dir():
        raise UserError(f"--workdir: {given.workdir}: is a file; give a folder")
    return quickstart(given.workdir)


def configs(given: cli.Flags, *words: str) -> None:
    """Lists the shipped configs, or shows one: every field, its value, its comment, and where it was set."""
    if not words:
        _list_configs()
    elif words[0] != "show" or len(words) != 2:
        raise UserError(f"configs: {' '.join(words)}: not understood; try `cogpo configs show tiny_cpu`")
    else:
        _show_config(words[1])


def _list_configs() -> None:
    width = max(map(len, config_files.names()))
    for name in config_files.names():
        said, sizes = config_files.summary(name)
        print(f"{name:{width}}  {said}")
        if sizes:
            print(f"{'':{width}}  {' '.join(f'{name}:{size}' for size in sizes)}")


def _show_config(value: str) -> None:
    fields = config_files.describe(value)
    width = max(len(f"{field.name} = {json.dumps(field.value, default=list)}") for field in fields)
    place = max(len(field.where) for field in fields)
    for field in fields:
        setting = f"{field.name} = {json.dumps(field.value, default=list)}"
        print(f"{setting:{min(width, 60)}}  {field.where:{place}}  {field.comment}".rstrip())


def report(given: cli.Flags) -> None:
    """Writes one self-contained HTML page about a run: its data, its training, and what the held-out pairs say."""
    from cogpo_jax.report.evaluations import evaluations_section
    from cogpo_jax.report.page import build_page
    from cogpo_jax.report.run_files import heldout_table, read_data, read_training
    from crv.review import read_overview

    if not (given.data or given.sft or given.cogpo or given.evaluations):
        raise UserError("report: nothing to show: give at least one of --data, --sft, --cogpo, --evaluations")
    if given.summary and not Path(given.summary).is_file():
        raise UserError(f"--summary: {given.summary}: no such file")
    crv = records = None
    if given.data:
        has_ledger, has_records = (Path(given.data, name).is_file() for name in ("ledger.sqlite", "manifest.json"))
        crv = read_overview(given.data, given.problems) if has_ledger else None
        # A run that goes on has a ledger, and no records yet.
        records = read_data(given.data) if has_records or not has_ledger else None
    first = read_training(given.sft) if given.sft else None
    second = read_training(given.cogpo) if given.cogpo else None
    checks = json.loads(Path(given.summary).read_text()) if given.summary else None
    shown = evaluations_section(given.evaluations) if given.evaluations else None
    write_atomic(given.output, build_page(records, first, second, checks, crv, shown))
    print(json.dumps({"report": given.output, "heldout": heldout_table(second.pairs) if second else {}}))


def evaluate(given: cli.Flags) -> None:
    """Accuracy of a student on a task, with intervals; two evaluations against each other."""
    if given.compare is not None:
        _compare(given.compare, given.common, given.output)
        return
    (folder,) = given.require("output")
    from cogpo_jax.evaluation import run
    from cogpo_jax.evaluation.tasks import load_task

    if given.regrade:
        print(json.dumps(run.regrade(folder, given.allow_code, given.workers), ensure_ascii=False))
        return
    (name,) = given.require("task")
    fields = {field: given[field] for field in ("samples", "temperature", "top_p", "max_new_tokens", "system")}
    request = run.Evaluation(
        task=load_task(name, given.columns, few_shot=given.shots, **fields),
        data=given.data or "",
        output=folder,
        engine=_engine(given),
        responses=given.responses,
        few_shot=given.few_shot,
        limit=given.limit,
        seed=given.seed,
        allow_code=given.allow_code,
        workers=given.workers,
        tokenizer=given.tokenizer,
    )
    print(json.dumps(run.evaluate(request), ensure_ascii=False))


def _engine(given: cli.Flags) -> Any:
    """What answers, as the flags name it, or None where texts are given."""
    from cogpo_jax.evaluation.engines import PoolEngine, StudentEngine
    from crv.options import PoolOptions

    names = [name for name in ("model", "pool.url", "responses") if given[name]]
    if len(names) != 1:
        told = " and ".join(f"--{name}" for name in names) or "none"
        raise UserError(f"--model, --pool.url, --responses: {told} given; give exactly one")
    if given.model:
        text_format = TextFormat(prompt=given.prompt_format, end_token=given.end_token)
        return StudentEngine(
            given.model, compute_dtype=given.dtype, tensor=given.tensor, slots=given.slots, text_format=text_format
        )
    if given.responses:
        return None
    fields = ("url", "model", "kind", "tokenizer", "concurrency", "timeout", "api_key")
    return PoolEngine(PoolOptions(**{name: given[f"pool.{name}"] for name in fields}))


def _compare(folders: list[str], common: bool, output: str | None) -> None:
    if len(folders) != 2:
        raise UserError(f"--compare: {','.join(folders)}: give two folders, as A,B")
    from cogpo_jax.atomic import write_json
    from cogpo_jax.evaluation.summary import compare, runs_in, sentence
    from cogpo_jax.progress import say
    from cogpo_jax.report.evaluations import write_page

    comparison = compare(folders[0], folders[1], common)
    for name, result in [*comparison["tasks"].items(), ("overall", comparison["overall"])]:
        say(f"{name}: {sentence(result)}")
    if output:
        Path(output).mkdir(parents=True, exist_ok=True)
        write_json(Path(output, "comparison.json"), comparison)
        runs = [run for folder in folders for run in runs_in(folder).values()]
        write_page(Path(output, "report.html"), runs, comparison)
    print(json.dumps(comparison, ensure_ascii=False))
