"""Numbers and sets of numbers: exact fractions, and what any arithmetic must offer to compare answers.

What fractions cannot decide raises UndecidedError; `algebra.Numeric` then takes the place of `Exact`, in a process that
can be killed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, Protocol

SAME, DIFFERENT, UNKNOWN = "same", "different", "unknown"
_MAX_BITS = 20_000  # of an exact number; 10^10^10 is left to the worker
Member = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Node:
    """An expression or a statement: `op` on `args`; `value` holds a number, a name, brackets or relation signs."""

    op: str
    args: tuple["Node", ...] = ()
    value: Fraction | str | tuple[str, ...] | None = None

    def has(self, *ops: str) -> bool:
        """Whether the tree holds one of `ops` (or of the constants pi, e, i, infty)."""
        return (
            self.op in ops or (self.op == "constant" and self.value in ops) or any(arg.has(*ops) for arg in self.args)
        )

    def symbols(self) -> frozenset[str]:
        """The names of the free symbols."""
        own = {str(self.value)} if self.op == "symbol" else set()
        return frozenset(own.union(*(arg.symbols() for arg in self.args)))


def number(value: Fraction | int) -> Node:
    """The node of an exact number."""
    return Node("number", (), Fraction(value))


def is_set(node: Node) -> bool:
    """Whether the node is a set of numbers by its look: braces, an interval, or made of these."""
    return node.op in {"set", "builder", "cup", "cap", "setminus", "reals"} or (
        node.op == "seq" and len(node.args) == 2
    )


class UndecidedError(ValueError):
    """Fractions do not decide this."""


class Arithmetic(Protocol):
    """How two expressions are compared, and what number an expression is."""

    def compare(self, a: Node, b: Node) -> str: ...

    def real(self, node: Node) -> Any: ...

    def roots(self, node: Node, name: str) -> tuple[list[Any], Callable[[Any], int]]: ...

    def equations(self, a: Node, b: Node, ordered: bool) -> str: ...


def signs_of(node: Node) -> tuple[str, ...]:
    """The relation signs of a chain; none for other nodes."""
    return node.value if node.op == "chain" and isinstance(node.value, tuple) else ()


def exact(node: Node, env: Mapping[str, Fraction] | None = None) -> Fraction:
    """The value of a node as a fraction, symbols from `env`. Raises UndecidedError where it is none, or is huge."""
    op, value = node.op, node.value
    if op in {"number", "decimal"}:
        assert isinstance(value, Fraction)
        return value
    if op == "symbol" and env and value in env:
        return env[str(value)]
    if op == "base":
        assert isinstance(value, tuple)
        digits, base = value
        if any(int(d) >= int(base) for d in digits):
            raise UndecidedError(node.op)
        return Fraction(int(digits, int(base)))
    if op not in {"add", "mul", "div", "neg", "pow", "factorial", "abs", "floor", "ceil", "binom", "percent", "root"}:
        raise UndecidedError(op)
    args = [exact(arg, env) for arg in node.args]
    x = args[0]
    if op == "add":
        return sum(args, Fraction(0))
    if op == "neg":
        return -x
    if op == "mul":
        return x * args[1]
    if op == "abs":
        return abs(x)
    if op == "percent":
        return x / 100
    if op in {"floor", "ceil"}:
        return Fraction(math.floor(x) if op == "floor" else math.ceil(x))
    whole = all(arg.denominator == 1 for arg in args)
    if op == "div" and args[1]:
        return x / args[1]
    if op == "pow" and args[1].denominator == 1 and (x or args[1] > 0):
        bits = max(x.numerator.bit_length(), x.denominator.bit_length())
        if bits * abs(args[1]) <= _MAX_BITS:
            return Fraction(x ** int(args[1]))
    if op == "factorial" and whole and 0 <= x <= 500:
        return Fraction(math.factorial(int(x)))
    if op == "binom" and whole and 0 <= args[1] <= x <= 1000:
        return Fraction(math.comb(int(x), int(args[1])))
    if op == "root" and args[1] == 2 and x >= 0:
        over, under = math.isqrt(x.numerator), math.isqrt(x.denominator)
        if over * over == x.numerator and under * under == x.denominator:
            return Fraction(over, under)
    raise UndecidedError(op)


def degree(node: Node, name: str) -> int:
    """At least the degree of a node that is written as a polynomial in `name`; UndecidedError for others, and above 20.

    A polynomial of this degree is known by its values at one point more. Values alone prove nothing: |x + 200| agrees
    with x + 200 wherever x > -200.
    """
    found = None
    power = node.args[1].value if node.op == "pow" and node.args[1].op == "number" else None
    if node.op == "symbol" or name not in node.symbols():
        found = int(name in node.symbols())
    elif node.op in {"add", "neg", "percent"}:
        found = max(degree(arg, name) for arg in node.args)
    elif node.op == "mul":
        found = sum(degree(arg, name) for arg in node.args)
    elif node.op == "div" and name not in node.args[1].symbols():
        found = degree(node.args[0], name)
    elif isinstance(power, Fraction) and power.denominator == 1 and power >= 0:
        found = degree(node.args[0], name) * int(power)
    if found is None or found > 20:
        raise UndecidedError("no polynomial of a usual degree")
    return found


def infinite(node: Node) -> float:
    """1.0 or -1.0 for plus or minus infinity, else 0.0."""
    if node.op == "neg":
        return -infinite(node.args[0])
    return float(node.op == "constant" and node.value == "infty")


def apart(x: Any, y: Any, rounded: bool) -> str:
    """The verdict on two unequal numbers: DIFFERENT, or UNKNOWN where one may be rounded from the other (within 1%)."""
    return UNKNOWN if rounded and abs(x - y) <= max(abs(x), abs(y)) / 100 else DIFFERENT


class Exact:
    """Arithmetic on fractions alone; raises UndecidedError for everything else."""

    def compare(self, a: Node, b: Node) -> str:
        x, y = exact(a), exact(b)
        return SAME if x == y else apart(x, y, a.has("decimal") or b.has("decimal"))

    def real(self, node: Node) -> Any:
        sign = infinite(node)
        return sign * math.inf if sign else exact(node)

    def roots(self, node: Node, name: str) -> tuple[list[Any], Callable[[Any], int]]:
        """Where a linear node is zero, and its sign as a function of `name`."""
        points = range(max(2, degree(node, name) + 1))
        y = [exact(node, {name: Fraction(x)}) for x in points]
        slope = y[1] - y[0]
        if not slope or any(y[x] - y[0] != x * slope for x in points):
            raise UndecidedError("not linear")
        root = -y[0] / slope
        return [root], lambda x: (x > root) - (x < root) if slope > 0 else (x < root) - (x > root)

    def equations(self, a: Node, b: Node, ordered: bool) -> str:
        raise UndecidedError("equations")


def substitute(node: Node, names: Mapping[str, str]) -> Node:
    """The tree with some symbols (and the constants i and e, by name) renamed."""
    if node.op in {"symbol", "constant"} and node.value in names:
        return Node("symbol", (), names[str(node.value)])
    return Node(node.op, tuple(substitute(arg, names) for arg in node.args), node.value)


def region(node: Node, arithmetic: Arithmetic, ends: list[Any]) -> Member:
    """Whether a number is in the set that `node` stands for; its end points are added to `ends`."""
    if node.op == "reals":
        return lambda x: True
    if node.op == "seq" and len(node.args) == 1:
        return region(node.args[0], arithmetic, ends)
    if node.op == "seq" and len(node.args) == 2:
        low, high = (arithmetic.real(arg) for arg in node.args)
        ends += [low, high]
        if low > high:
            raise UndecidedError("an interval backwards")
        opening, closing = list(str(node.value))

        def between(x: Any) -> bool:
            if near(x, low) or near(x, high):
                return (near(x, low) and opening == "[") or (near(x, high) and closing == "]")
            return bool(low < x < high)

        return between
    if node.op == "set":
        points = [arithmetic.real(arg) for arg in node.args]
        ends += points
        return lambda x: any(near(x, p) for p in points)
    if node.op in {"cup", "cap", "setminus"}:
        left, right = (region(arg, arithmetic, ends) for arg in node.args)
        if node.op == "cup":
            return lambda x: left(x) or right(x)
        return (lambda x: left(x) and right(x)) if node.op == "cap" else (lambda x: left(x) and not right(x))
    if node.op == "builder":
        return region(node.args[1], arithmetic, ends)
    if node.op == "list":
        parts = [region(arg, arithmetic, ends) for arg in node.args]
        if node.value == "or":
            return lambda x: any(part(x) for part in parts)
        # "x < 1 and x > 3" means a union: nobody states an empty set in this way
        if not any(all(part(x) for part in parts) for x in probes(ends)):
            raise UndecidedError("an empty set")
        return lambda x: all(part(x) for part in parts)
    if node.op == "chain":
        return _inequalities(node, arithmetic, ends)
    raise UndecidedError(node.op)


def _inequalities(node: Node, arithmetic: Arithmetic, ends: list[Any]) -> Member:
    signs, name = signs_of(node), next(iter(node.symbols()))
    if signs == ("in",):
        return region(node.args[1], arithmetic, ends)
    tests: list[Member] = []
    for (left, right), sign in zip(pairwise(node.args), signs, strict=True):
        if sign == "in":
            raise UndecidedError("in")
        sides = [s for s in (left, right) if infinite(s)]
        if sides:
            continue
        roots, sign_of = arithmetic.roots(Node("add", (left, Node("neg", (right,)))), name)
        ends += roots
        allowed = {"<": {-1}, ">": {1}, "<=": {-1, 0}, ">=": {1, 0}, "!=": {-1, 1}, "=": {0}}[sign]
        tests.append(
            lambda x, r=roots, s=sign_of, a=allowed: (0 if any(near(x, p) for p in r) else s(x)) in a  # type: ignore[misc]
        )
    return lambda x: all(test(x) for test in tests)


def near(x: Any, y: Any) -> bool:
    return bool(x == y or (abs(y) != math.inf and abs(x - y) <= abs(y) / 10**40))


def probes(ends: list[Any]) -> list[Any]:
    """The finite ends, and a number in every gap between and beyond them."""
    points: list[Any] = []
    for end in sorted(e for e in ends if abs(e) != math.inf):
        if not points or not near(end, points[-1]):
            points.append(end)
    if not points:
        return [Fraction(0)]
    return [points[0] - 1, points[-1] + 1, *points, *((p + q) / 2 for p, q in pairwise(points))]


def worked_out(node: Node) -> Node:
    """Sums and products of matrices, worked out cell by cell; other nodes as they are."""
    args = [worked_out(arg) for arg in node.args] if node.op in {"add", "mul"} else []
    if not args or any(arg.op != "matrix" for arg in args):
        return node
    left, right = ([row.args for row in arg.args] for arg in args[:2])
    if node.op == "add" and len(args) == 2 and [len(r) for r in left] == [len(r) for r in right]:
        rows = [[Node("add", pair) for pair in zip(p, q, strict=True)] for p, q in zip(left, right, strict=True)]
    elif node.op == "mul" and len(left[0]) == len(right):
        columns = list(zip(*right, strict=True))
        rows = [[Node("add", tuple(Node("mul", p) for p in zip(r, c, strict=True))) for c in columns] for r in left]
    else:
        return node
    return Node("matrix", tuple(Node("row", tuple(row)) for row in rows))
