"""Problems in: a JSONL file or a Hugging Face dataset, one row at a time, bad rows named by file and line."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError
from cogpo_jax.records.texts import repair_text, replace_surrogates


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem; `cot` is the original chain of thought (empty: the solver writes one), `model` who wrote it."""

    problem_id: str
    problem: str
    answer: str
    cot: str = ""
    model: str = ""
    source: str = ""
    difficulty: str = ""


def read_problems(source: str, repair: bool = False, repaired: Counter[str] | None = None) -> Iterator[Problem]:
    """Streams the problems of a JSONL file, or of `hf:NAME[:SPLIT]`; raises UserError naming the first bad row.

    A row needs `problem` and `answer`; `problem_id` (or `id`), `cot`, `model`, `source`, `difficulty` are optional. A
    row without an id is known by its place. `repair` mends text that lost its backslashes (`repair_text`); half
    surrogate pairs are replaced always. `repaired` counts the places by field.
    """
    repaired = Counter() if repaired is None else repaired
    rows = _hf_rows(source[3:]) if source.startswith("hf:") else _jsonl_rows(source)
    count = 0
    for count, (where, row) in enumerate(rows, 1):
        yield _problem(row, where, count, repair, repaired)
    if not count:
        raise UserError(f"input: {source}: no problems in it; give one JSON object a line with problem and answer")


def read_questions(source: str) -> Iterator[str]:
    """Streams the problem texts of an evaluation set (`problem`, `question` or `prompt`); answers are not needed."""
    rows = _hf_rows(source[3:]) if source.startswith("hf:") else _jsonl_rows(source)
    where = ""
    for where, row in rows:
        text = next(
            (row[name] for name in ("problem", "question", "prompt") if isinstance(row, dict) and row.get(name)), None
        )
        if not isinstance(text, str):
            raise UserError(f"hygiene.against: {where}: no problem, question or prompt in it")
        yield text
    if not where:
        raise UserError(f"hygiene.against: {source}: no problems in it")


def check_input(source: str) -> None:
    """Refuses a missing or empty input, or one whose first row is bad, before any work."""
    next(read_problems(source))


def _jsonl_rows(source: str) -> Iterator[tuple[str, Any]]:
    path = Path(source)
    if not source or not path.is_file():
        raise UserError(f"input: {source or '(empty)'}: no such file; give a JSONL file of problems, or hf:NAME")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield f"{path}:{number}", json.loads(line)
            except ValueError as error:
                raise UserError(f"input: {path}:{number}: not JSON ({error}); want one JSON object a line") from error


def _hf_rows(name: str) -> Iterator[tuple[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"input: hf:{name}: needs the package datasets (pip install cogpo-jax[crv])") from error
    name, _, split = name.partition(":")
    try:
        if Path(name).is_dir():
            rows = datasets.load_from_disk(name)
            rows = rows[split or "train"] if isinstance(rows, datasets.DatasetDict) else rows
        else:
            rows = datasets.load_dataset(name, split=split or "train", streaming=True)
    except Exception as error:  # datasets raises whatever its back ends raise
        raise UserError(f"input: hf:{name}: {' '.join(str(error).split())[:200]}") from error
    for number, row in enumerate(rows):
        yield f"hf:{name}[{number}]", row


def _problem(row: Any, where: str, number: int, repair: bool, repaired: Counter[str]) -> Problem:
    if not isinstance(row, dict):
        raise UserError(f"input: {where}: a JSON {type(row).__name__}; want an object with problem and answer")
    for name in ("problem", "answer"):
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            raise UserError(f"input: {where}: {name}: {'missing' if name not in row else repr(value)}; want a text")
    identity = row.get("problem_id", row.get("id"))
    texts = {"problem_id": f"row-{number:09d}" if identity is None else str(identity)}
    for name in ("problem", "answer", "cot", "model", "source", "difficulty"):
        value = row.get(name)
        if value is not None and not isinstance(value, str | int | float):
            raise UserError(f"input: {where}: {name}: {type(value).__name__}; want a text")
        texts[name] = "" if value is None else str(value)
    for name, text in texts.items():
        texts[name], places = repair_text(text) if repair else replace_surrogates(text)
        if places:
            repaired[name] += places
    return Problem(**texts)
