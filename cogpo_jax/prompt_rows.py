"""JSONL rows with a prompt (and perhaps a response), checked as a whole before any work (no jax)."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cogpo_jax.errors import UserError

Item = TypeVar("Item")
_TEXTS = ("prompt", "response", "system")


def check_rows(path: str | Path, required: Sequence[str]) -> int:
    """The number of rows in a JSONL file. Raises UserError naming file and line for the first one that is wrong."""
    count = sum(1 for _ in read_rows(path, required))
    if not count:
        raise UserError(f"{path}: empty; give rows with {', '.join(required)}")
    return count


def read_rows(path: str | Path, required: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Streams a file's rows; blank lines are skipped. Raises UserError as `check_rows` does."""
    if not Path(path).is_file():  # nor a pipe: it is read twice
        what = "no regular file" if Path(path).exists() else "no such file"
        raise UserError(f"{path}: {what}; give a JSONL file with {', '.join(required)}")
    with open(path, "rb") as f:
        for number, line in enumerate(f, start=1):
            if line.strip():
                yield _row(line, f"{path}:{number}", required)


def _row(line: bytes, where: str, required: Sequence[str]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be a JSON object")
    for field in required:
        if field not in row:
            raise UserError(f"{where}: {field}: missing; a row needs {', '.join(required)}")
    for field in _TEXTS:
        if field in row and not isinstance(row[field], str):
            raise UserError(f"{where}: {field}: {type(row[field]).__name__}: must be a string")
        if field in row and (at := half_pair(row[field])) is not None:
            raise UserError(f"{where}: {field}: half a surrogate pair at character {at}: no text, so it has no tokens")
    if not row["prompt"]:
        raise UserError(f"{where}: prompt: empty; a response needs something to answer")
    return row


def half_pair(text: str) -> int | None:
    """Where a string holds half a surrogate pair, as JSON's escapes can spell it: such a string is no Unicode text."""
    return next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)


def to_line(row: dict[str, Any]) -> bytes:
    """A row as a line of JSON; with escapes only where a field we carry through is not Unicode text."""
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")
    except UnicodeEncodeError:
        return (json.dumps(row) + "\n").encode("utf-8")


def windows(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of up to `size` items, in order."""
    items = iter(items)
    while window := list(itertools.islice(items, size)):
        yield window
