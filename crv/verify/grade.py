"""Is this answer the gold one? Decided here where exact numbers, letters and words do; else `algebra` is asked for.

A span is read *whole* or not at all: `2y` is never 2. "Different" is a proof, so it takes two answers that are each
read completely, in one way, of one kind, in one unit, and not merely one rounded from the other; else it is "unknown".
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from crv.verify import equal
from crv.verify.arithmetic import DIFFERENT, SAME, UNKNOWN, Arithmetic, Exact, Node, UndecidedError, apart, number
from crv.verify.latex import parse
from crv.verify.spelling import UnreadableError, join_thousands, spell

VERSION = 3  # of the rules: stored with every verdict, raised when a rule changes
MAX_LENGTH = 400  # characters of an answer; longer ones are prose


@dataclass(frozen=True, slots=True)
class Reading:
    """A span read whole. `kind`: choice | math | word | none (not readable as an answer).

    `text` compares equal for equal spelling; `unit` as `_unit` names it; `ambiguous`: it proves no difference.
    """

    kind: str
    text: str
    node: Node | None = None
    unit: str = ""
    ambiguous: bool = False
    commas: bool = False  # 5,120 is one number or two
    value: Fraction | None = None  # of a plain number


_UNITS = {
    "min": "minute", "mins": "minute", "hr": "hour", "hrs": "hour", "h": "hour", "sec": "second", "secs": "second",
    "s": "second", "cm": "centimeter", "mm": "millimeter", "m": "meter", "km": "kilometer", "in": "inch",
    "inches": "inch", "ft": "foot", "feet": "foot", "yd": "yard", "mi": "mile", "mph": "mile/hour", "lb": "pound",
    "lbs": "pound", "oz": "ounce", "g": "gram", "kg": "kilogram", "mg": "milligram", "l": "liter", "ml": "milliliter",
    "cents": "cent", "dollars": "$", "dollar": "$", "usd": "$", "degrees": "degree", "percent": "%", "pct": "%",
    "metre": "meter", "metres": "meter", "centimetre": "centimeter", "centimetres": "centimeter", "litre": "liter",
    "litres": "liter", "j": "joule", "n": "newton", "w": "watt", "hz": "hertz", "pa": "pascal", "v": "volt",
    "kj": "kilojoule", "kw": "kilowatt", "mol": "mole", "k": "kelvin", "c": "celsius", "ev": "electron_volt",
}  # fmt: skip
# Units in which one quantity has several numbers: without the unit, another number proves nothing.
_SCALED = frozenset({*_UNITS.values(), "day", "week", "month", "year", "pair", "couple", "score", "gross"}) - {"%"}
_EXCLUSIVE = tuple(
    frozenset(words.split())
    for words in (
        "yes no", "true false", "even odd neither", "positive negative zero", "rational irrational", "prime composite",
        "monday tuesday wednesday thursday friday saturday sunday", "increasing decreasing",
        "january february march april may june july august september october november december",
    )
)  # fmt: skip

_QUANTITY = re.compile(
    r"(.*[\d})]|.*\\pi)(\s*)(?:«([^»]+)»|([A-Za-z][A-Za-z'\-]+|[mgshJNWVK]))"
    r"((?:[ /·]*(?:\\cdot )?«?(?<![A-Za-z])[A-Za-z][A-Za-z'\-]*»?){0,2})((?: ?\^ ?\{?-?[1-9]\}?)?)(?: ?/ ?([A-Za-z]+))?"
)
# Words that make another number, or a sentence, of what stands before them.
_SENTENCE = """and or also if when because since as less more than times of to plus minus over squared cubed
factorial in for with by is are was not no but where which that hundred thousand million billion dozen half base mod
modulo at from the then so only either each remainder x y z th st nd rd sqrt pi sin cos tan log ln choose"""
_NO_UNITS = frozenset(_SENTENCE.split())
_PLAIN = re.compile(r"[+-]?(?:\d+|\d*\.\d+)")


def compare(gold: str, answer: str) -> tuple[str, str]:
    """(same | different | unknown, the rule that decided); rule "algebra" asks for `algebra.compare` in a worker."""
    try:
        return decide(gold, answer, Exact())
    except UndecidedError:
        return UNKNOWN, "algebra"


def decide(gold: str, answer: str, arithmetic: Arithmetic) -> tuple[str, str]:
    """The verdict on two spans by one arithmetic. Raises UndecidedError where that one is not enough."""
    a, b = read(gold), read(answer)
    if a.value is not None and b.value is not None:
        rounded = "." in a.text or "." in b.text
        return (SAME if a.value == b.value else apart(a.value, b.value, rounded)), "number"
    if a.text and a.text == b.text and a.unit == b.unit:
        return SAME, "text"
    if a.kind == "none" or b.kind == "none":
        side = "gold" if a.kind == "none" else "answer"
        return UNKNOWN, f"{side} not readable whole"
    if a.kind == b.kind == "choice":
        return DIFFERENT, "choice"
    if a.kind == b.kind == "word":
        exclusive = any(a.text in words and b.text in words for words in _EXCLUSIVE)
        return (DIFFERENT, "exclusive words") if exclusive else (UNKNOWN, "other words")
    if a.kind != "math" or b.kind != "math":
        return UNKNOWN, f"kinds {a.kind} and {b.kind}"
    if a.unit != b.unit:
        return _other_units(a, b, arithmetic)
    verdict, rule = equal.compare(_node(a), _node(b), arithmetic)
    return _proved(verdict, a, b), rule


def _node(reading: Reading) -> Node:
    assert reading.node is not None
    return reading.node


def _proved(verdict: str, a: Reading, b: Reading) -> str:
    lists = [_node(r).op == "list" for r in (a, b)]
    unsure = a.ambiguous or b.ambiguous or ((a.commas or b.commas) and lists[0] != lists[1])
    return UNKNOWN if verdict == DIFFERENT and unsure else verdict


def _other_units(a: Reading, b: Reading, arithmetic: Arithmetic) -> tuple[str, str]:
    """One unit is missing, or they are two: converted if both are known, and a proof only then."""
    units = f"units {a.unit or 'none'} and {b.unit or 'none'}"
    if a.unit and b.unit and {a.unit, b.unit} != {"$", "%"}:
        if isinstance(arithmetic, Exact):
            raise UndecidedError("units")
        scale = _factors(a.unit, b.unit)
        if scale is None:
            return UNKNOWN, units
        nodes = [Node("mul", (_node(r), f)) for r, f in zip((a, b), scale, strict=True)]
        verdict, _ = equal.compare(nodes[0], nodes[1], arithmetic)
        return _proved(verdict, a, b), units
    verdict, rule = equal.compare(_node(a), _node(b), arithmetic)
    if verdict == DIFFERENT and any(part in _SCALED for r in (a, b) for part in re.split(r"[/^* ]", r.unit)):
        return UNKNOWN, units
    return _proved(verdict, a, b), rule


@cache
def _registry() -> Any:
    import pint  # a second of start-up time, paid only by a comparison of two units

    return pint.UnitRegistry(non_int_type=Fraction, cache_folder=None)


def _factors(a: str, b: str) -> tuple[Node, Node] | None:
    """What two quantities are multiplied by to be in one unit; None for units of two kinds, or with an offset."""
    import pint

    try:
        units = [_registry().Quantity(Fraction(1), unit.replace("$", "dollar")).to_base_units() for unit in (a, b)]
        if units[0].units != units[1].units or any("celsius" in unit or "degree" in unit for unit in (a, b)):
            return None
        return number(Fraction(units[0].magnitude)), number(Fraction(units[1].magnitude))
    except (pint.PintError, AttributeError, ValueError, TypeError, ArithmeticError):
        return None


def readable(gold: str) -> bool:
    """Whether a gold answer is sound enough to prove anything by: it reads whole."""
    return read(gold).kind != "none"


@lru_cache(maxsize=4096)
def read(span: str) -> Reading:
    """Reads one answer span whole (without solving anything)."""
    plain = span.strip()
    if len(plain) < 40 and _PLAIN.fullmatch(plain):
        value = Fraction(plain)
        node = Node("decimal" if "." in plain else "number", (), abs(value))
        return Reading("math", plain, Node("neg", (node,)) if value < 0 else node, value=value)
    if len(span) > 3 * MAX_LENGTH:
        return Reading("none", "")
    text = spell(span)
    if not text or len(text) > MAX_LENGTH:
        return Reading("none", "")
    choice = re.fullmatch(r"\(?([A-H])\)?(?:[.:)]\s*\S.*)?|\(([A-H])\)\s*\S.*", text)
    if choice and not re.fullmatch(r"\([A-H],.*", text):
        return Reading("choice", choice.group(1) or choice.group(2))
    if any(text.lower() in words for words in _EXCLUSIVE):
        return Reading("word", text.lower())
    bare, unit, unsure = _split_unit(text)
    same_text = _packed(text) if unit or not re.fullmatch(r"[A-Za-z '\-]+", text) else text.lower()
    bare = "=".join(join_thousands(side) for side in bare.split("="))
    try:
        parsed = parse(bare)
    except UnreadableError:
        return _words(text, same_text)
    grouped = bool(re.fullmatch(r"(?:.*=)? ?\d{1,3},\d+ ?", text))  # 5,120: one number, or two
    shouted = bool(re.fullmatch(r"\d+!", span.strip()))
    plain = _packed(bare)
    return Reading("math", plain, parsed.node, unit, parsed.ambiguous or shouted or unsure, grouped)


def _packed(text: str) -> str:
    """For comparing by spelling: no spaces but those between two digits."""
    return re.sub(r"(?<!\d) | (?!\d)|[«»]", "", text)


def _words(text: str, same_text: str) -> Reading:
    """A short answer in words; other text compares only by its spelling."""
    plain = re.sub(r"[«»]", "", text)
    if re.fullmatch(r"[A-Za-z][A-Za-z '\-,]*", plain) and len(plain) > 2:
        words = re.sub(r"^(?:the|an?) ", "", " ".join(plain.lower().replace("-", " ").split()))
        return Reading("word", words)
    return Reading("none", same_text)


def _split_unit(text: str) -> tuple[str, str, bool]:
    """("40", "minute", False) of "40 min"; the last says that a lone letter may be a factor rather than a unit."""
    money = re.match(r"(?:[A-Za-z] ?= ?)?(-?) ?¤ ?(-?)", text)
    if money and text.count("¤") == 1:
        return money.group(1) + money.group(2) + text[money.end() :], "$", False
    if text.endswith("¤"):
        return text[:-1].strip(), "$", False
    match = _QUANTITY.fullmatch(text)
    if not match:
        return text, "", False
    head, space, marked, plain, more, power, per = match.groups()
    words = f"{marked or plain}{more}".replace("«", "").replace("»", "").replace("\\cdot", "*").strip()
    parts = set(re.split(r"[ /*]", words.lower()))
    known = len(words) > 1 and words.split()[0].lower() in _UNITS
    if _NO_UNITS & parts or not (marked or space or known) or head.rstrip().endswith("="):
        return text, "", False
    if len(plain or "xx") == 2 and not (known or marked) and plain and not plain.islower():
        return text, "", False
    unit = _unit(words, re.sub(r"[^\d-]", "", power)) + (f"/{_unit(per)}" if per else "")
    unit = "" if unit in {"unit", "unit^2", "unit^3"} else unit
    if unit in {"%", "degree"}:
        return f"({head})" + ("%" if unit == "%" else r"^{\circ}"), "", False
    return head.strip(), unit, not marked and len(words) == 1


def _unit(words: str, power: str = "") -> str:
    words = words.strip()
    if match := re.fullmatch(r"(?:square|sq\.?|cubic) (.+)", words, re.I):
        return f"{_unit(match.group(1))}^{3 if words[0] in 'cC' else 2}"
    if match := re.fullmatch(r"(.+?)(?:/| per )(.+)", words):
        return f"{_unit(match.group(1))}/{_unit(match.group(2), power)}"
    if power:
        return f"{_unit(words)}^{power}"
    unit = words.lower()
    unit = _UNITS.get(unit, unit)
    return _UNITS.get(unit, unit[:-1] if unit.endswith("s") and len(unit) > 3 and unit != "celsius" else unit)
