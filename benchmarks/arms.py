"""The arms of the comparisons in teaches.py and real_student.py: what is trained on what, evaluated how.

An arm starts from SFT (`sft_steps`) and takes `pair_steps` more of what it says: all have equal optimizer steps.

    asis            SFT on the texts as they came, and more of it
    rewrites        SFT on CRV's rewrites, and more of it
    dpo_B           SFT on CRV's rewrites, then DPO with one beta B
    cogpo           ... then CogPO with beta 0.1 / 0.2 / 0.5 for small / medium / large
    cogpo_reversed  ... with 0.5 / 0.2 / 0.1: a control
    cogpo_student   ... with the student's own wrong answers as rejected, where it gave one
    cogpo_nll       ... with the chosen side's NLL added to the loss (weight 1)

CRV runs as it is, on a recorded pool that is written here, and `cogpo evaluate` as it is on what a run exports. What
is finished is not done again.
"""

import dataclasses
import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogpo_jax.atomic import write_atomic, write_json
from cogpo_jax.errors import RunError, UserError
from cogpo_jax.records import SftExample, read_groups, write_data

ROOT = Path(__file__).parents[1]
KINDS = ("fitting", "terse", "convoluted")
ARMS = ("asis", "rewrites", "cogpo", "dpo_0.1", "dpo_0.2", "dpo_0.5", "cogpo_reversed", "cogpo_student", "cogpo_nll")
BETAS = (0.1, 0.2, 0.5)  # small, medium, large
_LABELS = {"fitting": "medium", "terse": "easy", "convoluted": "hard"}  # the critic's words


@dataclasses.dataclass(frozen=True)
class Item:
    """A problem with its right texts by kind and a wrong one."""

    problem: str
    answer: str
    texts: Mapping[str, str]
    wrong: str


@dataclasses.dataclass(frozen=True)
class Bench:
    """One seed's folder, problems (train, dev, test) and settings.

    configure(config) sets student, tokenizer, text format, rows and batches; init_from of a first SFT is its as well.
    """

    folder: Path
    seed: int
    problems: Mapping[str, Sequence[Item]]
    configure: Callable[[Any], None]
    sft_steps: int
    pair_steps: int
    sft_rate: float
    more_rate: float
    pair_rate: float
    sft_batch: int
    pair_batch: int
    new_tokens: int
    slots: int
    compute_dtype: str = "float32"
    chat: bool = False


def original_kind(number: int) -> str:
    """The kind of a training problem's original: a third each."""
    return KINDS[number % len(KINDS)]


def config_of(name: str) -> Any:
    """A shipped config."""
    return importlib.import_module(f"cogpo_jax.configs.{name}").get_config()


def crv_config(bench: Bench) -> Any:
    """configs/crv_recorded.py on this seed's files."""
    config = config_of("crv_recorded")
    config.input = str(bench.folder / "problems.jsonl")
    config.pool.recordings = str(bench.folder / "recordings.jsonl")
    config.heldout = 0.0
    config.max_rounds = config.corrupter.attempts = 1  # the rules have one text of each kind to say
    return config


