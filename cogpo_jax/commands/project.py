"""Commands about the whole: the quickstart, the shipped configs, the report page."""

import json
from pathlib import Path

from absl import flags

from cogpo_jax import cli, config_files
from cogpo_jax.atomic import write_atomic
from cogpo_jax.errors import UserError


def quickstart() -> cli.Main:
    """Runs the whole loop on the shipped problems with a tiny student, on the CPU, in minutes.

        cogpo quickstart [--workdir=runs/quickstart]

    CRV on recorded answers -> a tokenizer -> SFT -> CogPO -> Hugging Face folder -> comparison with transformers ->
    report. Each stage is a command that is printed before it runs, and can be typed alone. Started again it skips what
    is done and goes on with what was interrupted. Leaves crv/, tokenizer/, sft/, cogpo/, hf/, report.html and
    summary.json in the workdir; exit code 1 if a check failed.
    """
    workdir = flags.DEFINE_string("workdir", "runs/quickstart", "Folder of the results.")

    def main() -> int:
        from cogpo_jax.quickstart import quickstart

        return quickstart(workdir.value)

    return main


def configs() -> cli.Main:
    """Lists the shipped configs, or shows one: every field, its value, its comment, and where it was set.

        cogpo configs
        cogpo configs show cogpo_tpu:7b
        cogpo configs show my_config.py

    A config of your own is a Python file with get_config(); it may begin with one of these:
    `from cogpo_jax.configs import cogpo_tpu`.
    """

    def main(*words: str) -> None:
        if not words:
            _list_configs()
        elif words[0] != "show" or len(words) != 2:
            raise UserError(f"configs: {' '.join(words)}: not understood; try `cogpo configs show tiny_cpu`")
        else:
            _show_config(words[1])

    return main


configs.words = 2  # type: ignore[attr-defined]


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


def report() -> cli.Main:
    """Writes one self-contained HTML page about a run: its data, its training, and what the held-out pairs say.

        cogpo report --data=DIR --sft=WORKDIR --cogpo=WORKDIR --output=report.html

    Each of the three is optional: the page has a section for each part that is given. A --data folder that is CRV's
    workdir (finished or not) also gives flows, lengths, rounds, cost, and a browser of --problems problems, from its
    ledger. The page needs no network. Prints the held-out table as JSON.
    """
    from crv.review import SHOWN

    data = flags.DEFINE_string("data", None, "Folder of records: of `cogpo crv` (its workdir), or of any conversion.")
    problems = flags.DEFINE_integer("problems", SHOWN, "At most so many problems of CRV's ledger in the page.", 0)
    sft = flags.DEFINE_string("sft", None, "Workdir of `cogpo train` with objective sft.")
    cogpo = flags.DEFINE_string("cogpo", None, "Workdir of `cogpo train` with objective cogpo or dpo.")
    summary = flags.DEFINE_string("summary", None, "summary.json of the quickstart: adds its checks and times.")
    evaluations = flags.DEFINE_list("evaluations", [], "Folders of `cogpo evaluate`, with commas between.")
    output = flags.DEFINE_string("output", "report.html", "The page.")

    def main() -> None:
        from cogpo_jax.report.evaluations import evaluations_section
        from cogpo_jax.report.page import build_page
        from cogpo_jax.report.run_files import heldout_table, read_data, read_training
        from crv.review import read_overview

        if not (data.value or sft.value or cogpo.value or evaluations.value):
            raise UserError("report: nothing to show: give at least one of --data, --sft, --cogpo, --evaluations")
        if summary.value and not Path(summary.value).is_file():
            raise UserError(f"--summary: {summary.value}: no such file")
        crv = records = None
        if data.value:
            has_ledger, has_records = (Path(data.value, name).is_file() for name in ("ledger.sqlite", "manifest.json"))
            crv = read_overview(data.value, problems.value) if has_ledger else None
            # A run that goes on has a ledger, and no records yet.
            records = read_data(data.value) if has_records or not has_ledger else None
        first = read_training(sft.value) if sft.value else None
        second = read_training(cogpo.value) if cogpo.value else None
        checks = json.loads(Path(summary.value).read_text()) if summary.value else None
        shown = evaluations_section(evaluations.value) if evaluations.value else None
        write_atomic(output.value, build_page(records, first, second, checks, crv, shown))
        print(json.dumps({"report": output.value, "heldout": heldout_table(second.pairs) if second else {}}))

    return main
