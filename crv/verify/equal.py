"""Are two parsed answers the same? Kinds first, then element by element, with exact fractions where these suffice.

What arithmetic on fractions cannot decide raises UndecidedError; `algebra.Numeric` then takes the place of `Exact`, in
a process that can be killed. "Different" is a proof: of one kind, read in one way only, apart at every point that
counts.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, Protocol

from crv.verify.latex import Node, is_set, number

SAME, DIFFERENT, UNKNOWN = "same", "different", "unknown"
_MAX_BITS = 20_000  # of an exact number; 10^10^10 is left to the worker
_INTEGERS = frozenset("ijklmnpqrNMK")  # n > 2 and n >= 3 are the same for whole n
Verdict = tuple[str, str]


class UndecidedError(ValueError):
    """Fractions do not decide this."""


class Arithmetic(Protocol):
    """How two expressions are compared, and what number an expression is."""

    def compare(self, a: Node, b: Node) -> str: ...

    def real(self, node: Node) -> Any: ...

    def roots(self, node: Node, name: str) -> tuple[list[Any], Callable[[Any], int]]: ...

    def equations(self, a: Node, b: Node, ordered: bool) -> str: ...


EMPTY = Node("list")


@dataclass(frozen=True, slots=True)
class Statement:
    """What an answer says: `kind` value | list | set | seq | matrix | region | equation | order | ratio.

    `names`: what each item is said to be the value of ("" where nothing is said); `whole` is the tree it came from.
    """

    kind: str
    items: tuple[Node, ...]
    names: tuple[str, ...] = ()
    whole: Node = EMPTY
    brackets: str = ""


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
        y = [exact(node, {name: Fraction(x)}) for x in (0, 1, 2, 5)]
        slope = y[1] - y[0]
        if not slope or y[2] - y[0] != 2 * slope or y[3] - y[0] != 5 * slope:
            raise UndecidedError("not linear")
        root = -y[0] / slope
        return [root], lambda x: (x > root) - (x < root) if slope > 0 else (x < root) - (x > root)

    def equations(self, a: Node, b: Node, ordered: bool) -> str:
        raise UndecidedError("equations")


def compare(a: Node, b: Node, arithmetic: Arithmetic) -> Verdict:
    """(verdict, rule) on two trees: `a` is the gold answer's."""
    try:
        x, y = state(a, arithmetic), state(b, arithmetic)
    except ContradictionError as error:
        return UNKNOWN, str(error)
    if x.kind == y.kind == "value" and x.names == y.names:
        return _values(x.items[0], y.items[0], arithmetic), "value"
    pair = {x.kind, y.kind}
    if "=" in {*_sign(a), *_sign(b)} and a.op == b.op == "chain" and x.names != y.names and len(pair) <= 2:
        renamed = _renamed(a, b)
        if renamed and pair == {"value"}:
            return _values(*renamed, arithmetic), "function"
        if pair <= {"value", "equation"} and _sign(a) == _sign(b) == ("=",):
            return arithmetic.equations(_difference(a), _difference(b), False), "equation"
    if pair == {"value"}:
        verdict = _values(x.items[0], y.items[0], arithmetic)
        # x = 3 and y = 3 may be two answers, or two letters for one
        return (verdict if not (x.names[0] and y.names[0]) else UNKNOWN), "value"
    if pair == {"equation"}:
        return arithmetic.equations(x.items[0], y.items[0], False), "equation"
    if pair == {"order"}:
        if x.brackets != y.brackets:
            return UNKNOWN, "strict and not strict"
        return arithmetic.equations(x.items[0], y.items[0], True), "inequality"
    if pair == {"matrix"}:
        return _matrices(x, y, arithmetic), "matrix"
    if "region" in pair or _interval(x, y):
        try:
            return _regions(x, y, arithmetic), "set of numbers"
        except UndecidedError:
            if isinstance(arithmetic, Exact) or any(len(_sign(node)) != 1 or "in" in _sign(node) for node in (a, b)):
                raise
        orders = [_order(node) for node in (a, b)]
        if orders[0].brackets != orders[1].brackets or "!" in orders[0].brackets:
            return UNKNOWN, "strict and not strict"
        return arithmetic.equations(orders[0].items[0], orders[1].items[0], True), "inequality"
    if pair == {"seq"}:
        return _sequences(x, y, arithmetic), "tuple"
    if pair == {"seq", "matrix"}:
        column = x if x.kind == "matrix" else y
        cells = [row.args for row in column.items]
        vector = [c[0] for c in cells] if all(len(c) == 1 for c in cells) else list(cells[0]) if len(cells) == 1 else []
        other = y if column is x else x
        if vector and other.brackets == "()" and len(vector) == len(other.items):
            verdict = _in_order(vector, list(other.items), arithmetic)
            return (verdict if verdict == SAME else UNKNOWN), "vector"
        return UNKNOWN, "kinds matrix and seq"
    if pair == {"seq", "list"}:
        return _named_tuple(x, y, arithmetic), "tuple and list"
    if pair <= {"list", "set", "value"}:
        return _lists(x, y, arithmetic), "elements"
    if pair <= {"ratio", "value"}:
        items = [_quotient(s) for s in (x, y)]
        verdict = _values(items[0], items[1], arithmetic) if all(items) else UNKNOWN  # type: ignore[arg-type]
        if x.kind == y.kind and len(x.items) == len(y.items) > 2:
            first, second = ([Node("div", (item, s.items[0])) for item in s.items] for s in (x, y))
            verdict = _in_order(first, second, arithmetic)
        return (verdict if x.kind == y.kind or verdict == SAME else UNKNOWN), "ratio"
    return UNKNOWN, f"kinds {x.kind} and {y.kind}"


