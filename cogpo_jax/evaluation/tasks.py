"""Tasks as data files (configs/tasks/*.toml), and the problems that a task makes of somebody's rows."""

import contextlib
import dataclasses
import hashlib
import json
import random
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogpo_jax.config_files import CONFIGS
from cogpo_jax.errors import UserError
from crv.verify import grade
from crv.verify.extract import final_spans

TASKS = CONFIGS / "tasks"
GRADERS = ("math", "choice", "text", "code")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OF_COLUMNS = ("id", "problem", "answer", "choices", "tests", "starter", "group")


@dataclasses.dataclass(frozen=True)
class Task:
    """One task. `columns`: for each of our names the columns that may hold it, the first one present counts.

    `prompt` and `system` hold {problem}, {options} and {starter}; `few_shot` worked examples are put before the
    problem as turns of their own (`example` is their answer, {answer} and {solution} in it).
    """

    name: str
    grader: str
    prompt: str
    columns: Mapping[str, Sequence[str]]
    system: str = ""
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 4096
    few_shot: int = 0
    example: str = "The answer is {answer}."
    shuffle: bool = False

    def __post_init__(self) -> None:
        where = f"task {self.name}"
        if self.grader not in GRADERS:
            raise UserError(f"{where}: grader: {self.grader!r}: must be one of {', '.join(GRADERS)}")
        if self.samples < 1 or self.max_new_tokens < 1 or self.few_shot < 0:
            raise UserError(f"{where}: samples and max_new_tokens must be at least 1, few_shot at least 0")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UserError(f"{where}: temperature must be at least 0, and top_p above 0 and at most 1")
        if unknown := set(self.columns) - set(_OF_COLUMNS):
            raise UserError(f"{where}: columns.{min(unknown)}: must be one of {', '.join(_OF_COLUMNS)}")


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is asked and what is right.

    `messages`: (role, text) turns before the response. `choices`: the options as shown; `order[i]` is the place in the
    data of the option shown at i. `gold`: the answer; of a choice the letter in the data's order. `tests`: of code.
    """

    id: str
    problem: str
    messages: tuple[tuple[str, str], ...]
    gold: str = ""
    choices: tuple[str, ...] = ()
    order: tuple[int, ...] = ()
    tests: tuple[Mapping[str, Any], ...] = ()
    group: str = ""

    @property
    def prompt_digest(self) -> str:
        """Of the turns as they are asked: two runs with the same one asked the same."""
        return _digest(self.messages)[:16]

    def to_json(self) -> dict[str, Any]:
        """The problem as a JSON object; `problem_from_json` is the way back."""
        return dataclasses.asdict(self)


def problem_from_json(row: Mapping[str, Any]) -> Problem:
    """See `Problem.to_json`."""
    lists = {name: tuple(row[name]) for name in ("choices", "order", "tests")}
    return Problem(**{**row, **lists, "messages": tuple((role, text) for role, text in row["messages"])})


def load_task(name: str, columns: Sequence[str] = (), **changes: Any) -> Task:
    """The shipped task `name`, or the one in the .toml file of that path.

    `columns`: "problem:COL" puts a column before the task's own; `changes` that are not None replace fields.
    """
    path = Path(name) if name.endswith(".toml") else TASKS / f"{name.lower()}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in TASKS.glob("*.toml")))
        raise UserError(f"--task: {name!r}: no such task; give one of {known}, or a .toml file")
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--task: {path}: not TOML: {error}") from None
    fields = {"name": path.stem, **fields, **{key: value for key, value in changes.items() if value is not None}}
    known_fields = {field.name: field for field in dataclasses.fields(Task)}
    if unknown := set(fields) - set(known_fields):
        raise UserError(f"task {path.stem}: {min(unknown)}: no such field; known: {', '.join(known_fields)}")
    missing = {"grader", "prompt", "columns"} - set(fields)
    if missing:
        raise UserError(f"task {path.stem}: {min(missing)}: missing")
    for pair in columns:
        ours, colon, theirs = pair.partition(":")
        if not colon or ours not in _OF_COLUMNS:
            raise UserError(f"--columns: {pair!r}: must be NAME:COLUMN, NAME one of {', '.join(_OF_COLUMNS)}")
        fields["columns"] = {**fields["columns"], ours: [theirs, *fields["columns"].get(ours, ())]}
    return Task(**fields)


def make_problems(
    task: Task,
    rows: Iterable[Mapping[str, Any]],
    where: str,
    seed: int,
    examples: Sequence[Mapping[str, Any]] | str = (),
) -> list[Problem]:
    """The problems of a file's rows, ids unique, answers checked; `examples`: rows of worked ones, or their text.

    Raises UserError naming the row and column.
    """
    problems: list[Problem] = []
    preface = examples if isinstance(examples, str) else ""
    rows_shown = () if isinstance(examples, str) else examples
    shown = [_fields(task, row, f"--few_shot: row {i + 1}") for i, row in enumerate(rows_shown)]
    for number, row in enumerate(rows):
        fields = _fields(task, row, f"{where}:{number + 1}")
        problems.append(_problem(task, {**fields, "preface": preface}, number, seed, shown))
    if not problems:
        raise UserError(f"--data: {where}: no rows; a task needs problems")
    ids: dict[str, int] = {}
    for i, problem in enumerate(problems):
        if ids.setdefault(problem.id, i) != i:
            raise UserError(f"{where}:{i + 1}: id: {problem.id!r}: also that of row {ids[problem.id] + 1}")
    return problems


def _fields(task: Task, row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The row under our names; `answer` checked by the grader's needs."""
    found: dict[str, Any] = {"where": where, "row": row}
    for name, columns in task.columns.items():
        column = next((c for c in columns if row.get(c) is not None), None)
        if name == "choices" and column is not None and isinstance(row[column], str | int | float):
            found[name] = [row[c] for c in columns if row.get(c) is not None]  # an option a column: A, B, C, D
        elif column is not None:
            found[name] = row[column]
    needed = ("problem", *(("tests",) if task.grader == "code" else ("answer",)))
    for name in (*needed, *(("choices",) if task.grader == "choice" else ())):
        if name not in found:
            have = ", ".join(sorted(map(str, row)))
            columns = " or ".join(task.columns.get(name, (name,)))
            raise UserError(f"{where}: {name}: no column {columns}; there is {have}; name it by --columns={name}:COL")
    if not isinstance(found["problem"], str) or not found["problem"].strip():
        raise UserError(f"{where}: problem: {found['problem']!r:.60}: must be a text")
    if task.grader == "choice":
        labels = found["choices"].get("label") if isinstance(found["choices"], Mapping) else None
        if isinstance(labels, list) and str(found["answer"]) in map(str, labels):  # ARC: options by label, "1" or "A"
            found["answer"] = list(map(str, labels)).index(str(found["answer"]))
        found["choices"] = _options(found["choices"], where)
        found["answer"] = _key(found["answer"], found["choices"], where)
    elif task.grader == "code":
        found["tests"] = read_tests(found["tests"], row, where)
    else:
        found["solution"] = str(found["answer"])
        found["answer"] = gold_answer(found["answer"], where)
    return found


