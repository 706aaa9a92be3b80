"""What a record holds: SftExample and Group (with its Responses and Pairs), their feature tables and their rules.

Texts are str; `messages`, `verifier` and `certificate` hold JSON ("" = none). `messages` is the whole conversation
before the response as `[{"role", "content"}, ...]`, the system message apart (it is `system`), for prompts of more than
one turn; `prompt` then is its last user message. `loss_spans` are `(start, end)` character offsets into the rendered
response, the only characters that count in the loss (none = all of them).
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from cogpo_jax.errors import UserError
from cogpo_jax.records import example
from cogpo_jax.records.example import Feature, FeatureTable

SCHEMA_VERSION = 1

KINDS = ("suitable", "easy", "hard", "incorrect", "unknown")
ORIGINS = ("teacher", "rewrite", "rule", "imported", "solver", "student")
UNSUITABLE = ("easy", "hard")
# gap -> the kinds of the chosen and of the rejected response; gap "none" is free.
MINI_TASKS = {
    "small": (("suitable",), UNSUITABLE),
    "medium": (UNSUITABLE, ("incorrect",)),
    "large": (("suitable",), ("incorrect",)),
}
GAPS = (*MINI_TASKS, "none")

Span = tuple[int, int]


@dataclass(frozen=True)
class SftExample:
    """One response to learn from: a problem, and a chain of thought that suits the student."""

    problem_id: str
    system: str
    prompt: str
    thought: str
    solution: str
    text: str
    answer: str
    difficulty: str
    source: str
    task: str = "math"
    messages: str = ""
    verifier: str = ""
    id: str = ""
    parent: str = ""
    origin: str = ""
    model: str = ""
    loss_spans: tuple[Span, ...] = ()
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Response:
    """One response of a group: `thought` + `solution`, or the verbatim `text` where `thought` is empty.

    `kind` is suitable, easy, hard, incorrect or unknown; `origin` is teacher, rewrite, rule, imported, solver or
    student;
    `parent` is the id of the response it was made from; `certificate` says how `kind` was established (JSON).
    """

    id: str
    parent: str
    origin: str
    model: str
    thought: str
    solution: str
    text: str
    kind: str
    certificate: str
    loss_spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Pair:
    """`chosen` is preferred to `rejected` (indices into the group's responses); beta NaN = from the config by gap."""

    chosen: int
    rejected: int
    gap: str
    beta: float = math.nan
    weight: float = 1.0


@dataclass(frozen=True)
class Group:
    """One problem with its unique responses and the preference pairs between them: the unit of CogPO training."""

    problem_id: str
    system: str
    prompt: str
    answer: str
    responses: tuple[Response, ...]
    pairs: tuple[Pair, ...]
    task: str = "math"
    messages: str = ""
    verifier: str = ""
    source: str = ""
    schema_version: int = SCHEMA_VERSION


_TEXT, _INT = Feature("bytes"), Feature("int64")
_TEXTS, _INTS, _FLOATS = Feature("bytes", 1), Feature("int64", 1), Feature("float", 1)

SFT_FEATURES: FeatureTable = {field.name: _TEXT for field in fields(SftExample)} | {
    "loss_spans": Feature("int64", 1, width=2),
    "schema_version": _INT,
}

_RESPONSE_FEATURES = {field.name: _TEXTS for field in fields(Response)} | {"loss_spans": Feature("int64", 2, width=2)}
_PAIR_FEATURES = {"chosen": _INTS, "rejected": _INTS, "gap": _TEXTS, "beta": _FLOATS, "weight": _FLOATS}
_PROBLEM_FEATURES = {field.name: _TEXT for field in fields(Group) if field.name not in ("responses", "pairs")} | {
    "schema_version": _INT
}
GROUP_FEATURES: FeatureTable = _PROBLEM_FEATURES | _RESPONSE_FEATURES | _PAIR_FEATURES


def encode_sft(sft: SftExample) -> bytes:
    """The serialised tf.train.Example of an SFT example."""
    return example.encode(asdict(sft), SFT_FEATURES)


def decode_sft(data: bytes) -> SftExample:
    """The SFT example of a serialised tf.train.Example; raises UserError where it is none."""
    return SftExample(**example.decode(data, SFT_FEATURES))


def encode_group(group: Group) -> bytes:
    """The serialised tf.train.Example of a group: responses and pairs as parallel lists."""
    values = {name: getattr(group, name) for name in _PROBLEM_FEATURES}
    for table, items in ((_RESPONSE_FEATURES, group.responses), (_PAIR_FEATURES, group.pairs)):
        values |= {name: [getattr(item, name) for item in items] for name in table}
    return example.encode(values, GROUP_FEATURES)


def decode_group(data: bytes) -> Group:
    """The group of a serialised tf.train.Example; raises UserError where it is none or its lists differ in length."""
    values = example.decode(data, GROUP_FEATURES)
    for name in ("beta", "weight"):
        values[name] = tuple(map(_widen, values[name]))
    responses = _zip_lists(values, _RESPONSE_FEATURES, Response)
    pairs = _zip_lists(values, _PAIR_FEATURES, Pair)
    return Group(**{name: values[name] for name in _PROBLEM_FEATURES}, responses=responses, pairs=pairs)


def _zip_lists(values: dict[str, Any], table: FeatureTable, make: Callable[..., Any]) -> tuple[Any, ...]:
    lengths = {name: len(values[name]) for name in table}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{make.__name__.lower()} lists: {lengths}: must have one length")
    return tuple(make(**dict(zip(table, row, strict=True))) for row in zip(*(values[n] for n in table), strict=True))


def _widen(value: float) -> float:
    """A stored float32 as the shortest decimal that denotes it: 0.1 comes back as 0.1, not as 0.10000000149."""
    # The module's one NaN, not a new one: tuples and dataclasses with it then compare equal.
    return math.nan if math.isnan(value) else float(str(np.float32(value)))


def validate_sft(sft: SftExample) -> None:
    """Raises UserError (field, value, what would be right) where an SFT example cannot be trained on."""
    _check_problem(sft)
    _check_texts(sft, "")
    if sft.origin:
        _check_choice("origin", sft.origin, ORIGINS)


def validate_group(group: Group) -> None:
    """Raises UserError (field, value, what would be right) where a group cannot be trained on.

    Refused: empty texts, unknown kinds, origins and gaps, equal responses or ids, no pairs, indices out of range, a
    response against itself, a pair given twice, beta or weight not above 0, a gap that contradicts the kinds
    (MINI_TASKS; a response of unknown kind has a gap only where its author's labels were imported).
    """
    _check_problem(group)
    seen: dict[Any, int] = {}
    for i, response in enumerate(group.responses):
        where = f"responses[{i}]."
        _check_choice(f"{where}kind", response.kind, KINDS)
        _check_choice(f"{where}origin", response.origin, ORIGINS)
        _check_json(f"{where}certificate", response.certificate)
        _check_texts(response, where)
        content = (response.thought, response.solution, response.text)
        if (other := seen.setdefault(content, i)) != i:
            raise UserError(f"{where}text: equal to responses[{other}]: a response is stored once and shared by pairs")
        if response.id and (other := seen.setdefault(response.id, i)) != i:
            raise UserError(f"{where}id: {response.id!r}: already the id of responses[{other}]")
    if not group.pairs:
        raise UserError("pairs: none: a group needs at least one pair")
    first: dict[tuple[int, int], int] = {}
    for i, pair in enumerate(group.pairs):
        _check_pair(pair, group.responses, f"pairs[{i}]")
        if (other := first.setdefault((pair.chosen, pair.rejected), i)) != i:
            raise UserError(f"pairs[{i}]: same chosen and rejected as pairs[{other}]: join them")


def _check_problem(record: SftExample | Group) -> None:
    if record.schema_version != SCHEMA_VERSION:
        raise UserError(f"schema_version: {record.schema_version}: this version reads {SCHEMA_VERSION}")
    if not record.problem_id:
        raise UserError("problem_id: empty: every record names its problem")
    if not record.prompt.strip():
        raise UserError("prompt: empty: every record needs a prompt")
    _check_messages(record.messages)
    _check_json("verifier", record.verifier)


def _check_pair(pair: Pair, responses: tuple[Response, ...], where: str) -> None:
    for side, index in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not 0 <= index < len(responses):
            raise UserError(f"{where}.{side}: {index}: must be an index into the {len(responses)} responses")
    if pair.chosen == pair.rejected:
        raise UserError(f"{where}: {pair.chosen}: a response cannot be preferred to itself")
    if not (math.isnan(pair.beta) or _positive(pair.beta)):
        raise UserError(f"{where}.beta: {pair.beta}: must be above 0, or NaN for the config's beta of the gap")
    if not _positive(pair.weight):
        raise UserError(f"{where}.weight: {pair.weight}: must be above 0")
    _check_choice(f"{where}.gap", pair.gap, GAPS)
    if pair.gap == "none":
        return
    sides = (("chosen", responses[pair.chosen]), ("rejected", responses[pair.rejected]))
    for (side, response), kinds in zip(sides, MINI_TASKS[pair.gap], strict=True):
        imported = response.kind == "unknown" and response.origin == "imported"
        if response.kind not in kinds and not imported:
            raise UserError(f"{where}.gap: {pair.gap}: its {side} response is {response.kind}, must be {_or(kinds)}")


def _positive(value: float) -> bool:
    return bool(0 < np.float32(value) < math.inf)  # as it is stored: 1e-50 would be 0


def _check_texts(record: SftExample | Response, where: str) -> None:
    if record.thought.strip():
        if not record.solution.strip():
            raise UserError(f"{where}solution: empty: a response with a thought needs a solution (or give it as text)")
    elif not record.text.strip():
        raise UserError(f"{where}text: empty: a response needs a thought with its solution, or a text")
    end = 0
    for span in record.loss_spans:
        if len(span) != 2 or not end <= span[0] < span[1]:
            raise UserError(f"{where}loss_spans: {span}: must be (start, end), ascending, not overlapping, not empty")
        end = span[1]
    # With a thought the rendered length depends on the response format: only text.py can check the end.
    if not record.thought.strip() and end > len(record.text):
        raise UserError(f"{where}loss_spans: {end}: beyond the text's {len(record.text)} characters")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}: {value!r}: must be {_or(choices)}")


def _check_json(name: str, value: str) -> None:
    if value:
        try:
            json.loads(value)
        except ValueError as error:
            raise UserError(f"{name}: {value[:40]!r}: must be empty or JSON ({error})") from error


def _check_messages(value: str) -> None:
    _check_json("messages", value)
    turns = json.loads(value) if value else [{"role": "user", "content": ""}]
    if not isinstance(turns, list) or not turns or not all(_is_turn(turn) for turn in turns):
        raise UserError(f"messages: {value[:40]!r}: must be a JSON list of {{role, content}} objects with texts")


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))


def _or(choices: tuple[str, ...]) -> str:
    return " or ".join(choices)
