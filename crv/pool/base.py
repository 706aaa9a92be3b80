"""What an agent asks and what a pool answers; and the pool that replays recorded answers."""

import abc
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError
from crv.config import option


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled."""

    temperature: float = option(0.7, "0 = the likeliest token", low=0.0)
    top_p: float = option(0.95, "nucleus", low=0.0, high=1.0)
    max_tokens: int = option(4096, "most output tokens of a call", low=1)


@dataclass(frozen=True, slots=True)
class Request:
    """One call of one agent.

    `inputs` is what the agent was asked about (problem, cot, ...); `messages` is the same rendered by the prompt file
    whose digest is `template`. `attempt` tells repeated asks apart; `schema` (JSON) or `regex` constrain the output.
    """

    agent: str
    inputs: Mapping[str, str]
    attempt: int
    template: str
    messages: tuple[tuple[str, str], ...]
    model: str
    sampling: Sampling = Sampling(0.0, 1.0)
    schema: str = ""
    regex: str = ""
    seed: int = 0
    problem_id: str = field(default="", compare=False)

    def key(self) -> bytes:
        """The content address in the ledger: template, inputs, model, sampling, constraint, seed, attempt."""
        sampling = self.sampling
        return _digest(
            [
                self.agent,
                dict(self.inputs),
                self.attempt,
                self.template,
                self.model,
                sampling.temperature,
                sampling.top_p,
                sampling.max_tokens,
                self.schema,
                self.regex,
                self.seed,
            ]
        )

    def question(self) -> str:
        """The content address in a recording: agent, inputs and attempt, whatever the wording, model or sampling."""
        return _digest([self.agent, dict(self.inputs), self.attempt]).hex()


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished call; unknown token counts are 0.

    `finish_reason`: `stop`, `length`, or an outcome: `prompt_too_long`, `content_filter`, `refused` (`text` then holds
    the server's words), or the server's own name for it.
    """

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    model: str = ""
    origin: str = ""
    seconds: float = 0.0


class Pool(abc.ABC):
    """Answers requests; safe to call concurrently. One without servers overrides `generate` alone."""

    async def start(self) -> None:  # noqa: B027 - may be left as it is
        """Makes sure that the servers are what the config says; raises UserError or PoolError."""

    @abc.abstractmethod
    async def generate(self, request: Request) -> Answer:
        """Answers one request, or raises PoolError when it cannot (after its own retries)."""

    def stop(self) -> None:  # noqa: B027 - may be left as it is
        """Sends no further call; those that wait to be sent raise StoppedError, those in flight come back."""

    async def close(self) -> None:  # noqa: B027 - may be left as it is
        """Lets go of connections and processes."""

    def statistics(self) -> dict[str, Any]:
        """What a run's summary tells of each server: calls sent, sent again and why; {} where there are none."""
        return {}


PROMPT_TOO_LONG, CONTENT_FILTER, REFUSED = "prompt_too_long", "content_filter", "refused"
FOR_GOOD = (PROMPT_TOO_LONG, REFUSED)  # outcomes that another asking does not change


class StoppedError(Exception):
    """The run was asked to stop before this call was sent."""


class PoolError(RuntimeError):
    """The pool cannot answer: the run stops, the ledger keeps what is finished, and the same command goes on."""


def _digest(value: Any) -> bytes:
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    ).digest()


class RecordedPool(Pool):
    """Replays a recordings file, held in memory as it is meant for hundreds of problems."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"pool.recordings: {path}: no such file; give a JSONL file of recorded answers")
        self._answers: dict[str, Answer] = {}
        with self.path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                self._add(line, number)

    def _add(self, line: str, number: int) -> None:
        try:
            row = json.loads(line)
            answer = Answer(
                row["answer"],
                row.get("finish_reason", "stop"),
                model=row.get("model", ""),
                origin=row.get("origin", ""),
            )
            known = self._answers.setdefault(row["question"], answer)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"pool.recordings: {self.path}:{number}: not a recording; want question and answer"
            ) from error
        if known != answer:
            raise UserError(
                f"pool.recordings: {self.path}:{number}: {row['question'][:12]} has two different answers; keep one"
            )

    async def generate(self, request: Request) -> Answer:
        """The recorded answer; PoolError naming the request where there is none."""
        try:
            return self._answers[request.question()]
        except KeyError:
            problem = " ".join(request.inputs.get("problem", "").split())[:80]
            raise PoolError(
                f"{self.path}: no recording of {request.agent} for problem {request.problem_id}"
                f" (attempt {request.attempt}, {problem!r}...)"
            ) from None