def write_crv_files(bench: Bench) -> None:
    """problems.jsonl and recordings.jsonl: all that CRV asks about the training problems, answered by rule."""
    from crv.agents import Agents
    from crv.options import Options
    from crv.prompts import load_prompts
    from crv.verify.extract import hide_final_answers

    agents = Agents(load_prompts("default"), Options.from_config(crv_config(bench)))
    problems, recordings = [], []
    for number, item in enumerate(bench.problems["train"]):
        kind, name = original_kind(number), f"problem-{number}"
        original, fitting, label = item.texts[kind], item.texts["fitting"], _LABELS[kind]
        row = {"problem_id": name, "problem": item.problem, "answer": item.answer, "cot": original, "model": "rule"}
        problems.append(row)
        verdict = json.dumps({"reason": "known", "label": label})
        asked = [(agents.critique(item.problem, original, name), verdict, "")]
        if label != "medium":
            rethink = agents.rethink(label, item.problem, item.answer, original, "", name, 0)
            blind = agents.resolve(item.problem, hide_final_answers(fitting), name, 0)
            asked += [(rethink, fitting, ""), (blind, f"The answer is {item.answer}", "")]
        asked.append((agents.corrupt(item.problem, item.answer, fitting, name, 0), item.wrong, "rule"))
        for ask, answer, origin in asked:
            said = {"question": ask.request.question(), "answer": answer, "model": "rule"}
            recordings.append({**said, **({"origin": origin} if origin else {})})
    for file, rows in (("problems.jsonl", problems), ("recordings.jsonl", recordings)):
        write_atomic(bench.folder / file, "".join(json.dumps(row) + "\n" for row in rows))


def make_data(bench: Bench) -> None:
    """CRV's records (`crv`) and the texts as they came (`as_it_came`); once."""
    if (bench.folder / "as_it_came" / "manifest.json").is_file():
        return
    from crv.driver import run
    from crv.options import Options

    write_crv_files(bench)
    summary = run(Options.from_config(crv_config(bench)), bench.folder / "crv")
    count, dropped = len(bench.problems["train"]), summary["problems"].get("dropped", 0)
    if dropped:  # a person's solution may speak of "the answer of the first problem"
        say(f"CRV dropped {dropped} of {count}: {summary['drops']}")
    if dropped > count / 20:
        raise UserError(f"CRV dropped {dropped} of {count}: these texts should nearly all pass")
    rows = (
        SftExample(
            f"problem-{i}", "", item.problem, "", "", item.texts[original_kind(i)], item.answer, "", "as it came"
        )
        for i, item in enumerate(bench.problems["train"])
    )
    write_data(bench.folder / "as_it_came", sft={"train": rows}, info={"texts": "as they came"})


def run_arm(bench: Bench, arm: str, split: str) -> None:
    """Trains what the arm needs, and evaluates it."""
    data, first = "as_it_came" if arm == "asis" else "crv", start_of(arm)
    _sft(bench, data, first, bench.sft_steps, bench.sft_rate)
    if arm in ("asis", "rewrites"):
        _sft(bench, data, arm, bench.pair_steps, bench.more_rate, start=first)
    else:
        _preference(bench, arm)
    evaluated(bench, arm, split)


def alone(command: Sequence[str]) -> None:
    """An arm in a process of its own: with what the arms before it leave in memory, 24 GB were too few for 0.5B.

    SIGTERM goes on to it. Raises RunError where it ends with another code than 0.
    """
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            code = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    if code:
        raise RunError(f"{' '.join(command)}: ended with {code}; the same command goes on from there")


def start_of(arm: str) -> str:
    """The SFT run that an arm starts from."""
    return "sft_asis" if arm == "asis" else "sft_rewrites"


def _base_config(bench: Bench, steps: int, rate: float) -> Any:
    config = config_of("tiny_cpu")
    config.text.response = "plain"
    config.seed, config.epochs, config.max_steps = bench.seed, 1000, steps
    config.optimizer.schedule_steps, config.optimizer.learning_rate = steps, rate
    config.rows.shapes = 1
    config.checkpoint.every, config.checkpoint.keep, config.log.tensorboard = 10**6, 1, False
    config.compile_cache.dir = str(bench.folder.parent / "compiled")
    bench.configure(config)
    return config


def _sft(bench: Bench, data: str, name: str, steps: int, rate: float, start: str = "") -> None:
    """SFT on the records `data`, from the student's first weights or from the run `start`."""
    config = _base_config(bench, steps, rate)
    config.objective, config.data, config.batch.groups = "sft", str(bench.folder / data), bench.sft_batch
    if start:
        config.init_from, config.tokenizer = str(bench.folder / start), ""
        config.seed = bench.seed + 1000  # another order of the examples
    _train(bench, name, config)