def _problem(task: Task, fields: dict[str, Any], number: int, seed: int, shown: list[dict[str, Any]]) -> Problem:
    identity, group = str(fields.get("id", number)), str(fields.get("group", ""))
    options = fields.get("choices", [])
    order = list(range(len(options)))
    if task.shuffle:
        random.Random(f"{seed} {identity} {fields['problem']}").shuffle(order)
    examples = [e for e in shown if not group or str(e.get("group", "")) == group][: task.few_shot]
    if task.few_shot > len(examples) and shown:
        raise UserError(f"--few_shot: {len(examples)} examples for {group or 'the task'}: {task.few_shot} are needed")
    turns = [("system", task.system)] if task.system else []
    for example in examples:
        turns.append(("user", _render(task, example, range(len(example.get("choices", ()))))))
        answer = _fill(task.example, {name: str(example.get(name, "")) for name in ("answer", "solution")})
        turns.append(("assistant", answer))
    turns.append(("user", "\n\n".join(filter(None, [fields["preface"], _render(task, fields, order)]))))
    choices, tests = tuple(options[i] for i in order), tuple(fields.get("tests", ()))
    gold = fields.get("answer", "") if task.grader != "code" else ""
    return Problem(identity, fields["problem"], tuple(turns), gold, choices, tuple(order), tests, group)


def _render(task: Task, fields: Mapping[str, Any], order: Sequence[int]) -> str:
    options = "\n".join(f"({LETTERS[i]}) {fields['choices'][k]}" for i, k in enumerate(order))
    starter = fields.get("starter") or ""
    return _fill(task.prompt, {"problem": fields["problem"], "options": options, "starter": starter}).strip()


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Puts the values in, in one pass: a problem that holds "{options}" keeps it; other braces stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m.group(1), m.group(0)), template)


