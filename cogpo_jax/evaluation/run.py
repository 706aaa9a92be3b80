"""One evaluation in one folder: problems, responses, verdicts, summary. Each step keeps what the one before left.

evaluation.json (what was asked for), problems.jsonl, generated.jsonl and verdicts.jsonl (a line when something is
finished: a kill loses nothing), then samples.jsonl, summary.json and report.html, written whole.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogpo_jax.atomic import FolderLock, atomic_file, sha256_file, write_json
from cogpo_jax.errors import RunError, UserError
from cogpo_jax.evaluation import grading, statistics
from cogpo_jax.evaluation.engines import Ask, Decoding, Engine, Reply
from cogpo_jax.evaluation.summary import differing, summarise
from cogpo_jax.evaluation.tasks import Problem, Task, load_task, make_problems, problem_from_json, unreadable
from cogpo_jax.progress import Bar, say
from cogpo_jax.records import reader
from cogpo_jax.records.texts import replace_surrogates
from crv.verify import grade

Key = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is asked for. `data`, `responses`, `few_shot`: files; `engine` or `responses` gives the texts.

    `columns`: for each of the task's names a column that goes before the task's own; `limit`: the first problems only.
    """

    task: Task
    data: str
    output: str
    engine: Engine | None = None
    responses: str = ""
    few_shot: str = ""
    limit: int = 0
    seed: int = 0
    allow_code: bool = False
    workers: int = 2
    tokenizer: str = ""  # counts the tokens of responses that do not say how many they are