def _preference(bench: Bench, arm: str) -> None:
    """An arm's preference training, from the SFT on rewrites."""
    config = _base_config(bench, bench.pair_steps, bench.pair_rate)
    config.objective = "dpo" if arm.startswith("dpo_") else "cogpo"
    if config.objective == "dpo":
        config.beta.default = float(arm.removeprefix("dpo_"))
    else:
        betas = BETAS[::-1] if arm == "cogpo_reversed" else BETAS
        config.beta.small, config.beta.medium, config.beta.large = betas
        config.loss.nll_weight = float(arm == "cogpo_nll")
    if arm == "cogpo_student":
        _own_mistakes(bench)
    config.data = str(bench.folder / ("student_wrong" if arm == "cogpo_student" else "crv"))
    config.init_from, config.tokenizer = str(bench.folder / "sft_rewrites"), ""
    config.reference_cache.dir = str(bench.folder / "references")  # one reference for all arms
    config.batch.groups = bench.pair_batch
    _train(bench, arm, config)


def _train(bench: Bench, name: str, config: Any) -> None:
    from cogpo_jax.training.train import train

    if not (bench.folder / name / "done.json").is_file():
        began = time.monotonic()
        if not train(config, bench.folder / name)["finished"]:  # SIGTERM: the same command goes on from there
            raise RunError(f"stopped while it trained {name}; the same command goes on from there")
        say(f"seed {bench.seed}: {name} trained in {time.monotonic() - began:.0f} s")


def _own_mistakes(bench: Bench) -> None:
    """Records with the student's own wrong answers (temperature 1) as the wrong texts, where it gave one."""
    folder = bench.folder / "student_wrong"
    if (folder / "manifest.json").is_file():
        return
    wrong = {
        bench.problems["train"][int(sample["id"])].problem: sample["response"]
        for sample in evaluated(bench, "sft_rewrites", "train", temperature=1.0)
        if sample["verdict"] == "incorrect"
    }
    groups = [_with_wrong(group, wrong.get(group.prompt, "")) for group in read_groups(bench.folder / "crv", "train")]
    info = {"own wrong answers": len(wrong), "problems": len(bench.problems["train"])}
    write_data(folder, groups={"train": groups}, info=info)


def _with_wrong(group: Any, text: str) -> Any:
    """The group with `text` in the place of its wrong response; as it is where there is no text."""
    if not text or any(text == response.text for response in group.responses):
        return group
    own = {"text": text, "thought": "", "solution": "", "origin": "solver", "model": "student"}
    responses = (dataclasses.replace(r, **own) if r.kind == "incorrect" else r for r in group.responses)
    return dataclasses.replace(group, responses=tuple(responses))


def evaluated(bench: Bench, name: str, split: str, temperature: float = 0.0) -> list[dict[str, Any]]:
    """A run's samples, in the order of the problems, as `cogpo evaluate` makes and grades them; once for each split."""
    from cogpo_jax.evaluation.engines import StudentEngine
    from cogpo_jax.evaluation.run import Evaluation, evaluate
    from cogpo_jax.evaluation.summary import read_samples
    from cogpo_jax.evaluation.tasks import Task
    from cogpo_jax.text import TextFormat
    from cogpo_jax.training.checkpoint import export_checkpoint

    output, data = evaluation_folder(bench, name, split), bench.folder / f"{split}.jsonl"
    if not (output / "summary.json").is_file():
        rows = ({"id": str(i), "problem": x.problem, "answer": x.answer} for i, x in enumerate(bench.problems[split]))
        write_atomic(data, "".join(json.dumps(row) + "\n" for row in rows))
        export_checkpoint(str(bench.folder / name), f"{output}-student", dtype="float32", overwrite=True)
        text_format = TextFormat(prompt="chat" if bench.chat else "raw")
        engine = StudentEngine(f"{output}-student", bench.compute_dtype, slots=bench.slots, text_format=text_format)
        columns = {field: [field] for field in ("id", "problem", "answer")}
        task = Task(split, "math", "{problem}", columns, temperature=temperature, max_new_tokens=bench.new_tokens)
        summary = evaluate(Evaluation(task, str(data), str(output), engine, seed=bench.seed))
        shutil.rmtree(f"{output}-student")  # the run's checkpoint is kept
        say(f"seed {bench.seed}: {name}: {summary['accuracy']}")
    return read_samples(output)