class ContradictionError(ValueError):
    """The text says something false, or nothing that can be compared."""


def state(node: Node, arithmetic: Arithmetic) -> Statement:
    """What a tree states. Raises ContradictionError for 64 + 64 = 126, which states no answer."""
    if node.op == "chain":
        return _chain(node, arithmetic)
    if node.op == "list":
        if any(_bounds(item) for item in node.args):
            return Statement("region", (node,), (_variable(node),), node)
        parts = [state(item, arithmetic) for item in node.args]
        if all(part.kind == "value" for part in parts):
            parts = [p for part in parts for p in _both(part)]
            return Statement("list", tuple(p.items[0] for p in parts), tuple(p.names[0] for p in parts), node)
        return Statement("list", node.args, ("",) * len(node.args), node)
    if node.op == "set":
        items = [p.items[0] for arg in node.args for p in _both(Statement("value", (arg,), ("",)))]
        return Statement("set", tuple(items), ("",) * len(items), node)
    if node.op == "seq" and len(node.args) == 1:
        return state(node.args[0], arithmetic)
    if node.op == "seq":
        return Statement("seq", node.args, (), node, str(node.value))
    if node.op == "matrix":
        return Statement("matrix", node.args, (), node)
    if is_set(node):
        return Statement("region", (node,), ("",), node)
    parts = _both(Statement("value", (node,), ("",), node))
    if len(parts) > 1:
        return Statement("list", tuple(p.items[0] for p in parts), ("", ""), node)
    return parts[0]


def _chain(node: Node, arithmetic: Arithmetic) -> Statement:
    signs, sides = _sign(node), node.args
    if set(signs) == {":"}:
        return Statement("ratio", sides, (), node)
    if signs == ("in",):
        inner = state(sides[1], arithmetic)
        return Statement(inner.kind, inner.items, (key(sides[0]),), node, inner.brackets)
    if "=" not in signs:
        if _bounds(node):
            return Statement("region", (node,), (_variable(node),), node)
        if len(signs) > 1 or signs[0] == "!=":
            raise ContradictionError("a chain of relations")
        return _order(node)
    if set(signs) != {"="}:
        raise ContradictionError("a chain of relations")
    if not _names(sides[0]) and len(sides) == 2 and _names(sides[1]):
        sides = sides[::-1]
    named = _names(sides[0])
    if named or not any(side.symbols() for side in sides):
        stated = sides[1:] if named else sides
        for left, right in pairwise(stated):
            if _values(left, right, arithmetic) != SAME:
                raise ContradictionError("a false equation")
        inner = state(stated[-1], arithmetic)
        name = key(sides[0]) if named else ""
        return Statement(inner.kind, inner.items, (name,) * max(1, len(inner.items)), node, inner.brackets)
    if len(sides) > 2:
        raise ContradictionError("a chain of equations")
    return Statement("equation", (_difference(node),), (), node)


