"""A wrong chain of thought by rule: one step's result is changed, and the change is carried through to the end."""

import random
import re
from collections.abc import Iterator
from fractions import Fraction

from crv.verify.extract import final_spans

_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_NUMBERS = re.compile(rf"(?<![\w.,]){_NUMBER}(?![\w]|[.,]\d)")
_EQUATION = re.compile(
    rf"(?P<left>[(]*\$?{_NUMBER}[\d,.\s+\-*/×÷·()$]*?)(?P<equals>\s*=\s*\$?)(?P<right>{_NUMBER})(?![\w^/]|[.,]\d|\s*[+\-*/×÷·=])"
)
_TOKEN = re.compile(rf"{_NUMBER}|[-+*/()]")
_SMALLEST = 10  # smaller numbers stand for too many other things (step numbers, exponents) to be carried through


def corrupt_by_rule(text: str, rng: random.Random) -> str:
    """The text with one result changed and every later step recomputed; "" where that does not reach the final answer.

    Only steps of the form `arithmetic = number` that are right are changed. The result still has to be proved wrong.
    """
    spans = final_spans(text)
    if not spans:
        return ""
    steps = [m for m in _EQUATION.finditer(text, 0, spans[-1].start) if _value(m["left"]) == _plain(m["right"])]
    for step in steps:  # the earliest first: the longest way for the mistake to go
        old = _plain(step["right"])
        if old < _SMALLEST:
            continue
        for new in _slips(old, rng):
            wrong = _carry(text, step, old, new)
            if wrong and _NUMBERS.findall(wrong[final_spans(wrong)[-1].start :]) != _NUMBERS.findall(
                text[spans[-1].start :]
            ):
                return wrong
    return ""


def _slips(value: Fraction, rng: random.Random) -> Iterator[Fraction]:
    """Slips of a student: a carry, a unit, a factor."""
    slips = [value + 10, value - 10, value + 1, value - 1, value + 2, value - 2, value + 100, value - 100]
    rng.shuffle(slips)
    return (slip for slip in slips if slip > 0 and len(_written(slip, "")) == len(_written(value, "")))


def _carry(text: str, step: re.Match[str], old: Fraction, new: Fraction) -> str:
    """The text with the step's result replaced and what follows from it recomputed; "" on failure."""
    changed = {old: new}
    parts, position = [text[: step.start("right")], _written(new, step["right"])], step.end("right")
    for equation in _EQUATION.finditer(text, position):
        parts.append(_replace(text[position : equation.start()], changed))
        left, right = equation["left"], equation["right"]
        now, was = _replace(left, changed), _plain(right)
        position = equation.end()
        if now != left and _value(left) == was:
            result = _value(now)
            if result is None or result <= 0 or not _writable(result):
                return ""
            if result != was:
                changed[was] = result
            parts += [now, equation["equals"], _written(result, right)]
        else:
            parts.append(_replace(equation[0], changed))
    return "".join([*parts, _replace(text[position:], changed)])


def _replace(text: str, changed: dict[Fraction, Fraction]) -> str:
    def one(match: re.Match[str]) -> str:
        value = _plain(match[0])
        return _written(changed[value], match[0]) if value in changed else match[0]

    return _NUMBERS.sub(one, text)


def _plain(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


def _writable(value: Fraction) -> bool:
    return 10**4 % value.denominator == 0 and value < 10**12


def _written(value: Fraction, like: str) -> str:
    if value.denominator == 1:
        return f"{value.numerator:,}" if "," in like else str(value.numerator)
    return f"{float(value):.4f}".rstrip("0")


def _value(text: str) -> Fraction | None:
    """The value of a sum of products of numbers and brackets, or None where it is not one."""
    text = re.sub(r"[×·]", "*", text.replace("÷", "/")).replace("$", "")
    tokens = _TOKEN.findall(text)
    if not any(t in "+-*/" for t in tokens) or "".join(tokens) != re.sub(r"\s", "", text):
        return None
    try:
        value, rest = _sum(tokens)
    except (IndexError, ValueError, ZeroDivisionError, RecursionError):
        return None
    return value if not rest else None


def _sum(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, tokens = _product(tokens)
    while tokens and tokens[0] in "+-":
        sign, (term, rest) = tokens[0], _product(tokens[1:])
        value, tokens = (value + term if sign == "+" else value - term), rest
    return value, tokens


def _product(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, tokens = _atom(tokens)
    while tokens and tokens[0] in "*/":
        sign, (term, rest) = tokens[0], _atom(tokens[1:])
        value, tokens = (value * term if sign == "*" else value / term), rest
    return value, tokens


def _atom(tokens: list[str]) -> tuple[Fraction, list[str]]:
    if tokens[0] == "(":
        value, rest = _sum(tokens[1:])
        if rest[0] != ")":
            raise ValueError("unbalanced")
        return value, rest[1:]
    return _plain(tokens[0]), tokens[1:]