def evaluation_folder(bench: Bench, name: str, split: str) -> Path:
    """Where `evaluated` puts a run's evaluation; two of them go to `cogpo evaluate --compare`."""
    return bench.folder / f"eval-{split}" / name


def interval(values: np.ndarray, draws: int = 2000) -> list[float]:
    """95% interval of the mean of [seeds, problems]: seeds and problems are drawn anew, together (bootstrap)."""
    rng = np.random.default_rng(0)
    seeds, problems = values.shape
    means = []
    for _ in range(draws):
        rows = values[rng.integers(seeds, size=seeds)]
        means.append(float(np.mean([row[rng.integers(problems, size=problems)].mean() for row in rows])))
    return [float(x) for x in np.percentile(means, (2.5, 97.5))]


def results(benches: Sequence[Bench], arms: Sequence[str], split: str) -> dict[str, Any]:
    """Accuracy by arm and every paired difference, over the seeds that have the arm, or both.

    Intervals are over seeds and problems; a difference of one seed is `cogpo evaluate --compare`'s, with its p.
    """
    from cogpo_jax.evaluation.summary import compare, read_samples

    done: dict[str, dict[int, list[dict[str, Any]]]] = {arm: {} for arm in arms}
    for bench in benches:
        for arm in arms:
            if (folder := evaluation_folder(bench, arm, split)).joinpath("summary.json").is_file():
                done[arm][bench.seed] = read_samples(folder)
    done = {arm: runs for arm, runs in done.items() if runs}
    folders = {bench.seed: evaluation_folder(bench, "", split) for bench in benches}

    def right(arm: str, seeds: Sequence[int]) -> np.ndarray:
        return np.array([[sample["verdict"] == "correct" for sample in done[arm][seed]] for seed in seeds], float)

    by_arm, differences = {}, {}
    for i, (arm, runs) in enumerate(done.items()):
        values, samples = right(arm, list(runs)), [sample for one in runs.values() for sample in one]
        by_arm[arm] = {
            "accuracy": float(values.mean()),
            "interval": interval(values),
            "by_seed": {str(seed): float(row.mean()) for seed, row in zip(runs, values, strict=True)},
            "tokens": float(np.mean([sample["tokens"] for sample in samples])),
            "cut_off": sum(sample["finish_reason"] == "length" for sample in samples),
            "unknown": sum(sample["verdict"] == "unknown" for sample in samples),
            "verdicts": {
                str(seed): "".join("01"[int(one)] for one in row) for seed, row in zip(runs, values, strict=True)
            },
        }
        for other in list(done)[:i]:
            both = [seed for seed in runs if seed in done[other]]
            if len(both) == 1:
                told = compare(folders[both[0]] / other, folders[both[0]] / arm)["overall"]
                one = {"difference": told["difference"], "interval": [told["low"], told["high"]], "p": told["p"]}
                differences[f"{arm} - {other}"] = {**one, "seeds": both}
            elif both:
                values = right(arm, both) - right(other, both)
                one = {"difference": float(values.mean()), "interval": interval(values), "seeds": both}
                differences[f"{arm} - {other}"] = one
    seeds = sorted({seed for runs in done.values() for seed in runs})
    return {"split": split, "seeds": seeds, "arms": by_arm, "differences": differences}