def _order(node: Node) -> Statement:
    """An inequality as "this is positive"; the brackets say whether it may be zero."""
    sign = _sign(node)[0]
    return Statement("order", (_difference(node, flip=">" not in sign),), (), node, sign.strip("<>"))


def key(node: Node) -> str:
    """A name for the left side of an assignment."""
    if node.op in {"symbol", "call"} and not node.args:
        return str(node.value)
    return f"{node.value or node.op}({','.join(key(arg) for arg in node.args)})"


def _names(node: Node) -> bool:
    """Whether a left side names what the right side is the value of: x, f(x), AB, (p, q), BC/AD, tan A, P(A)."""
    if node.op == "symbol":
        return True
    if node.op in {"call", "function"}:
        return all(arg.op in {"symbol", "number", "neg"} for arg in node.args)
    if node.op == "seq":
        return all(_names(arg) for arg in node.args)
    if node.op in {"mul", "div", "abs"}:  # products of capitals: segments and areas
        return all(name[0].isupper() or " " in name for name in node.symbols()) and _only_symbols(node)
    return False


def _only_symbols(node: Node) -> bool:
    return node.op == "symbol" or (node.op in {"mul", "div", "abs"} and all(_only_symbols(arg) for arg in node.args))


def _sign(node: Node) -> tuple[str, ...]:
    return node.value if node.op == "chain" and isinstance(node.value, tuple) else ()


def _difference(node: Node, flip: bool = False) -> Node:
    left, right = node.args[::-1] if flip else node.args
    return Node("add", (left, Node("neg", (right,))))


def _renamed(a: Node, b: Node) -> tuple[Node, Node] | None:
    """The right sides of f(n) = .. and f(m) = .. with one name for the bound letters, or None."""
    left = [node.args[0] for node in (a, b)]
    if len(a.args) != 2 or len(b.args) != 2 or any(side.op != "call" for side in left):
        return None
    if left[0].value != left[1].value or any(arg.op != "symbol" for side in left for arg in side.args):
        return None
    out = []
    for node, side in zip((a, b), left, strict=True):
        names = {str(arg.value): f"bound {k}" for k, arg in enumerate(side.args)}
        out.append(substitute(node.args[1], names))
    return out[0], out[1]


def substitute(node: Node, names: Mapping[str, str]) -> Node:
    """The tree with some symbols (and the constants i and e, by name) renamed."""
    if node.op in {"symbol", "constant"} and node.value in names:
        return Node("symbol", (), names[str(node.value)])
    return Node(node.op, tuple(substitute(arg, names) for arg in node.args), node.value)


def _both(statement: Statement) -> list[Statement]:
    """The two values of one with a plus-minus sign."""
    node = statement.items[0]
    if not node.has("pm"):
        return [statement]
    return [Statement("value", (_choose(node, upper),), statement.names, node) for upper in (True, False)]


def _choose(node: Node, upper: bool) -> Node:
    args = tuple(_choose(arg, upper) for arg in node.args)
    if node.op != "pm":
        return Node(node.op, args, node.value)
    return Node("add", (args[0], args[1] if upper == (node.value == "pm") else Node("neg", (args[1],))))


