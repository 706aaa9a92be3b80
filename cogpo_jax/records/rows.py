"""Preference rows brought to one form, whatever their columns look like.

`prompt`, `chosen`, `rejected` are texts or conversations of any form (`texts.turns_of`); `chosen` and `rejected` may
repeat the prompt, and `prompt` may then be left out. Responses lose the tags of their thoughts: they are thought and
solution, as CRV's are.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

from cogpo_jax.errors import UserError
from cogpo_jax.records.general import named_one, text_and_score
from cogpo_jax.records.recognise import Recognised
from cogpo_jax.records.schema import GAPS
from cogpo_jax.records.texts import TURN_KEYS, Turn, find_path, json_of, repair_text, split_thought, turns_of


class DropReason(StrEnum):
    """Why a well-formed row gives no pair."""

    EMPTY_PROMPT = "empty_prompt"
    EMPTY_CHOSEN = "empty_chosen"
    EMPTY_REJECTED = "empty_rejected"
    EQUAL_RESPONSES = "chosen_equals_rejected"
    EQUAL_BUT_FOR_END = "responses_differ_by_end_marks_or_spaces_only"
    NOT_ONE_REPLY = "response_is_not_one_assistant_message"
    NO_USER_TURN = "prompt_does_not_end_with_user_message"
    NO_PREFERENCE = "no_preference"


@dataclass(frozen=True)
class FlatRow:
    """One preference: `prompt` is the last user message, `messages` the conversation (JSON) if it has more turns.

    A response is (thought, solution, text): the first two, or the text alone.
    """

    system: str
    prompt: str
    messages: str
    chosen: tuple[str, str, str]
    rejected: tuple[str, str, str]
    gap: str
    beta: float
    weight: float
    repaired: int


@dataclass(frozen=True)
class SourceRow:
    """A row as it was read: where it stands, and its columns."""

    where: str
    columns: dict[str, Any]


# What ends a turn in the common chat templates: no part of a response.
_END_MARKS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "</s>",
    "<eos>",
    "<end_of_turn>",
)


def ignored_columns(columns: dict[str, Any], meaning: Recognised) -> Iterator[str]:
    """The names of what `parse_row` does not look at: other columns, and other keys of messages."""
    yield from (name for name in meaning.unused if columns.get(name) is not None)
    for path in (meaning.columns.get(role, "") for role in ("prompt", "chosen", "rejected")):
        value = find_path(columns, path) if path else None
        turns = value if isinstance(value, list) else [value]
        keys = {key for turn in turns if isinstance(turn, dict) for key, held in turn.items() if held is not None}
        if path != "input.messages" or isinstance(value, list):
            extra = sorted(str(key).encode("utf-8", "replace").decode() for key in keys - TURN_KEYS - {"messages"})
            yield from (f"{path}.{key}" for key in extra)


def parse_row(row: SourceRow, meaning: Recognised) -> list[FlatRow] | DropReason:
    """The row's pairs in their one form, texts mended; or why it gives none.

    Raises UserError naming the place and field for a missing column, a wrong type or a value that cannot be.
    """
    if isinstance(found := _responses(row, meaning), DropReason):
        return found
    pairs: list[FlatRow] = []
    reason: DropReason | None = None
    for chosen, rejected in found:
        pair = _pair(row, meaning, chosen, rejected)
        if isinstance(pair, FlatRow):
            pairs.append(pair)
        else:
            reason = reason or pair
    return pairs or reason or DropReason.NO_PREFERENCE


def _pair(row: SourceRow, meaning: Recognised, chosen: list[Turn], rejected: list[Turn]) -> FlatRow | DropReason:
    prompt = _turns(row, meaning, "prompt")
    if not prompt and "prompt" not in meaning.columns and len(chosen) == len(rejected) == 1:
        prompt, chosen, rejected = _shared_text(chosen[0][1], rejected[0][1])
    prompt = _without_reply(prompt, chosen, rejected)
    if not prompt or (len(chosen) > 1 and len(rejected) > 1 and not _begins(chosen, prompt)):
        prompt = _shared_start(chosen, rejected) or prompt
    start = find_path(row.columns, meaning.columns["start"]) if "start" in meaning.columns else ""
    repaired = 0
    texts: dict[str, tuple[str, str, str]] = {}
    plain = {}
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        reply = turns[_begins(turns, prompt) :]
        if [role for role, _ in reply] != ["assistant"]:
            return DropReason.NOT_ONE_REPLY
        plain[name], n = repair_text(f"{start or ''}{reply[0][1]}")
        thought, solution = split_thought(_without_marks(plain[name]))
        texts[name] = (thought, solution, "") if thought else ("", "", plain[name])
        repaired += n
    system, n = repair_text(_system(row, meaning, prompt))
    repaired += n
    turns = []
    for role, text in prompt:
        if role != "system":
            text, n = repair_text(text)
            turns.append((role, text))
            repaired += n
    if reason := _drop_reason(turns, plain):
        return reason
    conversation = [{"role": role, "content": text} for role, text in turns]
    return FlatRow(
        system=system,
        prompt=turns[-1][1],
        messages=json.dumps(conversation, ensure_ascii=False) if len(turns) > 1 else "",
        **texts,
        gap=_gap(row, meaning),
        beta=_number(row, meaning, "beta", math.nan),
        weight=_number(row, meaning, "weight", 1.0),
        repaired=repaired,
    )


def _responses(row: SourceRow, meaning: Recognised) -> list[tuple[list[Turn], list[Turn]]] | DropReason:
    """(chosen, rejected) conversations of a row: its two columns, or the best of several against each other one."""
    named = {role: find_path(row.columns, path) for role, path in meaning.columns.items()}
    if "first" in named:
        if (best := _better(named, meaning)) is None:
            return DropReason.NO_PREFERENCE
        order = ("second", "first") if best else ("first", "second")
        return [(_turns(row, meaning, order[0]), _turns(row, meaning, order[1]))]
    if "ranked" in named or "ratings" in named:
        try:
            if "ranked" in named:
                scored = [text_and_score(one) or (str(one), math.nan) for one in named["ranked"]]
            else:
                scored = list(zip(map(str, named["responses"]), map(float, named["ratings"]), strict=True))
            if any(math.isnan(score) for _, score in scored):
                raise ValueError("a score is missing")
        except (TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{row.where}: responses: {error}: each needs a text and a number") from error
        scored.sort(key=lambda one: -one[1])
        best_text, most = scored[0] if scored else ("", 0.0)
        return [([("assistant", best_text)], [("assistant", text)]) for text, score in scored if score < most]
    if "chosen" not in named:  # ms-swift: the last turn of the conversation is the chosen one
        prompt = _turns(row, meaning, "prompt")
        return [(prompt, _turns(row, meaning, "rejected"))]
    several = {name: _alternatives(named[name]) for name in ("chosen", "rejected")}
    if several["chosen"] or several["rejected"]:
        chosen = several["chosen"][:1] or [_turns(row, meaning, "chosen")]
        return [(chosen[0], rejected) for rejected in several["rejected"] or [_turns(row, meaning, "rejected")]]
    return [(_turns(row, meaning, "chosen"), _turns(row, meaning, "rejected"))]


def _better(named: dict[str, Any], meaning: Recognised) -> int | None:
    """Which of two responses is preferred: 0, 1, or None where the row does not say."""
    if "winner" in named:
        return named_one(named["winner"], meaning.columns["first"], meaning.columns["second"])
    if "preference" in named:
        first, second = 0, named["preference"]
    else:
        first, second = named["first_score"], named["second_score"]
    for value in (first, second):
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            return None
    return None if first == second else int(second > first)


def _alternatives(value: Any) -> list[list[Turn]]:
    """Several responses given as a list of plain texts; none for any other value."""
    texts = value if isinstance(value, list) and value and all(isinstance(one, str) for one in value) else []
    return [[("assistant", text)] for text in texts]


def _without_reply(prompt: list[Turn], chosen: list[Turn], rejected: list[Turn]) -> list[Turn]:
    """The prompt without a last assistant turn that repeats one of the responses."""
    replies = [turns[-1][1].strip() for turns in (chosen, rejected) if turns]
    if len(prompt) > 1 and prompt[-1][0] == "assistant" and prompt[-1][1].strip() in replies:
        return prompt[:-1]
    return prompt


def _begins(turns: list[Turn], prompt: list[Turn]) -> int:
    """How many turns of a conversation repeat the prompt, spaces at the ends and its system message aside."""
    for skipped in (prompt, [turn for turn in prompt if turn[0] != "system"]):
        for given in (0, 1) if turns and turns[0][0] == "system" else (0,):
            told = [(role, text.strip()) for role, text in turns[given : given + len(skipped)]]
            if told and told == [(role, text.strip()) for role, text in skipped]:
                return given + len(skipped)
    last = [turn for turn in prompt if turn[0] == "user"][-1:]  # the prompt's last turn alone, or another rendering
    if len(turns) > 1 and turns[-1][0] == "assistant" and last and turns[-2][1].strip() == last[0][1].strip():
        return len(turns) - 1
    return 0


def _shared_start(chosen: list[Turn], rejected: list[Turn]) -> list[Turn]:
    """The messages that both conversations begin with; the last of each is always a response."""
    n = 0
    while n < min(len(chosen), len(rejected)) - 1 and (
        chosen[n][0] == rejected[n][0] and chosen[n][1].strip() == rejected[n][1].strip()
    ):
        n += 1
    return chosen[:n]


def _shared_text(chosen: str, rejected: str) -> tuple[list[Turn], list[Turn], list[Turn]]:
    """Two plain texts without a prompt: what they share, up to a word's end, is the prompt (TRL's implicit form)."""
    n = 0
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    while n > 0 and not chosen[n - 1].isspace():
        n -= 1
    n = len(chosen[:n].rstrip())
    return [("user", chosen[:n])], [("assistant", chosen[n:])], [("assistant", rejected[n:])]


def _without_marks(text: str) -> str:
    text = text.strip()
    while mark := next((mark for mark in _END_MARKS if text.endswith(mark)), ""):
        text = text.removesuffix(mark).strip()
    return text


def _drop_reason(turns: list[Turn], texts: dict[str, str]) -> DropReason | None:
    if not turns or turns[-1][0] != "user":
        return DropReason.NO_USER_TURN
    if not turns[-1][1].strip():
        return DropReason.EMPTY_PROMPT
    if not texts["chosen"].strip():
        return DropReason.EMPTY_CHOSEN
    if not texts["rejected"].strip():
        return DropReason.EMPTY_REJECTED
    if texts["chosen"] == texts["rejected"]:
        return DropReason.EQUAL_RESPONSES
    if _without_marks(texts["chosen"]) == _without_marks(texts["rejected"]):
        return DropReason.EQUAL_BUT_FOR_END
    return None


def _turns(row: SourceRow, meaning: Recognised, name: str) -> list[Turn]:
    """A column as (role, text) turns; a plain text is one turn of its role, parts (`a+b`) are joined."""
    path = meaning.columns.get(name, "")
    if not path:
        return []
    values = [find_path(row.columns, part) for part in path.split("+")]
    value = values[0] if len(values) == 1 else "\n\n".join(v for v in values if isinstance(v, str) and v.strip())
    if name in ("prompt", "first", "second") and _lists_of_turns(row, meaning):
        value = [{"role": "user" if name == "prompt" else "assistant", "content": text} for text in json_of(value)]
    if value is None or (value == [] and name != "prompt"):
        raise UserError(f"{row.where}: {name}: missing: a row needs prompt, chosen, rejected")
    try:
        turns = turns_of(value, "user" if name == "prompt" else "assistant")
        return turns[:-1] if name == "prompt" and turns[-1:] == [("assistant", "")] else turns  # the reply's place
    except ValueError as error:
        raise UserError(f"{row.where}: {name}: {error}") from error


def _lists_of_turns(row: SourceRow, meaning: Recognised) -> bool:
    """Whether prompt and both responses are JSON lists of one side's texts, as in LMSYS' arena-human-preference-55k."""
    values = [find_path(row.columns, meaning.columns.get(role, "")) for role in ("prompt", "first", "second")]
    lists = [json_of(value) if isinstance(value, str) and value.startswith("[") else None for value in values]
    return all(isinstance(one, list) and one and all(isinstance(text, str) for text in one) for one in lists)


def _system(row: SourceRow, meaning: Recognised, prompt: list[Turn]) -> str:
    given = find_path(row.columns, meaning.columns["system"]) if "system" in meaning.columns else ""
    given = given or ""
    if not isinstance(given, str):
        raise UserError(f"{row.where}: system: {type(given).__name__}: must be a text")
    found = [text for role, text in prompt if role == "system"]
    if len(found) > 1 or (found and prompt[0][0] != "system"):
        raise UserError(f"{row.where}: prompt: a system message may only stand first, and once")
    if found and given and found[0].strip() != given.strip():
        raise UserError(f"{row.where}: system: differs from the system message in prompt: give one of them")
    return given or (found[0] if found else "")


def _gap(row: SourceRow, meaning: Recognised) -> str:
    gap = find_path(row.columns, meaning.columns["gap"]) if "gap" in meaning.columns else None
    if gap is None:
        return "none"
    if gap not in GAPS:
        raise UserError(f"{row.where}: gap: {gap!r}: must be {', '.join(GAPS)}")
    return str(gap)


def _number(row: SourceRow, meaning: Recognised, name: str, default: float) -> float:
    value = find_path(row.columns, meaning.columns[name]) if name in meaning.columns else None
    if value is None:
        return default
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)  # a text in CSV
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{row.where}: {name}: {str(value)[:40]!r}: must be a number above 0") from error
    if math.isnan(number) and name == "beta":
        return default
    if not 0 < number < 3.4e38:  # betas and weights are stored as float32
        raise UserError(f"{row.where}: {name}: {str(value)[:40]}: must be a number above 0")
    return number
