"""Expressions compared as numbers, at many points, with mpmath; for worker processes only: this can hang or eat memory.

Equal means: no difference at 90 digits, relative to the size of the numbers, wherever one side is real: at positive,
negative, small, large and whole points. Different means: apart at every positive point at which both sides are real
without a detour through complex numbers (the natural domain), at whole ones too.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import product
from typing import Any

import mpmath
from mpmath import mp

from crv.verify import grade
from crv.verify.equal import DIFFERENT, SAME, UNKNOWN, UndecidedError, apart, exact, substitute
from crv.verify.latex import Node, number

_LOW, _HIGH = 45, 90  # digits: what changes between the two is noise of the evaluation
_DIGITS = 3000  # at most, where numbers of very unlike sizes are added
_HUGE = 10**7  # of a logarithm or an angle; larger values are not followed
_REAL = frozenset({"x", "y", "z", "theta", "alpha", "beta", "phi"})  # letters that never stand for whole numbers only
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)
_FUNCTIONS: Mapping[str, Callable[[Any], Any]] = {
    "ln": mp.log, "lg": mp.log10, "exp": mp.exp, "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "cot": mp.cot,
    "sec": mp.sec, "csc": mp.csc, "arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan, "arccot": mp.acot,
    "arcsec": mp.asec, "arccsc": mp.acsc, "sinh": mp.sinh, "cosh": mp.cosh, "tanh": mp.tanh, "coth": mp.coth,
    "sech": mp.sech, "csch": mp.csch, "arcsinh": mp.asinh, "arccosh": mp.acosh, "arctanh": mp.atanh,
}  # fmt: skip


def compare(gold: str, answer: str) -> tuple[str, str]:
    """(same | different | unknown, rule) on two spans; raises nothing: what cannot be read or decided is unknown."""
    try:
        return grade.decide(gold, answer, Numeric())
    except UndecidedError as error:
        return UNKNOWN, f"cannot decide: {error}"


@cache
def _registry() -> Any:
    import pint  # a second of start-up time, paid only by a comparison of two units

    return pint.UnitRegistry(non_int_type=Fraction, cache_folder=None)


def factors(a: str, b: str) -> tuple[Node, Node] | None:
    """What two quantities are multiplied by to be in one unit; None for units of two kinds, or with an offset."""
    import pint

    try:
        units = [_registry().Quantity(Fraction(1), unit.replace("$", "dollar")).to_base_units() for unit in (a, b)]
        if units[0].units != units[1].units or any("celsius" in unit or "degree" in unit for unit in (a, b)):
            return None
        return number(Fraction(units[0].magnitude)), number(Fraction(units[1].magnitude))
    except (pint.PintError, AttributeError, ValueError, TypeError, ArithmeticError):
        return None


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
            return {"pi": mp.pi, "e": mp.e, "i": mp.mpc(0, 1)}[str(value)]
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


@dataclass(frozen=True, slots=True)
class Value:
    """A number at the high precision, its noise, and what `_Evaluation` says of the way to it."""

    number: Any
    noise: Any
    complex: bool
    cancelled: bool
    extra: int  # digits beyond the usual ones

    @property
    def real(self) -> bool:
        return not isinstance(self.number, mpmath.mpc)


def _at(node: Node, point: Mapping[str, Fraction], log_base: int | None, least: int = 0) -> Value | None:
    """The value at a point, or None where it has none; with more digits where sizes are very unlike."""
    try:
        high, evaluation = _evaluate(node, point, log_base, _HIGH)
        extra = min(int(2 * evaluation.scale) if evaluation.scale > 20 else 0, 200 if point else _DIGITS)
        extra = max(extra, least)
        if extra:
            high, evaluation = _evaluate(node, point, log_base, _HIGH + extra)
        low, _ = _evaluate(node, point, log_base, _LOW + extra)
    except UndefinedError:
        return None
    with mp.workdps(_HIGH + extra):
        noise = abs(low - high) + abs(high) * mp.mpf(10) ** (3 - _LOW - extra)
    lost = not point and evaluation.scale > _DIGITS / 2
    return Value(high, noise, evaluation.complex, evaluation.cancelled or lost, extra)


def _evaluate(node: Node, point: Mapping[str, Any], log_base: int | None, digits: int) -> tuple[Any, _Evaluation]:
    with mp.workdps(digits):
        values = {k: mp.mpf(v.numerator) / v.denominator if isinstance(v, Fraction) else v for k, v in point.items()}
        evaluation = _Evaluation(values, log_base)
        return evaluation(node), evaluation


def _differ(a: Value, b: Value) -> bool | None:
    """Whether two values differ, None where the evaluation's noise hides it."""
    with mp.workdps(_HIGH + max(a.extra, b.extra)):
        noise, distance = a.noise + b.noise, abs(a.number - b.number)
        if distance <= noise / mp.mpf(10) ** 25:
            return False
        return True if distance > 10 * noise and not (a.cancelled or b.cancelled) else None