def table(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The arms of `names` as a Markdown table, in that order."""
    lines = ["| training | right | 95% interval | seeds | tokens |", "|---|---|---|---|---|"]
    for arm, name in names.items():
        if one := found["arms"].get(arm):
            low, high = one["interval"]
            seeds = len(one["by_seed"])
            lines.append(
                f"| {name} | {one['accuracy']:.1%} | {low:.1%} to {high:.1%} | {seeds} | {one['tokens']:.0f} |"
            )
    return "\n".join(lines)


def differences_table(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Every paired difference between the arms of `names` as a Markdown table."""
    lines = ["| difference | points | 95% interval | seeds |", "|---|---|---|---|"]
    for pair, one in found["differences"].items():
        first, second = pair.split(" - ")
        if first in names and second in names:
            low, high = (100 * end for end in one["interval"])
            points = f"{100 * one['difference']:+.1f} | {low:+.1f} to {high:+.1f}"
            lines.append(f"| {first} - {second} | {points} | {len(one['seeds'])} |")
    return "\n".join(lines)


def publish(found: Mapping[str, Any], name: str, names: Mapping[str, str]) -> None:
    """The results into docs/results/NAME.json and between the marks `NAME: arms` and so on of the documents."""
    rounded = json.loads(json.dumps(found), parse_float=lambda x: round(float(x), 4))
    write_json(ROOT / "docs" / "results" / f"{name}.json", rounded)
    tables = {"arms": table(found, names), "differences": differences_table(found, names)}
    for file in (ROOT / "docs" / "results.md", ROOT / "README.md"):
        text = file.read_text(encoding="utf-8")
        for kind, rows in tables.items():
            begin, end = f"<!-- {name}: {kind} -->", f"<!-- end of {kind} -->"
            if begin in text:
                head, _, rest = text.partition(begin)
                text = f"{head}{begin}\n{rows}\n{end}{rest.partition(end)[2]}"
        write_atomic(file, text)


def bars(found: Mapping[str, Any]) -> str:
    """The arms' accuracies as SVG: a bar and its 95% interval for each."""
    drawn = []
    for i, (arm, one) in enumerate(found["arms"].items()):
        y, (low, high) = 24 * i, (130 + 400 * end for end in one["interval"])
        drawn += [
            f'<text x="0" y="{y + 15}">{arm}</text>',
            f'<rect x="130" y="{y + 4}" width="{400 * one["accuracy"]:.1f}" height="14" fill="#79a"/>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 11}" y2="{y + 11}" stroke="#000"/>',
            f'<text x="540" y="{y + 15}">{one["accuracy"]:.1%}, {one["tokens"]:.0f} tokens</text>',
        ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="700" height="{6 * len(drawn)}" font-family="sans-serif"'
    return f'{head} font-size="13">{"".join(drawn)}</svg>'


def write_page(found: Mapping[str, Any], file: Path) -> None:
    """A self-contained page of `results`: the bars, and every difference."""
    rows = []
    for name, one in found["differences"].items():
        low, high = (100 * end for end in one["interval"])
        rows.append(f"<tr><td>{name}<td>{100 * one['difference']:+.1f}<td>{low:+.1f} to {high:+.1f}</tr>")
    page = f"""<!doctype html><meta charset="utf-8"><title>Does it teach?</title>
<style>body{{font:14px sans-serif;max-width:52em;margin:2em auto}}td{{padding:.1em 1em .1em 0}}</style>
<h1>Does it teach?</h1>
<p>Share of problems answered right ({found["split"]} split, seeds {found["seeds"]}); lines and ranges are 95% intervals
over seeds and problems. One seed says nothing about other seeds.</p>
{bars(found)}
<h2>Differences, in points</h2><table>{"".join(rows)}</table>
<pre>{json.dumps(found.get("settings", {}), indent=1)}</pre>
"""
    write_atomic(file, page)


def say(text: str) -> None:
    """Progress on stderr."""
    print(text, file=sys.stderr, flush=True)
