"""Are two expressions the same? math-verify and sympy, for worker processes only: this can hang or eat memory.

Both sides have passed `grade.read`: only known commands, digits, operators and single-letter names are in them.
"""

import re
import warnings
from itertools import pairwise
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy
from math_verify import verify as math_verify
from sympy import Rational

from crv.verify.grade import DIFFERENT, SAME, UNKNOWN, read

warnings.filterwarnings("ignore")
_POINTS = tuple(Rational(p) for p in ("17/13", "-11/7", "5/3", "23/29"))


def compare(gold: str, answer: str) -> tuple[str, str]:
    """(same | different | unknown, rule). Raises nothing: what sympy cannot read or decide is unknown."""
    text = read(answer).text
    if "=" in text and "=" not in read(gold).text:
        text = _end_of_equation(text)
        if not text:
            return UNKNOWN, "a false equation"
    a, b = parse(read(gold).text), parse(text)
    if a is None or b is None:
        return UNKNOWN, "gold does not parse" if a is None else "answer does not parse"
    if _holds(lambda: math_verify(a, b, timeout_seconds=None)):
        return SAME, "math-verify"
    if _differs(a, b):
        return DIFFERENT, f"{_kind(a)}, both parsed whole"
    return UNKNOWN, "math-verify cannot decide"


def parse(text: str) -> Any | None:
    """The sympy object of the *whole* text, or None: names and numbers in the text must all come back in it."""
    try:
        parsed = latex2sympy(text, normalization_config=None)
    except Exception:  # the parser raises bare Exception for everything it cannot read
        return None
    letters = {c.lower() for c in re.sub(r"\\[A-Za-z]+|matrix", " ", text) if c.isalpha()}
    names = {str(symbol).lower() for symbol in getattr(parsed, "free_symbols", set())}
    return parsed if names == letters - {"i", "e"} or names == letters else None


def _end_of_equation(text: str) -> str:
    """The last side of `a = b = c`; "" where two sides that are numbers differ: then it states no answer at all."""
    sides = text.split("=")
    values = [parse(side) for side in sides if side.strip()]
    numbers = [value for value in values if value is not None and _kind(value) == "number"]
    unequal = any(_apart(x, y) for x, y in pairwise(numbers))
    return "" if unequal or len(values) != len(sides) or None in values else sides[-1]


def _kind(value: Any) -> str:
    if isinstance(value, sympy.MatrixBase):
        return "matrix"
    if isinstance(value, sympy.Set):
        return type(value).__name__
    if isinstance(value, sympy.Tuple):
        return "tuple"
    if isinstance(value, sympy.logic.boolalg.Boolean):
        return "relation"
    return "expression" if getattr(value, "free_symbols", None) else "number"


def _differs(a: Any, b: Any) -> bool:
    """A proof that `a != b`: one kind, and a number that is apart; never a failure to show that they are equal."""
    kind = _kind(a)
    if kind != _kind(b):
        return False
    if kind == "number":
        return _apart(a, b)
    if kind == "expression":
        if a.free_symbols != b.free_symbols:
            return False
        symbols = sorted(a.free_symbols, key=str)
        at = {s: _POINTS[i % len(_POINTS)] + i // len(_POINTS) for i, s in enumerate(symbols)}
        return _apart(a.subs(at), b.subs(at))
    if kind == "Interval":
        ends = [(a.start, b.start), (a.end, b.end)]
        return any(x != y and (x.is_infinite or y.is_infinite or _apart(x, y)) for x, y in ends)
    if kind == "FiniteSet" and len(a) == len(b):
        return any(all(_apart(x, y) for y in b) for x in a)
    if kind == "tuple" and len(a) == len(b):
        return any(_apart(x, y) for x, y in zip(a, b, strict=True))
    if kind == "matrix" and a.shape == b.shape:
        return any(_apart(x, y) for x, y in zip(a, b, strict=True))
    return False


def _apart(x: Any, y: Any) -> bool:
    """Whether two closed expressions are numbers at a distance (1% where a decimal is involved: it may be rounded)."""
    try:
        difference, size = abs(sympy.N(x - y, 30)), max(abs(sympy.N(x, 30)), abs(sympy.N(y, 30)), 1)
        rounded = bool((x - y).atoms(sympy.Float))
        return bool(difference.is_finite) and bool(
            difference > size * (Rational(1, 100) if rounded else Rational(1, 10**12))
        )
    except (TypeError, ValueError, AttributeError, ArithmeticError):
        return False


def _holds(test: Any) -> bool:
    try:
        return bool(test())
    except Exception:  # sympy raises anything on strange input; not shown equal is all that follows
        return False
