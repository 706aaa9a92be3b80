"""Expressions compared as numbers, at many points, with mpmath; for worker processes only: this can hang or eat memory.

Equal means: no difference at 90 digits, relative to the size of the numbers, wherever one side is real: at positive,
negative, small, large and whole points. Different means: apart at every positive point at which both sides are real
without a detour through complex numbers (the natural domain), at whole ones too.
"""

import contextlib
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

import mpmath
from mpmath import mp

from crv.verify import grade
from crv.verify.arithmetic import (
    DIFFERENT,
    SAME,
    UNKNOWN,
    Node,
    UndecidedError,
    apart,
    degree,
    exact,
    infinite,
    substitute,
)
from crv.verify.spelling import FUNCTIONS

_LOW, _HIGH = 45, 90  # digits: what changes between the two is noise of the evaluation
_DIGITS = 3000  # at most, where numbers of very unlike sizes are added
_HUGE = 10**7  # of a logarithm or an angle; larger values are not followed
_REAL = frozenset({"x", "y", "z", "theta", "alpha", "beta", "phi"})  # letters that never stand for whole numbers only
_WHOLE = (3, 7, 12, 5, 20, 9, 14)  # odd and even, and no two neighbours whose difference is 1
_FUNCTIONS = {name: getattr(mp, name.replace("arc", "a")) for name in FUNCTIONS - {"ln", "lg", "log"}}
_FUNCTIONS |= {"ln": mp.log, "lg": mp.log10}


def compare(gold: str, answer: str) -> tuple[str, str]:
    """(same | different | unknown, rule) on two spans; raises nothing: what cannot be read or decided is unknown."""
    try:
        return grade.decide(gold, answer, Numeric())
    except UndecidedError as error:
        return UNKNOWN, f"cannot decide: {error}"


class UndefinedError(ArithmeticError):
    """No value at this point: a pole, or too large to follow."""


class _Evaluation:
    """One evaluation of a tree.

    Afterwards `complex` tells whether an intermediate value was not real, `cancelled` whether a sum lost all digits,
    `scale` the largest size of an exponent (to base 10) of any number on the way.
    """

    def __init__(self, point: Mapping[str, Any], log_base: int | None = None):
        self.point, self.log_base = point, log_base
        self.complex = self.cancelled = False
        self.scale = 0.0

    def __call__(self, node: Node) -> Any:
        try:
            value = mp.mpmathify(self._value(node))
        except (ZeroDivisionError, ValueError, OverflowError, TypeError, NotImplementedError) as error:
            raise UndefinedError(str(error)) from None
        if not mp.isfinite(value):
            raise UndefinedError("not finite")
        if value:
            self.scale = max(self.scale, abs(mp.mag(value)) * 0.302)
        if isinstance(value, mpmath.mpc):
            if abs(value.imag) > abs(value.real) * mp.mpf(10) ** (8 - mp.dps):
                self.complex = True
            else:
                value = value.real
        return value

    def _value(self, node: Node) -> Any:
        op, value = node.op, node.value
        if op in {"number", "decimal"}:
            assert isinstance(value, Fraction)
            return mp.mpf(value.numerator) / value.denominator
        if op == "symbol":
            return self.point[str(value)]
        if op == "constant":
            if value == "infty":
                raise UndefinedError("infinity")
            return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1)}[str(value)]
        if op == "base":
            return int(exact(node))
        args = [self(arg) for arg in node.args]
        x = args[0]
        if op == "add":
            total = mp.fsum(args)
            if abs(total) < max(map(abs, args)) * mp.mpf(10) ** (5 - mp.dps):
                self.cancelled = True
            return total
        if op == "function":
            return self._function(str(value), args)
        if op == "call":  # a function nobody defined: some fixed smooth one
            seed = zlib.crc32(str(value).encode()) % 1000
            return 2 + mp.sin(sum((k + 1) * a for k, a in enumerate(args)) + seed)
        simple: dict[str, Callable[[], Any]] = {
            "neg": lambda: -x,
            "mul": lambda: x * args[1],
            "div": lambda: x / args[1],
            "pow": lambda: self._power(x, args[1], node.args[1]),
            "root": lambda: self._power(x, 1 / args[1], Node("div", (Node("number", (), Fraction(1)), node.args[1]))),
            "abs": lambda: abs(x),
            "percent": lambda: x / 100,
            "degree": lambda: x * mp.pi / 180,
            "factorial": lambda: mp.gamma(_bounded(x) + 1),
            "binom": lambda: mp.binomial(_bounded(x), _bounded(args[1])),
            "floor": lambda: mp.floor(x),
            "ceil": lambda: mp.ceil(x),
        }
        if op not in simple:
            raise UndecidedError(op)
        return simple[op]()

    def _power(self, x: Any, y: Any, exponent: Node) -> Any:
        if x == 0:
            return mp.mpf(1) if y == 0 else mp.mpf(0) if y.real > 0 else x**-1
        if abs(y) * (abs(mp.log(abs(x))) + 1) > _HUGE:
            raise UndefinedError("too large")
        if not self.complex and x.real < 0 and not isinstance(x, mpmath.mpc) and not mp.isint(y):
            try:
                fraction = exact(exponent)
            except UndecidedError:
                return mp.power(x, y)
            if fraction.denominator % 2:  # the real root of a negative number, as in school
                return mp.power(-x, y) * (-1 if fraction.numerator % 2 else 1)
        return mp.power(x, y)

    def _function(self, name: str, args: list[Any]) -> Any:
        x = args[0]
        if name == "log":
            if len(args) == 2:
                return mp.log(x) / mp.log(args[1])
            return mp.log(x) / mp.log(self.log_base) if self.log_base else mp.log(x)
        return _FUNCTIONS[name](_bounded(x))