def _points(names: list[str]) -> Iterator[tuple[str, dict[str, Fraction]]]:
    """(positive | any, values of the letters): whole and fractional, of several sizes, the same on every call."""
    draw = random.Random(len(names))
    for shift in range(3):
        yield "positive", {n: Fraction(_PRIMES[(k + shift) % 8] + 13 * (k // 8)) for k, n in enumerate(names)}
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
        if a.has("pi") != b.has("pi") and not a.symbols() | b.symbols():
            angle, number_ = (a, b) if a.has("pi") else (b, a)
            if self._compare(angle, Node("degree", (number_,)), None) == SAME:
                return UNKNOWN  # pi / 3 and 60: radians and degrees
        verdicts = [self._compare(substitute(a, names), substitute(b, names), base) for names, base in _readings(a, b)]
        usual = verdicts[: 2 if _plain_log(a) or _plain_log(b) else 1]
        if all(v == SAME for v in usual):
            return SAME
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
            x, y = _at(a, point, log_base), _at(b, point, log_base)
            if x and y and x.extra != y.extra:
                least = max(x.extra, y.extra)
                x, y = (_at(node, point, log_base, least) for node in (a, b))
            if x is None and y is None:
                continue
            if x is None or y is None:
                agree = agree and kind == "any" and max(map(abs, point.values()), default=0) > 100
                continue
            if names and not (x.real or y.real or complex_numbers):
                continue
            differ = _differ(x, y)
            equal += differ is False
            # digits that cancel say nothing, and happen where the letters are large
            agree = agree and (differ is False or (differ is None and kind == "any"))
            strict = not (x.complex or y.complex) or complex_numbers or not names
            if kind == "positive" and strict:
                whole = all(v.denominator == 1 for v in point.values()) and set(names) <= _REAL
                if (differ is False and not whole) or (rounded and apart(x.number, y.number, True) == UNKNOWN):
                    provable = False
                unequal += bool(differ)
            if not agree and not provable:
                return UNKNOWN
        if agree and equal >= (4 if names else 1):
            return SAME
        return DIFFERENT if provable and unequal >= (3 if names else 1) else UNKNOWN

    def real(self, node: Node) -> Any:
        """A number with 90 digits, or plus or minus infinity."""
        if node.op == "neg":
            return -self.real(node.args[0])
        if node.op == "constant" and node.value == "infty":
            return mp.inf
        value = None if node.symbols() or _plain_log(node) else _at(node, {}, None)
        if value is None or not value.real or value.extra:
            raise UndecidedError("no real number of a usual size")
        return value.number

    def roots(self, node: Node, name: str) -> tuple[list[Any], Callable[[Any], int]]:
        """The real zeros of a polynomial of at most the fourth degree in `name`, and its sign elsewhere."""
        return _roots(node, name, {})

    def equations(self, a: Node, b: Node, ordered: bool) -> str:
        """`a = 0` and `b = 0` (or `> 0`): the same if a / b is constant (and positive); different if b is not 0 at
        points where a is."""
        if a.symbols() != b.symbols() or not a.symbols() or _plain_log(a) or _plain_log(b):
            return UNKNOWN
        quotients = [
            value
            for _, point in _points(sorted(a.symbols()))
            if (value := _at(Node("div", (a, b)), point, None)) is not None
        ]
        if len(quotients) >= 6 and all(_differ(quotients[0], q) is False for q in quotients[1:]):
            if not quotients[0].number or (ordered and not quotients[0].real):
                return UNKNOWN
            return SAME if not ordered or quotients[0].number > 0 else DIFFERENT
        if ordered or a.has("decimal") or b.has("decimal") or _free_constant(a, b):
            return UNKNOWN
        return DIFFERENT if _misses(a, b) or _misses(b, a) else UNKNOWN


def _roots(node: Node, name: str, point: Mapping[str, Fraction]) -> tuple[list[Any], Callable[[Any], int]]:
    """The real zeros in `name` of a polynomial (found by interpolation), the other letters fixed, and its sign."""
    if _plain_log(node):
        raise UndecidedError("log")
    with mp.workdps(_HIGH):
        fixed = {k: mp.mpf(v.numerator) / v.denominator for k, v in point.items()}

        def at(x: Any) -> Any:
            with mp.workdps(_HIGH):
                evaluation = _Evaluation({**fixed, name: mp.mpf(x)})
                try:
                    value = evaluation(node)
                except UndefinedError:
                    raise UndecidedError("no polynomial") from None
                if evaluation.complex:
                    raise UndecidedError("complex")
                return value

        tiny = mp.mpf(10) ** -40
        powers = mp.matrix([[mp.mpf(x) ** k for k in range(5)] for x in range(5)])
        coefficients = list(mp.lu_solve(powers, mp.matrix([at(x) for x in range(5)])))
        for x in (mp.mpf(-7) / 3, mp.mpf(17), mp.mpf(-101)):
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
            with mp.workdps(_HIGH):
                fixed = {k: mp.mpf(v.numerator) / v.denominator for k, v in point.items()}
                for zero in [z for z in zeros if z > 0 or len(names) == 1]:
                    evaluation = _Evaluation({**fixed, name: zero})
                    try:
                        residue = evaluation(b)
                    except UndefinedError:
                        return False
                    if evaluation.complex or abs(residue) < mp.mpf(10) ** -20 * (1 + abs(zero)):
                        return False
                    found += 1
        if found >= 3 or (len(names) == 1 and found):
            return True
    return False


def _readings(a: Node, b: Node) -> list[tuple[dict[str, str], int | None]]:
    """What `i`, `e` and `log` may stand for; the usual readings first."""
    letters = [n for n in ("i", "e") if a.has(n) or b.has(n)]
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


def _plain_log(node: Node) -> bool:
    """Whether `log` without a base is in the tree: its base is the field's."""
    return (node.op == "function" and node.value == "log" and len(node.args) == 1) or any(map(_plain_log, node.args))


def _free_constant(a: Node, b: Node) -> bool:
    """Whether a constant of integration, or a whole multiple of a period, is in play: then no difference is proved."""
    names = a.symbols() | b.symbols()
    periodic = any(node.has("pi", "degree") for node in (a, b)) and names & set("klmnKNZ")
    return bool(names & {"C", "c", "K", "C_1", "C_2", "c_1", "c_2"} and ("add" in (a.op, b.op))) or bool(periodic)
