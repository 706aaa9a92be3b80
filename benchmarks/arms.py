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
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogpo_jax.atomic import write_atomic
from cogpo_jax.errors import RunError, UserError
from cogpo_jax.progress import say
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