def _values(a: Node, b: Node, arithmetic: Arithmetic) -> str:
    """Two expressions, or two elements that are statements themselves; percent and degrees seen from outside."""
    if any(node.op in {"seq", "set", "matrix", "list", "chain"} or is_set(node) for node in (a, b)):
        return compare(a, b, arithmetic)[0]
    if infinite(a) or infinite(b):
        both = infinite(a) and infinite(b)
        return UNKNOWN if not both else SAME if infinite(a) == infinite(b) else DIFFERENT
    if a.op == b.op and a.op in {"percent", "degree"}:
        return arithmetic.compare(a.args[0], b.args[0])
    if a.op == b.op == "base":
        same = a.value == b.value
        return (
            SAME if same else UNKNOWN if _values(number(exact(a)), number(exact(b)), arithmetic) == SAME else DIFFERENT
        )
    if "base" in (a.op, b.op):
        return UNKNOWN
    marked = {a.op, b.op} & {"percent", "degree"}
    if not marked:
        return arithmetic.compare(a, b)
    verdict = arithmetic.compare(a, b)
    bare = arithmetic.compare(*(n.args[0] if n.op in marked else n for n in (a, b)))
    if SAME in (verdict, bare):
        # the question may ask for percent or degrees; an answer of 8% where 8 is asked is another number
        return SAME if verdict == SAME or a.op in marked or "degree" in marked else UNKNOWN
    other = b if a.op in marked else a
    angles = marked == {"percent"} or other.has("pi")  # 120 degrees are not pi / 3
    return DIFFERENT if angles and verdict == bare == DIFFERENT else UNKNOWN


def _in_order(a: list[Node], b: list[Node], arithmetic: Arithmetic) -> str:
    verdicts = [_values(x, y, arithmetic) for x, y in zip(a, b, strict=True)]
    return SAME if all(v == SAME for v in verdicts) else DIFFERENT if DIFFERENT in verdicts else UNKNOWN


def _matching(a: list[Node], b: list[Node], arithmetic: Arithmetic) -> str:
    """As sets: SAME if each has its like; DIFFERENT if one is proved to differ from all of the other side."""
    table = [[_values(x, y, arithmetic) for y in b] for x in a]
    lines = [*table, *([row[k] for row in table] for k in range(len(b)))]
    if all(SAME in line for line in lines):
        return SAME
    return DIFFERENT if any(all(v == DIFFERENT for v in line) for line in lines) else UNKNOWN


def _lists(x: Statement, y: Statement, arithmetic: Arithmetic) -> str:
    """Lists in any order; where both or one side names every item (a = 2, b = 1), name by name or in that order."""
    a, b = list(x.items), list(y.items)
    named = [s for s in (x, y) if len(set(s.names)) > 1 and "" not in s.names and len(_stems(s.names)) > 1]
    unordered = _matching(a, b, arithmetic)
    if len(a) != len(b) and any(item.symbols() for item in (*a, *b)):
        unordered = unordered if unordered == SAME else UNKNOWN
    if not named or len(a) != len(b):
        return unordered
    if len(named) == 2:
        if set(x.names) != set(y.names):
            return UNKNOWN if unordered != DIFFERENT else DIFFERENT
        b = [b[y.names.index(name)] for name in x.names]
    ordered = _in_order(a, b, arithmetic)
    return SAME if ordered == SAME else DIFFERENT if unordered == DIFFERENT or len(named) == 2 == ordered else UNKNOWN


def _stems(names: tuple[str, ...]) -> set[str]:
    return {name.split("_")[0] for name in names}


def _named_tuple(x: Statement, y: Statement, arithmetic: Arithmetic) -> str:
    """(2, 3) and `a = 2, b = 3`: the same where the letters are in order; never different."""
    tuple_, other = (x, y) if x.kind == "seq" else (y, x)
    names = list(other.names)
    if "" in names or names != sorted(set(names)) or len(names) != len(tuple_.items) or tuple_.brackets != "()":
        return UNKNOWN
    verdict = _in_order(list(tuple_.items), list(other.items), arithmetic)
    return verdict if verdict == SAME else UNKNOWN


def _sequences(x: Statement, y: Statement, arithmetic: Arithmetic) -> str:
    if len(x.items) != len(y.items):
        return UNKNOWN
    verdict = _in_order(list(x.items), list(y.items), arithmetic)
    return verdict if x.brackets == y.brackets else UNKNOWN


def _matrices(x: Statement, y: Statement, arithmetic: Arithmetic) -> str:
    if len(x.items) != len(y.items) or len(x.items[0].args) != len(y.items[0].args):
        return DIFFERENT if len(x.items) * len(x.items[0].args) != len(y.items) * len(y.items[0].args) else UNKNOWN
    cells = [[cell for row in s.items for cell in row.args] for s in (x, y)]
    return _in_order(cells[0], cells[1], arithmetic)