def _bounded(x: Any) -> Any:
    if abs(x) > _HUGE:
        raise UndefinedError("too large")
    return x


def _evaluate(
    node: Node, point: Mapping[str, Any], log_base: int | None = None, digits: int = _HIGH
) -> tuple[Any, _Evaluation]:
    with mp.workdps(digits):
        values = {k: mp.mpf(v.numerator) / v.denominator if isinstance(v, Fraction) else v for k, v in point.items()}
        evaluation = _Evaluation(values, log_base)
        return evaluation(node), evaluation


@dataclass(frozen=True, slots=True)
class _Point:
    """Two trees at one point: their values, whether these differ (None: the noise hides it), and if all was real."""

    values: tuple[Any, Any]
    differ: bool | None
    strict: bool


def _at(a: Node, b: Node, point: Mapping[str, Any], log_base: int | None = None, careful: bool = True) -> _Point:
    """Both trees at a point. Few digits show most differences; `careful` looks for one at 90 digits, or at more where
    numbers of very unlike sizes are added."""
    low, ways = zip(*(_evaluate(node, point, log_base, _LOW) for node in (a, b)), strict=True)
    strict, cancelled = not any(way.complex for way in ways), any(way.cancelled for way in ways)
    with mp.workdps(_LOW):
        distance, size = abs(low[0] - low[1]), max(map(abs, low))
    if not cancelled and distance > max(size, 1) / mp.mpf(10) ** 20:  # sin(pi) may be 1e-46
        return _Point(low, True, strict)
    if not careful and not cancelled:
        return _Point(low, False if distance < size / mp.mpf(10) ** 35 else None, strict)
    scale = max(way.scale for way in ways)
    extra = min(int(2 * scale) if scale > 20 else 0, 200 if point else _DIGITS)
    lower, high = ([_evaluate(n, point, log_base, digits + extra)[0] for n in (a, b)] for digits in (_LOW, _HIGH))
    with mp.workdps(_HIGH + extra):
        noise = sum(abs(x - y) + abs(y) * mp.mpf(10) ** (3 - _LOW - extra) for x, y in zip(lower, high, strict=True))
        distance = abs(high[0] - high[1])
        if distance <= noise / mp.mpf(10) ** 25 and not (2 * scale > _DIGITS and not point):
            return _Point((high[0], high[1]), False, strict)
        return _Point((high[0], high[1]), True if distance > 10 * noise and not cancelled else None, strict)


def _undefined(node: Node, point: Mapping[str, Any]) -> bool:
    try:
        _evaluate(node, point, None, _LOW)
    except UndefinedError:
        return True
    return False


