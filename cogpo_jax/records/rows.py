"""Flat preference rows: read from JSONL or `datasets`, and brought to one form whatever their columns look like.

Columns: `prompt`, `chosen`, `rejected`; optional `beta`, `gap`, `weight`, `system`. The first three are texts or lists
of chat messages (`{"role", "content"}`); `chosen` and `rejected` may repeat the prompt's messages, and `prompt` may
then be left out. The CogPO authors' released rows (`prompt, chosen, rejected, beta`) are of this form.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError
from cogpo_jax.records.schema import GAPS
from cogpo_jax.records.texts import repair_text

COLUMNS = ("prompt", "chosen", "rejected", "beta", "gap", "weight", "system")


class DropReason(StrEnum):
    """Why a well-formed row gives no pair."""

    EMPTY_PROMPT = "empty_prompt"
    EMPTY_CHOSEN = "empty_chosen"
    EMPTY_REJECTED = "empty_rejected"
    EQUAL_RESPONSES = "chosen_equals_rejected"
    NOT_ONE_REPLY = "response_is_not_one_assistant_message"
    NO_USER_TURN = "prompt_does_not_end_with_user_message"


@dataclass(frozen=True)
class FlatRow:
    """One preference: `prompt` is the last user message, `messages` the conversation (JSON) if it has more turns."""

    system: str
    prompt: str
    messages: str
    chosen: str
    rejected: str
    gap: str
    beta: float
    weight: float
    repaired: int


@dataclass(frozen=True)
class SourceRow:
    """A row as it was read: where it stands (file and line), its columns, and the share of the input read so far."""

    where: str
    columns: dict[str, Any]
    done: float


def read_rows(source: str, split: str, digest: Any) -> Iterator[SourceRow]:
    """Streams the rows of a JSONL file, of a folder written by `datasets.save_to_disk`, or of `hf:NAME`.

    `split` picks one of a data set's splits; `digest` (a hashlib object) is updated with what is read.
    Raises UserError for an input that is missing or empty, and naming file and line for a row that is no JSON object.
    """
    path = Path(source)
    if source.startswith("hf:") or path.is_dir():
        return _read_datasets(source, split, digest)
    if not path.is_file():
        raise UserError(f"--input: {source!r}: no such file or folder; give a JSONL file, a datasets folder or hf:NAME")
    if path.stat().st_size == 0:
        raise UserError(f"--input: {source}: empty; give rows of prompt, chosen, rejected")
    return _read_jsonl(path, digest)


def _read_jsonl(path: Path, digest: Any) -> Iterator[SourceRow]:
    size, done = path.stat().st_size, 0
    with open(path, "rb") as f:
        for number, line in enumerate(f, start=1):
            digest.update(line)
            done += len(line)
            if not line.strip():
                continue
            try:
                columns = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: not JSON ({error}): each line must be one JSON object") from error
            if not isinstance(columns, dict):
                raise UserError(f"{path}:{number}: {type(columns).__name__}: each line must be one JSON object")
            yield SourceRow(f"{path}:{number}", columns, done / size)


def _read_datasets(source: str, split: str, digest: Any) -> Iterator[SourceRow]:
    try:
        import datasets  # slow to import, and only for this kind of input
    except ImportError as error:
        raise UserError(f"--input: {source}: needs `pip install datasets`; or give a JSONL file") from error

    try:
        if source.startswith("hf:"):
            data = datasets.load_dataset(source.removeprefix("hf:"), split=split)
        else:
            data = datasets.load_from_disk(source)
    except (FileNotFoundError, ValueError, ConnectionError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"--input: {source}: datasets cannot read it ({' '.join(str(error).split())[:200]}); "
            "give a folder written by save_to_disk, or hf:NAME"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise UserError(f"--input_split: {split!r}: {source} has {', '.join(data)}")
        data = data[split]
    if not len(data):
        raise UserError(f"--input: {source}: empty; give rows of prompt, chosen, rejected")
    for i, columns in enumerate(data):
        digest.update(json.dumps(columns, sort_keys=True, default=str).encode())
        yield SourceRow(f"{source}: row {i}", columns, (i + 1) / len(data))


def ignored_columns(columns: dict[str, Any]) -> Iterator[str]:
    """The names of what `parse_row` does not look at: other columns, and other keys of messages."""
    yield from (name for name, value in columns.items() if name not in COLUMNS and value is not None)
    for name in ("prompt", "chosen", "rejected"):
        if isinstance(columns.get(name), list):
            messages = [m for m in columns[name] if isinstance(m, dict)]
            keys = {key for m in messages for key, value in m.items() if value is not None}
            yield from (f"{name}.{key}" for key in sorted(keys - {"role", "content"}))


def parse_row(row: SourceRow) -> FlatRow | DropReason:
    """The row in its one form, texts mended; or why it gives no pair.

    Raises UserError naming file, line and field for a missing column, a wrong type or a value that cannot be.
    """
    columns = row.columns
    given, chosen = _messages(row, "prompt"), _messages(row, "chosen")
    rejected = _messages(row, "rejected")
    if "prompt" not in columns and not (len(chosen) > 1 and len(rejected) > 1):
        raise UserError(f"{row.where}: prompt: missing: a row needs prompt, chosen, rejected")
    prompt = given or _shared_start(chosen, rejected)
    repaired = 0
    texts = {}
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        reply = messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages
        if [role for role, _ in reply] != ["assistant"]:
            return DropReason.NOT_ONE_REPLY
        texts[name], n = repair_text(reply[0][1])
        repaired += n
    system, n = repair_text(_system(row, prompt))
    repaired += n
    turns = []
    for role, text in prompt:
        if role != "system":
            text, n = repair_text(text)
            turns.append((role, text))
            repaired += n
    if reason := _drop_reason(turns, texts):
        return reason
    conversation = [{"role": role, "content": text} for role, text in turns]
    return FlatRow(
        system=system,
        prompt=turns[-1][1],
        messages=json.dumps(conversation, ensure_ascii=False) if len(turns) > 1 else "",
        **texts,
        gap=_gap(row),
        beta=_number(row, "beta", math.nan),
        weight=_number(row, "weight", 1.0),
        repaired=repaired,
    )


def _drop_reason(turns: list[tuple[str, str]], texts: dict[str, str]) -> DropReason | None:
    if not turns or turns[-1][0] != "user":
        return DropReason.NO_USER_TURN
    if not turns[-1][1].strip():
        return DropReason.EMPTY_PROMPT
    if not texts["chosen"].strip():
        return DropReason.EMPTY_CHOSEN
    if not texts["rejected"].strip():
        return DropReason.EMPTY_REJECTED
    return DropReason.EQUAL_RESPONSES if texts["chosen"] == texts["rejected"] else None


def _messages(row: SourceRow, name: str) -> list[tuple[str, str]]:
    """A column as (role, text) messages; a plain text is one message of its role."""
    value = row.columns.get(name)
    if value is None:
        if name == "prompt" and name not in row.columns:
            return []
        raise UserError(f"{row.where}: {name}: missing: a row needs prompt, chosen, rejected")
    if isinstance(value, str):
        return [("user" if name == "prompt" else "assistant", value)]
    if not isinstance(value, list):
        raise UserError(f"{row.where}: {name}: {type(value).__name__}: must be a text or a list of chat messages")
    for message in value:
        if not (isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))):
            raise UserError(f"{row.where}: {name}: {str(message)[:60]}: a message must have a text role and content")
    return [(message["role"], message["content"]) for message in value]


def _shared_start(chosen: list[tuple[str, str]], rejected: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The messages that both conversations begin with; the last of each is always a response."""
    n = 0
    while n < min(len(chosen), len(rejected)) - 1 and chosen[n] == rejected[n]:
        n += 1
    return chosen[:n]


def _system(row: SourceRow, prompt: list[tuple[str, str]]) -> str:
    given = row.columns.get("system") or ""
    if not isinstance(given, str):
        raise UserError(f"{row.where}: system: {type(given).__name__}: must be a text")
    found = [text for role, text in prompt if role == "system"]
    if len(found) > 1 or (found and prompt[0][0] != "system"):
        raise UserError(f"{row.where}: prompt: a system message may only stand first, and once")
    if found and given and found[0] != given:
        raise UserError(f"{row.where}: system: differs from the system message in prompt: give one of them")
    return given or (found[0] if found else "")


def _gap(row: SourceRow) -> str:
    gap = row.columns.get("gap")
    if gap is None:
        return "none"
    if gap not in GAPS:
        raise UserError(f"{row.where}: gap: {gap!r}: must be {', '.join(GAPS)}")
    return gap


def _number(row: SourceRow, name: str, default: float) -> float:
    value = row.columns.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{row.where}: {name}: {value!r}: must be a number above 0")
    if math.isnan(value) and name == "beta":
        return default
    if not 0 < value < math.inf:
        raise UserError(f"{row.where}: {name}: {value}: must be a number above 0")
    return float(value)
