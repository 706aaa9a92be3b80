"""The agents: what each is asked, and how its answer is read and checked. No agent sees more than its inputs.

Only short labels travel as JSON. Chains of thought and answers are plain text: in a JSON string a model's `\\frac`
is a form feed and `rac`, which is how published data sets lost their formulas.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

from crv.options import Options
from crv.pool.base import Answer, Request, Sampling
from crv.prompts import Prompt

LABELS = ("easy", "medium", "hard")
MIN_CHARACTERS = 20  # a shorter chain of thought is none
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class UnusableError(ValueError):
    """A finished answer that is not one: unparsable, empty, cut off. Its message is the outcome that is counted."""


@dataclass(frozen=True, slots=True)
class Ask(Generic[T_co]):
    """A request with the reading of its answer; `read` raises UnusableError."""

    request: Request
    read: Callable[[str], T_co]

    def again(self, ask: int, longer: bool) -> "Ask[T_co]":
        """The same question once more: another attempt number and seed, twice the budget if it was cut off."""
        sampling = self.request.sampling
        if longer:
            sampling = replace(sampling, max_tokens=2 * sampling.max_tokens)
        attempt = self.request.attempt + ask * RE_ASK
        seed = (self.request.seed + ask) % 2**31
        return replace(self, request=replace(self.request, attempt=attempt, sampling=sampling, seed=seed))


RE_ASK = 1000  # attempt = the agent's own attempt + RE_ASK * how often an unusable answer was asked again


@dataclass(frozen=True, slots=True)
class Critique:
    """What the critic said: `label` in LABELS, `reason` in its own words."""

    label: str
    reason: str


def read_answer(ask: Ask[T], answer: Answer) -> T:
    """The agent's reading of a finished call; UnusableError where the call was cut off, empty or does not parse."""
    if answer.finish_reason != "stop":
        raise UnusableError(answer.finish_reason)
    if not _spoken(answer.text):
        raise UnusableError("empty")
    return ask.read(answer.text)


@dataclass(frozen=True)
class Agents:
    """Builds the agents' requests: prompts, and of the options models, sampling, seed and the student's words."""

    prompts: Mapping[str, Prompt]
    options: Options

    @cached_property
    def _settings(self) -> dict[str, tuple[str, Sampling]]:
        """Model and sampling by agent."""
        return {name: (self.options.pool_of(name).model, self.options.sampling_of(name)) for name in self.prompts}

    def solve(self, problem: str, problem_id: str, attempt: int, agent: str = "solver") -> Ask[str]:
        """A chain of thought by the solver, or by the student itself, which is asked as in training."""
        return Ask(self._request(agent, {"problem": problem}, problem_id, attempt), _read_solution)

    def critique(self, problem: str, cot: str, problem_id: str) -> Ask[Critique]:
        """easy, medium or hard for the student."""
        inputs = {"problem": problem, "cot": cot, "student": self.options.student}
        return Ask(self._request("critic", inputs, problem_id, 0, _CRITIC_SCHEMA), _read_critique)

    def rethink(
        self, label: str, problem: str, answer: str, cot: str, reason: str, problem_id: str, attempt: int
    ) -> Ask[str]:
        """A rewrite of the original `cot`: expanded where easy, simplified where hard; `reason`: what failed before."""
        inputs = {
            "problem": problem,
            "answer": answer,
            "cot": cot,
            "student": self.options.student,
            "reason": reason and f"\n{reason}",
        }
        agent = {"easy": "rethinker_expand", "hard": "rethinker_simplify"}[label]
        return Ask(self._request(agent, inputs, problem_id, attempt), _read_cot)

    def resolve(self, problem: str, body: str, problem_id: str, attempt: int) -> Ask[str]:
        """The answer that a text without its final statement leads to, asked of a model that was not told it."""
        request = self._request("verifier", {"problem": problem, "cot": body}, problem_id, attempt)
        return Ask(replace(request, regex=_STATEMENT) if self.options.verifier.brief else request, _spoken)

    def corrupt(self, problem: str, answer: str, cot: str, problem_id: str, attempt: int) -> Ask[str]:
        """A plausible wrong version of `cot`."""
        inputs = {"problem": problem, "answer": answer, "cot": cot}
        return Ask(self._request("corrupter", inputs, problem_id, attempt), _read_cot)

    def judge(self, problem: str, answer: str, other: str, problem_id: str) -> Ask[str]:
        """Whether two final answers that no rule could compare say the same: same, different or unsure."""
        inputs = {"problem": problem, "answer": answer, "other": other}
        return Ask(self._request("judge", inputs, problem_id, 0, _JUDGE_SCHEMA), _read_verdict)

    def _request(
        self, agent: str, inputs: Mapping[str, str], problem_id: str, attempt: int, schema: str = ""
    ) -> Request:
        prompt = self.prompts[agent]
        # By content, so that equal questions have one seed; attempts differ by their number.
        content = f"{self.options.seed}\0{agent}\0{attempt}\0{inputs['problem']}".encode()
        seed = int.from_bytes(hashlib.sha256(content).digest()[:4], "big") >> 1
        return Request(
            agent,
            inputs,
            attempt,
            prompt.digest,
            prompt.render(inputs),
            *self._settings[agent],
            schema,
            seed=seed,
            problem_id=problem_id,
        )


