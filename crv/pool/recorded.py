"""Answers replayed from a file: the embedded pool of the quickstart and the tests.

A line is `{"question": sha256, "answer": text, ...}`; the question's digest covers agent, inputs and attempt (see
`Request.question`), so prompts may be reworded without new recordings, but a request that was never recorded is an
error that names it, not a guess.
"""

import json
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError
from crv.pool.base import Answer, PoolError, Request


class RecordedPool:
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

    async def start(self) -> None:
        """Nothing to make sure of."""

    async def close(self) -> None:
        """Nothing to let go of."""

    def statistics(self) -> dict[str, Any]:
        """Nothing was sent anywhere."""
        return {}