def _quotient(statement: Statement) -> Node | None:
    if statement.kind == "value":
        return statement.items[0]
    return Node("div", statement.items) if len(statement.items) == 2 else None


# Regions: sets of real numbers, made of intervals, points and inequalities in one letter.

Member = Callable[[Any], bool]


def _interval(x: Statement, y: Statement) -> bool:
    """Whether two pairs are intervals by their brackets or ends: (0, 1] or (1, oo), with numbers as ends."""
    if not all(s.kind == "seq" and len(s.items) == 2 for s in (x, y)):
        return False
    looks = any(s.brackets in {"(]", "[)"} or any(infinite(item) for item in s.items) for s in (x, y))
    return looks and not any(item.symbols() for s in (x, y) for item in s.items)


def _bounds(node: Node) -> bool:
    """Whether a statement is inequalities in one letter."""
    signs = _sign(node)
    return bool(signs) and "=" not in signs and ":" not in signs and "in" not in signs and len(node.symbols()) == 1


def _variable(node: Node) -> str:
    names = node.symbols()
    return next(iter(names)) if len(names) == 1 else ""


def _regions(x: Statement, y: Statement, arithmetic: Arithmetic) -> str:
    """Membership, compared at every end point of both and in every gap between two of them."""
    wholes = [s.whole.args[1] if _sign(s.whole) == ("in",) else s.whole for s in (x, y)]
    if any(s.kind not in {"region", "seq", "set", "list"} for s in (x, y)):
        return UNKNOWN
    names = {name for s in (x, y) for name in s.names if name}
    ends: list[Any] = []
    inside = [region(node, arithmetic, ends) for node in wholes]
    points = sorted(e for e in ends if abs(e) != math.inf)
    points = [p for k, p in enumerate(points) if not k or p - points[k - 1] > abs(p) / 10**40]
    gaps = [(points[0] - 1, points[-1] + 1)] if points else [(-1, 1)]
    probes = [gaps[0][0], gaps[0][1], *points, *((p + q) / 2 for p, q in pairwise(points))]
    differing = [p for p in probes if inside[0](p) != inside[1](p)]
    if not differing:
        return SAME if len(names) < 2 else UNKNOWN
    rounded = any(node.has("decimal") for node in wholes)
    return UNKNOWN if len(names) > 1 or rounded or names & _INTEGERS else DIFFERENT


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
        brackets = str(node.value)
        return lambda x: (
            (low < x or (brackets[0] == "[" and _near(x, low)))
            and (x < high or (brackets[1] == "]" and _near(x, high)))
            and (brackets[0] == "[" or not _near(x, low))
            and (brackets[1] == "]" or not _near(x, high))
        )
    if node.op == "set":
        points = [arithmetic.real(arg) for arg in node.args]
        ends += points
        return lambda x: any(_near(x, p) for p in points)
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
        if not any(all(part(x) for part in parts) for x in _probes(ends)):
            raise UndecidedError("an empty set")
        return lambda x: all(part(x) for part in parts)
    if node.op == "chain":
        return _inequalities(node, arithmetic, ends)
    raise UndecidedError(node.op)


def _inequalities(node: Node, arithmetic: Arithmetic, ends: list[Any]) -> Member:
    signs, name = _sign(node), _variable(node)
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
            lambda x, r=roots, s=sign_of, a=allowed: (0 if any(_near(x, p) for p in r) else s(x)) in a  # type: ignore[misc]
        )
    return lambda x: all(test(x) for test in tests)


def _near(x: Any, y: Any) -> bool:
    return bool(x == y or (abs(y) != math.inf and abs(x - y) <= abs(y) / 10**40))


def _probes(ends: list[Any]) -> list[Any]:
    points = sorted(e for e in ends if abs(e) != math.inf)
    if not points:
        return [Fraction(0)]
    return [points[0] - 1, points[-1] + 1, *points, *((p + q) / 2 for p, q in pairwise(points))]
