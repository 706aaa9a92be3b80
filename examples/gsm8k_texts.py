"""Chains of thought for GSM8K problems by rule: the person's own solution, its bare calculations, and one with detours.

GSM8K writes a calculation as `48/2 = <<48/2=24>>24`: what stands in the brackets is all that a rule needs.
"""

import random
import re
from dataclasses import dataclass

_CALCULATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
_DOUBTS = (
    "Let me check this step.",
    "Is that right? Once more.",
    "To be sure, I do it again.",
    "Wait, I look at it again.",
)
_SURE = ("Yes, it is {value}.", "It stays {value}.", "So {value} it is.", "Good, {value} again.")


@dataclass(frozen=True)
class Texts:
    """A problem's three right chains of thought, each ending in `The answer is N`."""

    fitting: str
    terse: str
    convoluted: str


def texts_by_rule(question: str, annotated: str, rng: random.Random) -> Texts | None:
    """The three texts of a GSM8K row, or None where a rule cannot make them: fewer than two calculations, no answer."""
    body, mark, gold = annotated.rpartition("#### ")
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    found = [_CALCULATION.findall(line) for line in lines]
    steps = [step for line in found for step in line]
    if not mark or len(steps) < 2:
        return None
    end = f"The answer is {gold.strip()}"
    plain = [_CALCULATION.sub("", line) for line in lines]
    detours = [_again(question)]
    for line, calculations in zip(plain, found, strict=True):
        detours.append(line)
        detours += [_checked(left, value, rng) for left, value in calculations]
    terse = "; ".join(f"{left.strip()} = {_amount(value)}" for left, value in steps)
    return Texts("\n".join([*plain, end]), f"{terse}\n{end}", "\n".join([*detours, end]))


def _again(question: str) -> str:
    sentence = re.split(r"(?<=[.?!])\s", question.strip())[-1]
    return f"First I read the question again: {sentence} I go through what is given, one thing after the other."


def _checked(left: str, value: str, rng: random.Random) -> str:
    sure = rng.choice(_SURE).format(value=_amount(value))
    return f"{rng.choice(_DOUBTS)} {left.strip()} = {_amount(value)}. {sure}"


def _amount(value: str) -> str:
    return value.strip().rstrip(".")