def evaluate(request: Evaluation) -> dict[str, Any]:
    """Generates what is missing, grades it, and writes the summary, which it returns.

    Raises UserError before any work for bad input, a folder of another evaluation, or a folder that is in use.
    """
    task, problems = request.task, load_problems(request)
    if task.temperature == 0 and task.samples > 1 and request.engine:
        say(f"--samples: {task.samples} at temperature 0 would be one response again and again: 1 is made")
        task = dataclasses.replace(task, samples=1)
    if task.grader == "code":
        if not request.allow_code:
            raise UserError("--allow_code: missing: grading this task runs programs that a model wrote")
        asyncio.run(grading.check_sandbox())
    decoding = Decoding(task.temperature, task.top_p, task.max_new_tokens, request.seed)
    imported = read_responses(request.responses, problems) if request.responses else {}
    if imported and (without := len({problem.id for problem in problems} - {name for name, _ in imported})):
        say(f"--responses: {without} of {len(problems)} problems have no response there: they count nowhere")
    what: dict[str, Any] = {"task": dataclasses.asdict(task), "problems": len(problems), "seed": request.seed}
    if request.engine:
        request.engine.check(problems, decoding)
        what |= request.engine.describe()
    else:
        what |= {"engine": "responses", "model": Path(request.responses).stem, "file": sha256_file(request.responses)}
    if bad := unreadable(task, problems):
        say(f"{len(bad)} gold answers cannot be read whole ({', '.join(bad[:5])}): only equal texts are correct there")
    samples = task.samples if request.engine else max(1, len(imported) // len(problems))
    _say_what_can_be_seen(len(problems), samples)
    with evaluation_folder(request.output, what, problems) as folder:
        replies = Journal(folder / "generated.jsonl")
        for (name, sample), row in imported.items():
            if (name, sample) not in replies.rows:
                replies.append({"id": name, "sample": sample, **row})
        if request.engine:
            asks = [Ask(p, i) for p in problems for i in range(task.samples) if (p.id, i) not in replies.rows]
            _generate(request.engine, asks, decoding, replies, len(problems) * task.samples)
        _count_tokens(replies.rows, request.tokenizer)
        return finish(folder, problems, what, replies, request.allow_code, request.workers)


def load_problems(request: Evaluation) -> list[Problem]:
    """The task's problems of the data file, the first `limit` of them. Raises UserError for what does not fit."""
    if not request.data:
        raise UserError("--data: missing: this task ships no problems; give a file of rows, or hf:NAME")
    examples: Sequence[Mapping[str, Any]] | str = ()
    if request.task.few_shot and request.few_shot:
        text = request.few_shot.endswith(".txt")
        examples = _text(request.few_shot) if text else list(data_rows(request.few_shot))
    elif request.task.few_shot and request.engine:
        raise UserError(
            f"--few_shot: missing: {request.task.name} is asked with {request.task.few_shot} worked examples; "
            "give a file of them, or --shots=0"
        )
    problems = make_problems(request.task, data_rows(request.data), request.data, request.seed, examples)
    return problems[: request.limit or None]


def data_rows(source: str) -> Iterator[dict[str, Any]]:
    """The rows of a file of any form, a folder, or hf:NAME[:SPLIT]."""
    return (row for _, row in _rows(source))


def _rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row); numbers with a point as floats. Halves of surrogate pairs, which no file can hold, become U+FFFD,
    and how many there were is said."""
    replaced = 0
    for where, row in reader.read_rows(source):
        text, halves = replace_surrogates(json.dumps(row, default=float, ensure_ascii=False))
        replaced += halves
        yield where, json.loads(text)
    if replaced:
        say(f"{source}: {replaced} halves of surrogate pairs were replaced by U+FFFD")


def _text(path: str) -> str:
    """A file of worked examples as text, without the line that keeps it out of training sets (BIG-Bench's canary)."""
    try:
        return Path(path).read_text(encoding="utf-8").rpartition("\n-----\n")[2].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--few_shot: {path}: cannot be read: {error}") from None


def read_responses(path: str, problems: Sequence[Problem]) -> dict[Key, dict[str, Any]]:
    """Responses from elsewhere by (id, sample). A row without `sample` is its problem's next one.

    Raises UserError for a row of no problem here, a second row of the same sample, or one that is no text.
    """
    known, found = {p.id for p in problems}, dict[Key, dict[str, Any]]()
    for where, row in _rows(path):
        name = str(row.get("id"))
        if "id" not in row or "response" not in row:
            raise UserError(
                f"{where}: {'response' if 'id' in row else 'id'}: missing; rows are {{id, sample, response}}"
            )
        if name not in known:
            raise UserError(f"{where}: id: {name!r}: no such problem in --data")
        response, sample = row["response"], row.get("sample", sum(key[0] == name for key in found))
        if not isinstance(response, str | None) or not isinstance(sample, int) or sample < 0:
            raise UserError(f"{where}: response must be a text or null, sample a whole number from 0")
        if (name, sample) in found:
            raise UserError(f"{where}: sample: {sample}: problem {name!r} has it already")
        found[name, sample] = {"response": response, **{k: row.get(k) for k in ("tokens", "finish_reason", "order")}}
    return found


class Journal:
    """Rows {id, sample, ...} by their key; each is in the file before `append` returns (on disk too, if `durable`).

    A line that a kill cut off is dropped when the file is opened. With another `header` the file begins anew.
    """

    def __init__(self, path: Path, header: Any = None, durable: bool = True):
        self.path, self.durable, self.rows = path, durable, dict[Key, dict[str, Any]]()
        data = path.read_bytes() if path.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.split(b"\n")[:-1]
        if header is not None:
            fresh = not lines or json.loads(lines[0]) != header
            whole = json.dumps(header).encode() + b"\n" if fresh else whole
            lines = [] if fresh else lines[1:]
        for row in map(json.loads, lines):
            self.rows[row["id"], row["sample"]] = row
        if whole != data:
            with atomic_file(path) as f:
                f.write(whole)
        self._file = open(path, "ab")  # noqa: SIM115 - open as long as the journal

    def append(self, row: dict[str, Any]) -> None:
        text, halves = replace_surrogates(json.dumps(row, ensure_ascii=False))  # a server may send half a pair
        row = json.loads(text) if halves else row
        self._file.write(text.encode() + b"\n")
        self._file.flush()
        if self.durable:
            os.fsync(self._file.fileno())
        self.rows[row["id"], row["sample"]] = row


@contextlib.contextmanager
def evaluation_folder(output: str, what: Mapping[str, Any], problems: Sequence[Problem]) -> Iterator[Path]:
    """The folder, held by this process alone, of exactly this evaluation."""
    folder = Path(output)
    with FolderLock(folder):
        path = folder / "evaluation.json"
        what = json.loads(json.dumps(what))
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            if different := differing(there, what):
                name, old, new = different[0]
                raise UserError(f"--output: {output}: holds an evaluation with {name} {old!r:.80}, not {new!r:.80}")
            asked = {row["id"]: _digest(problem_from_json(row)) for row in _lines(folder / "problems.jsonl")}
            if asked != {p.id: _digest(p) for p in problems}:
                raise UserError(f"--output: {output}: holds an evaluation of other problems or prompts")
        elif any(f.name != ".lock" for f in folder.iterdir()):
            raise UserError(f"--output: {output}: exists and holds no evaluation; give another folder")
        else:
            with atomic_file(folder / "problems.jsonl") as f:
                for problem in problems:
                    f.write((json.dumps(problem.to_json(), ensure_ascii=False) + "\n").encode())
            write_json(path, what)
        yield folder


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as f:
        yield from map(json.loads, f)


def _digest(problem: Problem) -> tuple[Any, ...]:
    return problem.prompt_digest, problem.gold, problem.order, json.dumps(problem.tests, sort_keys=True)


def _generate(engine: Engine, asks: Sequence[Ask], decoding: Decoding, replies: Journal, total: int) -> None:
    if not asks:
        return
    with Bar("responses", total, start=total - len(asks)) as bar:

        def got(ask: Ask, reply: Reply) -> None:
            order = {"order": ask.problem.order} if ask.problem.order else {}
            replies.append({"id": ask.problem.id, "sample": ask.sample, **dataclasses.asdict(reply), **order})
            bar.at(len(replies.rows))

        engine.generate(asks, decoding, got)
    if left := sum((ask.problem.id, ask.sample) not in replies.rows for ask in asks):
        raise RunError(f"{left} responses are missing; run the same command for them")


def _count_tokens(rows: Mapping[Key, dict[str, Any]], folder: str) -> None:
    missing = [row for row in rows.values() if row["response"] is not None and row.get("tokens") is None]
    if folder and missing:
        from cogpo_jax.text import load_tokenizer

        ids = load_tokenizer(folder)([row["response"] for row in missing], add_special_tokens=False)["input_ids"]
        for row, tokens in zip(missing, ids, strict=True):
            row["tokens"] = len(tokens)


def finish(
    folder: Path, problems: Sequence[Problem], what: Mapping[str, Any], replies: Journal, allow_code: bool, workers: int
) -> dict[str, Any]:
    """Grades what has no verdict by today's rules yet; writes samples.jsonl, summary.json and report.html."""
    rules = {"grader": [grading.VERSION, grade.VERSION], "task": what["task"]["grader"]}
    verdicts = Journal(folder / "verdicts.jsonl", rules, durable=False)
    by_id = {problem.id: problem for problem in problems}
    todo = [row for key, row in replies.rows.items() if key not in verdicts.rows]
    asyncio.run(_grade(what["task"]["grader"], by_id, todo, verdicts, allow_code, workers))
    place = {problem.id: i for i, problem in enumerate(problems)}
    samples = []
    for key in sorted(replies.rows, key=lambda key: (place[key[0]], key[1])):
        row = replies.rows[key]
        fields = {name: row.get(name) for name in ("response", "tokens", "finish_reason")}
        identity = {"id": key[0], "sample": key[1], "prompt_digest": by_id[key[0]].prompt_digest}
        samples.append({**identity, **fields, **{k: v for k, v in verdicts.rows[key].items() if k not in identity}})
    with atomic_file(folder / "samples.jsonl") as f:
        for row in samples:
            f.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    summary = {
        "task": what["task"]["name"],
        "model": what["model"],
        "engine": what["engine"],
        "grader": rules["grader"],
        **summarise(samples, {problem.id: problem.group for problem in problems}),
    }
    write_json(folder / "summary.json", summary)
    from cogpo_jax.report.evaluations import write_page

    write_page(folder / "report.html", [folder])
    return summary


async def _grade(
    grader: str,
    problems: Mapping[str, Problem],
    rows: Sequence[Mapping[str, Any]],
    verdicts: Journal,
    allow_code: bool,
    workers: int,
) -> None:
    waiting, done = iter(rows), 0
    async with grading.Grader(workers, allow_code=allow_code) as grades:
        with Bar("verdicts", len(rows)) as bar:

            async def work() -> None:
                nonlocal done
                for row in waiting:
                    problem = _as_shown(problems[row["id"]], row)
                    verdict = await grades.grade(grader, problem, row["response"], row.get("finish_reason") or "")
                    verdicts.append({"id": row["id"], "sample": row["sample"], **dataclasses.asdict(verdict)})
                    done += 1
                    bar.at(done)

            await asyncio.gather(*(work() for _ in range(2 * workers)))


def _as_shown(problem: Problem, row: Mapping[str, Any]) -> Problem:
    """The problem with its options in the order in which this response saw them: the data's, where nothing is said."""
    if not problem.choices:
        return problem
    order = tuple(row.get("order") or range(len(problem.choices)))
    if sorted(order) != list(range(len(problem.choices))):
        raise UserError(f"order: {list(order)}: problem {problem.id!r} has {len(problem.choices)} options")
    original = dict(zip(problem.order, problem.choices, strict=True))
    return dataclasses.replace(problem, order=order, choices=tuple(original[i] for i in order))


def regrade(output: str, allow_code: bool = False, workers: int = 2) -> dict[str, Any]:
    """Grades the responses in a folder anew by today's rules; `changed` counts the verdicts that are others now."""
    folder = Path(output)
    if not (folder / "evaluation.json").is_file():
        raise UserError(f"--output: {output}: holds no evaluation")
    what = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    if what["task"]["grader"] == "code" and not allow_code:
        raise UserError("--allow_code: missing: grading this task runs programs that a model wrote")
    problems = [problem_from_json(row) for row in _lines(folder / "problems.jsonl")]
    with FolderLock(folder):
        path = folder / "samples.jsonl"
        before = {(row["id"], row["sample"]): row["verdict"] for row in _lines(path)} if path.is_file() else {}
        (folder / "verdicts.jsonl").unlink(missing_ok=True)
        summary = finish(folder, problems, what, Journal(folder / "generated.jsonl"), allow_code, workers)
        after = {(row["id"], row["sample"]): row["verdict"] for row in _lines(path)}
    return {**summary, "changed": sum(before.get(key) not in (None, verdict) for key, verdict in after.items())}


def _say_what_can_be_seen(problems: int, samples: int) -> None:
    seen = statistics.detectable(problems, samples)
    say(
        f"{problems} problems, {samples} sample{'s' if samples > 1 else ''} each: 95% interval of about "
        f"±{seen['interval']:.1f} points at an accuracy of one half; smallest difference seen with 80% power: "
        f"{seen['paired']:.1f} points to a run on the same problems (if {statistics.DISAGREEMENT:.0%} of single "
        f"verdicts differ), {seen['unpaired']:.1f} to one on others"
    )


@dataclasses.dataclass(frozen=True)
class DuringTraining:
    """Problems that a student in training answers now and then; made before the first step, by `during_training`."""

    task: Task
    problems: Sequence[Problem]
    seed: int

    def measure(self, engine: Engine) -> dict[str, Any]:
        """One reading: accuracy with its interval, shares and tokens; nothing is written."""
        replies: list[tuple[Ask, Reply]] = []
        task = self.task
        asks = [Ask(problem, sample) for problem in self.problems for sample in range(task.samples)]
        decoding = Decoding(task.temperature, task.top_p, task.max_new_tokens, self.seed)
        engine.generate(asks, decoding, lambda ask, reply: replies.append((ask, reply)))
        rows = asyncio.run(self._graded(replies))
        figures = summarise(rows, {problem.id: "" for problem in self.problems})
        accuracy, tokens = figures["accuracy"], figures["tokens"]["all"] or {}
        return {
            **{f"accuracy{end}": accuracy[name] for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))},
            **figures["shares"],
            **{f"tokens_{name}": tokens[name] for name in ("mean", "median", "p90") if tokens},
        }

    async def _graded(self, replies: Iterable[tuple[Ask, Reply]]) -> list[dict[str, Any]]:
        rows = []
        async with grading.Grader() as grades:
            for ask, reply in replies:
                verdict = await grades.grade(self.task.grader, ask.problem, reply.response)
                rows.append({"id": ask.problem.id, **dataclasses.asdict(reply), **dataclasses.asdict(verdict)})
        return rows


def during_training(
    task: str, data: str, problems: int, engine: Engine, seed: int = 0, max_new_tokens: int | None = None
) -> DuringTraining:
    """What the trainer's eval.generate asks: the first `problems` of a file, one sample each, all of it checked."""
    settings = load_task(task, samples=1, max_new_tokens=max_new_tokens, few_shot=0)
    if settings.grader == "code":
        raise UserError("eval.generate.task: code: programs are not run during training; give a task of another grader")
    request = Evaluation(settings, data, "", engine, limit=problems, seed=seed)
    loaded = DuringTraining(settings, load_problems(request), seed)
    engine.check(loaded.problems, Decoding(settings.temperature, settings.top_p, settings.max_new_tokens, seed))
    return loaded
