"""Are two parsed answers the same? Kinds first, then element by element, by one arithmetic (fractions, or evaluation).

"Different" is a proof: of one kind, read in one way only, apart at every point that counts.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from crv.verify.arithmetic import (
    DIFFERENT,
    SAME,
    UNKNOWN,
    Arithmetic,
    Exact,
    Node,
    UndecidedError,
    exact,
    infinite,
    is_set,
    number,
    probes,
    region,
    signs_of,
    substitute,
    worked_out,
)

_INTEGERS = frozenset("ijklmnpqrNMK")  # n > 2 and n >= 3 are the same for whole n
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


def compare(a: Node, b: Node, arithmetic: Arithmetic) -> tuple[str, str]:
    """(verdict, rule) on two trees: `a` is the gold answer's."""
    try:
        x, y = state(a, arithmetic), state(b, arithmetic)
    except ContradictionError as error:
        return UNKNOWN, str(error)
    if x.kind == y.kind == "value" and x.names == y.names:
        return _values(x.items[0], y.items[0], arithmetic), "value"
    pair = {x.kind, y.kind}
    if "=" in {*signs_of(a), *signs_of(b)} and a.op == b.op == "chain" and x.names != y.names and len(pair) <= 2:
        renamed = _renamed(a, b)
        if renamed and pair == {"value"}:
            return _values(*renamed, arithmetic), "function"
        if pair <= {"value", "equation"} and signs_of(a) == signs_of(b) == ("=",):
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
            if isinstance(arithmetic, Exact) or any(
                signs_of(node)[1:] or signs_of(node) in ((), ("in",)) for node in (a, b)
            ):
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
    if pair == {"list", "equation"}:
        roots = _factored(a if x.kind == "list" else b)
        if roots is None:
            return UNKNOWN, "list and equation"
        equation = x if x.kind == "equation" else y
        verdict = arithmetic.equations(roots, equation.items[0], False)
        return (verdict if verdict == SAME else UNKNOWN), "list and equation"
    if pair == {"seq", "list"}:
        return _named_tuple(x, y, arithmetic), "tuple and list"
    if pair <= {"list", "set", "value"}:
        return _lists(x, y, arithmetic), "elements"
    if pair <= {"ratio", "value"}:
        return _ratios(x, y, arithmetic), "ratio"
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
    if (cells := worked_out(node)).op == "matrix":
        return Statement("matrix", cells.args, (), node)
    if is_set(node):
        return Statement("region", (node,), ("",), node)
    parts = _both(Statement("value", (node,), ("",), node))
    if len(parts) > 1:
        return Statement("list", tuple(p.items[0] for p in parts), ("", ""), node)
    return parts[0]


def _chain(node: Node, arithmetic: Arithmetic) -> Statement:
    signs, sides = signs_of(node), node.args
    if "~" in signs[1:] or (signs[0] == "~" and not _names(sides[0])):  # = 1/3 ~ 0.33: the exact value counts
        cut = signs.index("~") + 1
        return state(Node("chain", sides[:cut], signs[: cut - 1]) if cut > 1 else sides[0], arithmetic)
    signs = tuple(sign.replace("~", "=") for sign in signs)
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
    while named and len(sides) > 2 and sides[1].op == "symbol":  # x = y = z = 2
        sides = sides[1:]
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


def _factored(node: Node) -> Node | None:
    """x = 2 or x = -2 as (x - 2)(x + 2), which is to be zero."""
    if node.value != "or" or any(signs_of(item) != ("=",) for item in node.args):
        return None
    factors = [_difference(item) for item in node.args]
    product = factors[0]
    for factor in factors[1:]:
        product = Node("mul", (product, factor))
    return product


def _order(node: Node) -> Statement:
    """An inequality as "this is positive"; the brackets say whether it may be zero."""
    sign = signs_of(node)[0]
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
    in_order = names == sorted(set(names)) and "" not in names
    named = in_order or (signs_of(tuple_.whole) == ("=",) and not any(names))  # (x, y) = (2, 3) and 2, 3
    if not named or len(names) != len(tuple_.items) or tuple_.brackets != "()":
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


def _ratios(x: Statement, y: Statement, arithmetic: Arithmetic) -> str:
    """2 : 4 is 1 : 2, and 0.5; that it is not 2 proves nothing."""
    if len(x.items) == len(y.items) > 2:
        first, second = ([Node("div", (item, s.items[0])) for item in s.items] for s in (x, y))
        return _in_order(first, second, arithmetic)
    if max(len(x.items), len(y.items)) > 2:
        return UNKNOWN
    a, b = (s.items[0] if s.kind == "value" else Node("div", s.items) for s in (x, y))
    verdict = _values(a, b, arithmetic)
    if verdict == DIFFERENT and x.kind != y.kind and _values(a, Node("div", (number(1), b)), arithmetic) != DIFFERENT:
        return UNKNOWN
    return verdict


def _interval(x: Statement, y: Statement) -> bool:
    """Whether two pairs are intervals by their brackets or ends: (0, 1] or (1, oo), with numbers as ends."""
    if not all(s.kind == "seq" and len(s.items) == 2 for s in (x, y)):
        return False
    looks = any(s.brackets in {"(]", "[)"} or any(infinite(item) for item in s.items) for s in (x, y))
    return looks and not any(item.symbols() for s in (x, y) for item in s.items)


def _bounds(node: Node) -> bool:
    """Whether a statement is inequalities in one letter."""
    signs = signs_of(node)
    return bool(signs) and "=" not in signs and ":" not in signs and "in" not in signs and len(node.symbols()) == 1


def _variable(node: Node) -> str:
    names = node.symbols()
    return next(iter(names)) if len(names) == 1 else ""


def _regions(x: Statement, y: Statement, arithmetic: Arithmetic) -> str:
    """Membership, compared at every end point of both and in every gap between two of them."""
    wholes = [s.whole.args[1] if signs_of(s.whole) == ("in",) else s.whole for s in (x, y)]
    if any(s.kind not in {"region", "seq", "set", "list"} for s in (x, y)):
        return UNKNOWN
    names = {name for s in (x, y) for name in s.names if name}
    ends: list[Any] = []
    inside = [region(node, arithmetic, ends) for node in wholes]
    differing = any(inside[0](x) != inside[1](x) for x in probes(ends))
    if not differing:
        return SAME if len(names) < 2 else UNKNOWN
    rounded = any(node.has("decimal") for node in wholes)
    return UNKNOWN if len(names) > 1 or rounded or names & _INTEGERS else DIFFERENT
