"""Synthetic problems, and answers that are a pure function of the question: CRV's own speed and steadiness, no model.

The answers cover every way of the loop: all three labels, wrong and talkative rewrites, corruptions that prove nothing,
and (where asked for) broken JSON, empty answers and answers cut off, each the same at every asking.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping

from crv.pool.base import Answer, Pool, Request

_NUMBERS = re.compile(r"What is (\d+) times (\d+)")


def problems(count: int, first: int = 0) -> Iterator[dict[str, str]]:
    """Rows {problem_id, problem, answer, cot}; one original in twelve is wrong."""
    for i in range(first, first + count):
        a, b = 12 + i % 911, 7 + i // 911
        said = a * b + (10 if i % 12 == 5 else 0)
        cot = f"Item {i}. We take {a} times {b} by parts, which makes {said} in the end.\nThe answer is {said}"
        yield {"problem_id": f"s-{i}", "problem": f"What is {a} times {b}, item {i}?", "answer": str(a * b), "cot": cot}


def speak(agent: str, inputs: Mapping[str, str], attempt: int, unusable: float = 0.0) -> tuple[str, str]:
    """(text, finish_reason) to a question; `unusable`: the share of answers that are broken, empty or cut off."""
    text = json.dumps([agent, dict(sorted(inputs.items())), attempt])
    dice = hashlib.sha256(text.encode()).digest()
    match = _NUMBERS.search(inputs["problem"])
    assert match is not None
    answer = int(match[1]) * int(match[2])
    if dice[0] < 256 * unusable:
        return [('{"label": "eas', "stop"), ("", "stop"), ("cut off in the midd", "length")][dice[1] % 3]
    if agent == "critic":
        return json.dumps({"reason": "by dice", "label": ("easy", "medium", "hard")[dice[2] % 3]}), "stop"
    if agent == "verifier":
        return f"The answer is \\boxed{{{answer if dice[2] > 8 else answer + 1}}}", "stop"
    if agent == "solver":
        return f"Directly, {match[1]} times {match[2]} makes {answer}.\nThe answer is {answer}", "stop"
    if agent == "corrupter":
        wrong = answer + 10 if dice[2] > 16 else f"{answer}y"
        return f"By parts one gets {wrong} at last, plainly.\nThe answer is {wrong}", "stop"
    if dice[2] < 32:
        return f"Slipping, one gets {answer + 2} at last.\nThe answer is {answer + 2}", "stop"
    if dice[2] < 40:
        return f"This matches the given answer {answer}.\nThe answer is {answer}", "stop"
    return (
        f"Step {dice[3]}: {match[1]} times {match[2]} is a sum of parts, and makes {answer}.\nThe answer is {answer}",
        "stop",
    )


class SyntheticPool(Pool):
    """Answers at once, in memory."""

    def __init__(self, unusable: float = 0.0):
        self.unusable = unusable
        self.sent = 0

    async def generate(self, request: Request) -> Answer:
        """The answer that the question fixes."""
        self.sent += 1
        text, reason = speak(request.agent, request.inputs, request.attempt, self.unusable)
        return Answer(text, reason, len(request.messages[-1][1]) // 4, len(text) // 4, model="synthetic")