def gold_answer(value: Any, where: str = "answer") -> str:
    """The bare answer: of "... #### 18" what follows, of a solution with a box the last box, numbers as text."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]  # OlympiadBench's final_answer
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise UserError(f"{where}: answer: {value!r:.60}: must be a text or a number")
    text = str(value).strip()
    if "####" in text:
        return text.rsplit("####", 1)[1].strip()
    spans = final_spans(text) if "\\boxed" in text or "\\fbox" in text else []
    return spans[-1].text.strip() if spans else text


def unreadable(task: Task, problems: Sequence[Problem]) -> list[str]:
    """Ids of problems whose gold answer proves nothing: their responses can only be unknown, but for equal texts."""
    return [p.id for p in problems if task.grader == "math" and not grade.readable(p.gold)]


def _options(value: Any, where: str) -> list[str]:
    """The texts of the options: a list of texts or {label, text}, {letter: text}, {text: [...]}, or JSON of these.

    Their own labels ("A) ...") are taken off where all have one.
    """
    given = value
    if isinstance(value, list) and len(value) == 1 and str(value[0]).lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):
            value = json.loads(value[0])
    value = value.get("text", list(value.values())) if isinstance(value, Mapping) else value
    value = [o.get("text") if isinstance(o, Mapping) else o for o in value] if isinstance(value, list) else []
    options = [str(option).strip() for option in value if option is not None]
    if not 2 <= len(options) <= len(LETTERS) or len(options) < len(value) or "" in options:
        raise UserError(f"{where}: choices: {given!r:.60}: must be a list of 2 to {len(LETTERS)} options")
    labels = [re.match(rf"\(?{letter}[).:] *(?=\S)", o) for letter, o in zip(LETTERS, options, strict=False)]
    return [o[m.end() :] for o, m in zip(options, labels, strict=True) if m] if all(labels) else options


def _key(answer: Any, options: Sequence[str], where: str) -> str:
    """The letter, in the data's order, of an answer that is a letter, a place from 0, an option's text, or both."""
    answer = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
    answer = int(answer) if isinstance(answer, float) and answer.is_integer() else answer
    text = gold_answer(str(answer), where)
    same = [i for i, option in enumerate(options) if option.casefold() == text.casefold()]
    letter = re.fullmatch(r"(?:(?:option|choice|answer):? )?\(?([A-Z])(?:\)?[.:]?|[).:]+ +(.+))", text, re.I | re.S)
    place = LETTERS.index(letter.group(1).upper()) if letter else len(options)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return LETTERS[answer]
    if letter and place < len(options) and (not letter.group(2) or options[place] == letter.group(2).strip()):
        return LETTERS[place]
    if len(same) == 1:
        return LETTERS[same[0]]
    if text.isdecimal() and int(text) < len(options):
        return LETTERS[int(text)]
    raise UserError(f"{where}: answer: {answer!r:.60}: must be a letter, a place from 0, or the text of one option")


def read_tests(value: Any, row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Tests of code: [{input, output[, function]}] or [{code}].

    Read as LiveCodeBench, HumanEval and MBPP have them, and as APPS and TACO do: {inputs, outputs[, fn_name]}.
    """
    from cogpo_jax.evaluation.grading import packed_json

    tests: list[dict[str, Any]] = []
    entry = f"\ncheck({row['entry_point']})\n" if "entry_point" in row else ""
    metadata = row.get("metadata") or {}
    metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
    for part in (value, row.get("private_test_cases")):
        if isinstance(part, str) and part.strip():
            part = packed_json(part, where) if part is not value or part.lstrip()[:1] in "[{" else [part]
        if isinstance(part, Mapping) and {"inputs", "outputs"} <= set(part):
            name = part.get("fn_name")
            if len(part["inputs"]) != len(part["outputs"]):
                raise UserError(f"{where}: tests: {len(part['inputs'])} inputs and {len(part['outputs'])} outputs")
            texts = ["\n".join(map(json.dumps, given)) if name else given for given in part["inputs"]]
            pairs = zip(texts, part["outputs"], strict=True)
            part = [{"input": given, "output": wanted, "function": name} for given, wanted in pairs]
        for test in [part] if isinstance(part, Mapping) else part or []:
            if isinstance(test, str):
                tests.append({"code": test + entry})
            elif isinstance(test, Mapping) and {"input", "output"} <= set(test):
                name = test.get("function") or (
                    metadata.get("func_name", "") if test.get("testtype") == "functional" else ""
                )
                lines = {key: test[key] for key in ("input", "output")}
                if not name:  # a list holds lines
                    lines = {k: "\n".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in lines.items()}
                tests.append({**lines, "function": name})
            else:
                raise UserError(f"{where}: tests: {test!r:.60}: must be {{input, output}} or Python with asserts")
    if not tests:
        raise UserError(f"{where}: tests: none; code is graded by tests")
    return tests


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