def _schema(**properties: Any) -> str:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return json.dumps(schema, separators=(",", ":"))


_STATEMENT = r"The answer is \\boxed\{[^\n]{1,200}\}"
_CRITIC_SCHEMA = _schema(reason={"type": "string", "maxLength": 400}, label={"enum": list(LABELS)})
_VERDICTS = ("same", "different", "unsure")
_JUDGE_SCHEMA = _schema(verdict={"enum": list(_VERDICTS)})


def _spoken(text: str) -> str:
    """What a reasoning model says after its thought; the whole text of one that does not think aloud."""
    return text.rpartition("</think>")[2].strip()


def _read_cot(text: str) -> str:
    return _long_enough(_spoken(text))


def _read_solution(text: str) -> str:
    return _long_enough(text.strip())  # the thought is the solution: kept


def _long_enough(text: str) -> str:
    if len(text) < MIN_CHARACTERS:
        raise UnusableError("too short")
    return text


def _read_critique(text: str) -> Critique:
    return Critique(*_said(text, "label", LABELS))


def _read_verdict(text: str) -> str:
    return _said(text, "verdict", _VERDICTS)[0]


_DECODER = json.JSONDecoder(strict=False)  # constrained decoding lets raw control characters into strings
_LONE_BACKSLASH = re.compile(r'\\(?!["\\/bfnrt]|u[0-9a-fA-F]{4})')


def _said(text: str, name: str, words: Sequence[str]) -> tuple[str, str]:
    """(the one of `words` that an answer gives as `name`, the `reason` beside it), whatever stands around them.

    Looked for are JSON objects with that field (in any case, however deep), then `name: word`, then the bare word. Two
    that say different things are none.
    """
    body, rows = _spoken(text), list[dict[str, Any]]()
    for source in (body, _LONE_BACKSLASH.sub(r"\\\\", body)):  # a model's `\\(x\\)` in a string is no JSON escape
        rows = rows or [row for row in _objects(source) if name in row]
    said = [_word(row[name]) for row in rows]
    if not rows and body.count("{") <= body.count("}"):  # else it was cut off
        choice = "|".join(words)
        pattern = rf"\b{name}[^\w\n]{{0,5}}([:=>]|\bis\b)\W{{0,9}}(?P<word>{choice})\b(?!\W+(or\W+)?({choice})\b)"
        said = [found["word"].casefold() for found in re.finditer(pattern, body, re.IGNORECASE)] or [_word(body)]
    if len(set(said)) > 1:
        raise UnusableError(f"more than one {name}")
    if not said or said[0] not in words:
        raise UnusableError(f"no {name}" if any(True for _ in _objects(body)) else "not JSON")
    return said[0], str(rows[-1].get("reason") or "") if rows else body


def _word(value: Any) -> str:
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return re.sub(r"^[\W_]+|[\W_]+$", "", value).casefold() if isinstance(value, str) else ""


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, and those within them, their names case-folded."""
    place = text.find("{")
    while place >= 0:
        try:
            value, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            place = text.find("{", place + 1)
            continue
        yield from _within(value)
        place = text.find("{", end)


def _within(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield {name.strip().casefold(): item for name, item in value.items()}
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _within(item)