def _points(names: list[str]) -> Iterator[tuple[str, dict[str, Fraction]]]:
    """(positive | any, values of the letters): whole and fractional, of several sizes, the same on every call."""
    draw = random.Random(len(names))
    for shift in range(3):
        yield "positive", {n: Fraction(_WHOLE[(k + shift) % 7] + 23 * (k // 7)) for k, n in enumerate(names)}
    for scale in ("1", "1", "1", "0.3", "0.6", "3", "3", "12", "40"):
        yield "positive", {n: Fraction(scale) * Fraction(draw.randint(50, 999), 1000) for n in names}
    for size in (1, 5, 40, 3000, 10**5, 10**7):
        for signs in ((-1,), (-1, 1)):
            yield "any", {n: draw.choice(signs) * size * Fraction(draw.randint(100, 999), 997) for n in names}
    yield "any", {n: 10**4 * Fraction(draw.randint(500, 999), 997) for n in names}


class Numeric:
    """`equal.Arithmetic` by evaluation; see the head of this module for what equal and different mean."""

    def compare(self, a: Node, b: Node) -> str:
        """SAME, DIFFERENT or UNKNOWN; all readings of `log`, `i` and `e` must agree for a proof of difference."""
        try:
            x, y = exact(a), exact(b)
            return SAME if x == y else apart(x, y, a.has("decimal") or b.has("decimal"))
        except UndecidedError:
            pass
        verdicts = [self._compare(substitute(a, names), substitute(b, names), base) for names, base in _readings(a, b)]
        usual = verdicts[: 2 if _plain_log(a) or _plain_log(b) else 1]
        if all(v == SAME for v in usual):
            return SAME
        if a.has("pi") != b.has("pi") and not a.symbols() | b.symbols():
            angle, bare = (a, b) if a.has("pi") else (b, a)
            if self._compare(angle, Node("degree", (bare,)), None) == SAME:
                return UNKNOWN  # pi / 3 and 60: radians and degrees
        return DIFFERENT if all(v == DIFFERENT for v in verdicts) else UNKNOWN

    def _compare(self, a: Node, b: Node, log_base: int | None) -> str:
        names = sorted(a.symbols() | b.symbols())
        # an irrational number and a rational one within 1% may be one number, rounded
        rounded = a.has("decimal") or b.has("decimal") or (not names and _rational(a) != _rational(b))
        provable = a.symbols() == b.symbols() and not _free_constant(a, b)
        complex_numbers = any(node.has("i") for node in (a, b))
        equal = unequal = 0
        agree = True
        for kind, point in _points(names) if names else [("positive", {})]:
            if kind == "any" and not agree:
                break
            try:
                at = _at(a, b, point, log_base, careful=equal < 3)
            except UndefinedError:
                agree = agree and (kind == "any" or _undefined(a, point) == _undefined(b, point))
                continue
            if names and not complex_numbers and all(isinstance(v, mpmath.mpc) for v in at.values):
                continue
            equal += at.differ is False
            # digits that cancel say nothing, and happen where the letters are large
            agree = agree and (at.differ is False or (at.differ is None and kind == "any"))
            if kind == "positive" and (at.strict or complex_numbers or not names):
                whole = all(v.denominator == 1 for v in point.values()) and set(names) <= _REAL
                if (at.differ is False and not whole) or (rounded and apart(*at.values, True) == UNKNOWN):
                    provable = False
                unequal += bool(at.differ)
            if not agree and not provable:
                return UNKNOWN
        if agree and equal >= (4 if names else 1):
            return SAME
        return DIFFERENT if provable and unequal >= (3 if names else 1) else UNKNOWN

    def real(self, node: Node) -> Any:
        """A number with 90 digits, or plus or minus infinity."""
        if infinite(node):
            return infinite(node) * mp.inf
        if node.symbols() or _plain_log(node):
            raise UndecidedError("no number")
        try:
            value, way = _evaluate(node, {})
        except UndefinedError:
            raise UndecidedError("no number") from None
        if isinstance(value, mpmath.mpc) or way.scale > 20:
            raise UndecidedError("no real number of a usual size")
        return value

    def roots(self, node: Node, name: str) -> tuple[list[Any], Callable[[Any], int]]:
        """The real zeros of a polynomial of at most the fourth degree in `name`, and its sign elsewhere."""
        return _roots(node, name, {})

    def equations(self, a: Node, b: Node, ordered: bool) -> str:
        """`a = 0` and `b = 0` (or `> 0`): the same if a / b is constant (and positive); different if b is not 0 at
        points where a is."""
        if a.symbols() != b.symbols() or not a.symbols() or _plain_log(a) or _plain_log(b):
            return UNKNOWN
        ratios = []
        for _, point in _points(sorted(a.symbols())):
            with contextlib.suppress(UndefinedError):
                ratios.append(_evaluate(Node("div", (a, b)), point)[0])
        if len(ratios) >= 6 and all(abs(r - ratios[0]) <= abs(ratios[0]) / mp.mpf(10) ** 40 for r in ratios):
            if not ratios[0] or (ordered and isinstance(ratios[0], mpmath.mpc)):
                return UNKNOWN
            return SAME if not ordered or ratios[0] > 0 else DIFFERENT
        if ordered or a.has("decimal") or b.has("decimal") or _free_constant(a, b):
            return UNKNOWN
        return DIFFERENT if _misses(a, b) or _misses(b, a) else UNKNOWN


def _roots(node: Node, name: str, point: Mapping[str, Fraction]) -> tuple[list[Any], Callable[[Any], int]]:
    """The real zeros in `name` of a polynomial (found by interpolation), the other letters fixed, and its sign."""
    if _plain_log(node):
        raise UndecidedError("log")
    with mp.workdps(_HIGH):

        def at(x: Any) -> Any:
            with mp.workdps(_HIGH):
                try:
                    value, way = _evaluate(node, {**point, name: mp.mpf(x)})
                except UndefinedError:
                    raise UndecidedError("no polynomial") from None
                if way.complex:
                    raise UndecidedError("complex")
                return value

        tiny = mp.mpf(10) ** -40
        powers = mp.matrix([[mp.mpf(x) ** k for k in range(5)] for x in range(5)])
        coefficients = list(mp.lu_solve(powers, mp.matrix([at(x) for x in range(5)])))
        for x in (mp.mpf(-7) / 3, *map(mp.mpf, range(-1, 4 - degree(node, name), -1))):
            if abs(mp.polyval(coefficients[::-1], x) - at(x)) > tiny * (1 + abs(at(x))):
                raise UndecidedError("no polynomial")
        while len(coefficients) > 1 and abs(coefficients[-1]) < tiny**1.5:
            coefficients.pop()
        if len(coefficients) < 2:
            raise UndecidedError("constant")
        try:
            zeros = mp.polyroots(coefficients[::-1], maxsteps=60, extraprec=200)
        except mp.NoConvergence:  # zeros of higher order
            raise UndecidedError("no simple zeros") from None
        return sorted({mp.re(z) for z in zeros if abs(mp.im(z)) < tiny}), lambda x: int(mp.sign(at(x)))


def _misses(a: Node, b: Node) -> bool:
    """Whether `b` is not 0 at several points with positive letters at which `a` is 0 (solved for one letter)."""
    names = sorted(a.symbols())
    for name in names:
        found = 0
        for _, point in [p for p in _points(names) if p[0] == "positive"]:
            try:
                zeros, _ = _roots(a, name, point)
            except UndecidedError:
                break
            for zero in [z for z in zeros if z > 0 or len(names) == 1]:
                try:
                    residue, way = _evaluate(b, {**point, name: zero})
                except UndefinedError:
                    return False
                if way.complex or abs(residue) < mp.mpf(10) ** -20 * (1 + abs(zero)):
                    return False
                found += 1
        if found >= 3 or (len(names) == 1 and found):
            return True
    return False


def _readings(a: Node, b: Node) -> list[tuple[dict[str, str], int | None]]:
    """What `i`, `e` and `log` may stand for; the usual readings first."""
    letters = [n for n in ("i", "e") if _as_letter(a, n) or _as_letter(b, n)]
    bases = [None, 10] if _plain_log(a) or _plain_log(b) else [None]
    renamings = [
        {n: f"letter {n}" for n, kept in zip(letters, keep, strict=True) if not kept}
        for keep in product((True, False), repeat=len(letters))
    ]
    return [(names, base) for names in renamings for base in bases]


def _rational(node: Node) -> bool:
    try:
        exact(node)
    except UndecidedError:
        return False
    return True


def _as_letter(node: Node, name: str) -> bool:
    """Whether a constant stands where a letter might; `e` with an exponent is no letter."""
    if node.op == "pow" and name == "e" and node.args[0].value == "e":
        return _as_letter(node.args[1], name)
    return (node.op == "constant" and node.value == name) or any(_as_letter(arg, name) for arg in node.args)


def _plain_log(node: Node) -> bool:
    """Whether `log` without a base is in the tree: its base is the field's."""
    return (node.op == "function" and node.value == "log" and len(node.args) == 1) or any(map(_plain_log, node.args))


def _free_constant(a: Node, b: Node) -> bool:
    """Whether a constant of integration, or a whole multiple of a period, is in play: then no difference is proved."""
    names = a.symbols() | b.symbols()
    periodic = any(node.has("pi", "degree") for node in (a, b)) and names & set("klmnKNZ")
    return bool(names & {"C", "c", "K", "C_1", "C_2", "c_1", "c_2"} and ("add" in (a.op, b.op))) or bool(periodic)
