"""Is this answer the gold one? Rules that need no algebra; what they leave open goes to `algebra` in a worker.

A span is read *whole* or not at all: `2y` is never 2. "Different" is a proof, so it takes two answers that are each
read completely, of one type, in one unit, and not merely one rounded from the other; else the verdict is "unknown".
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

SAME, DIFFERENT, UNKNOWN = "same", "different", "unknown"
VERSION = 1  # of the rules: stored with every verdict, raised when a rule changes


@dataclass(frozen=True, slots=True)
class Reading:
    """A span read whole. `kind`: number | choice | word | math (needs algebra) | none (not readable as an answer)."""

    kind: str
    text: str
    value: Fraction | None = None
    decimals: int | None = None  # digits after the point where it was written as a decimal
    unit: str = ""


_UNITS = {
    "min": "minute", "mins": "minute", "hr": "hour", "hrs": "hour", "h": "hour", "sec": "second", "s": "second",
    "cm": "centimeter", "mm": "millimeter", "m": "meter", "km": "kilometer", "in": "inch", "inches": "inch",
    "ft": "foot", "feet": "foot", "yd": "yard", "mi": "mile", "mph": "mile per hour", "lb": "pound", "lbs": "pound",
    "oz": "ounce", "g": "gram", "kg": "kilogram", "cents": "cent", "dollars": "$", "dollar": "$",
    "degrees": "degree", "percent": "%",
}  # fmt: skip
# Units in which one quantity has several numbers: without the unit, another number proves nothing.
_SCALED = frozenset({*_UNITS.values(), "day", "week", "month", "year"}) - {"degree"}
_EXCLUSIVE = tuple(
    frozenset(words.split())
    for words in (
        "yes no", "true false", "even odd", "positive negative", "rational irrational", "prime composite",
        "monday tuesday wednesday thursday friday saturday sunday",
        "january february march april may june july august september october november december",
    )
)  # fmt: skip

_SPACES = re.compile(r"\\[,;:! ]|~|\{,\}(?=\d)|\s+")
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3})((?:,\d{3})+)(?!\d)")
_SIGN = r"([+-]?)\s*"
_INTEGER = re.compile(rf"{_SIGN}(\d+)$")
_DECIMAL = re.compile(rf"{_SIGN}(\d*)\.(\d+)$")
_FRACTION = re.compile(rf"{_SIGN}(?:\\frac\{{\s*(-?\d+)\s*\}}\{{\s*(-?\d+)\s*\}}|(\d+)\s*/\s*(\d+))$")
_MIXED = re.compile(rf"{_SIGN}(\d+)\s*(?:\\frac\{{(\d+)\}}\{{(\d+)\}}|\s(\d+)/(\d+))$")
_MAX_DIGITS = 60


_QUANTITY = re.compile(
    r"(.*[\d})])\s*((?:[A-Za-z][A-Za-z'\-]+|[mgsh])(?:[ /][A-Za-z][A-Za-z'\-]*){0,2}(?: ?\^ ?\{?[23]\}?)?)"
)
# Words that make another number, or a sentence, of what stands before them.
_SENTENCE = """and or also if when because since as less more than times of to plus minus over squared cubed
factorial in for with by is are was not no but where which that hundred thousand million billion dozen half base mod
modulo at from the then so only either each remainder x y z"""
_NO_UNITS = frozenset(_SENTENCE.split())


def compare(gold: str, answer: str) -> tuple[str, str]:
    """(same | different | unknown, the rule that decided); rule "algebra" asks for `algebra.compare` in a worker."""
    a, b = read(gold), read(answer)
    if a.kind == "none" or b.kind == "none":
        side = "gold" if a.kind == "none" else "answer"
        return (SAME, "text") if a.text and a.text == b.text else (UNKNOWN, f"{side} not readable whole")
    if a.kind == b.kind == "number":
        return _compare_numbers(a, b)
    if a.text == b.text:
        return SAME, "text"
    if a.kind == b.kind == "choice":
        return DIFFERENT, "choice"
    if a.kind == b.kind == "word":
        exclusive = any(a.text in words and b.text in words for words in _EXCLUSIVE)
        return (DIFFERENT, "exclusive words") if exclusive else (UNKNOWN, "other words")
    if {a.kind, b.kind} <= {"math", "number"}:
        return UNKNOWN, "algebra"
    return UNKNOWN, f"types {a.kind} and {b.kind}"


def readable(gold: str) -> bool:
    """Whether a gold answer is sound enough to prove anything by: it reads whole."""
    return read(gold).kind != "none"


@lru_cache(maxsize=4096)
def read(span: str) -> Reading:
    """Reads one answer span whole (without solving anything)."""
    text = normalise(span)
    if not text or len(text) > 400:
        return Reading("none", "")
    choice = re.fullmatch(r"\(?([A-H])\)?(?:[.:)]\s*\S.*)?|\(([A-H])\)\s*\S.*", text)
    if choice and not re.fullmatch(r"\([A-H],.*", text):
        return Reading("choice", choice.group(1) or choice.group(2))
    bare, unit = _split_unit(text)
    number = _number(bare)
    if number is not None:
        return Reading("number", bare, *number, unit)
    word = re.sub(r"[^a-z ]", "", text.lower()).strip()
    if word and re.fullmatch(r"[A-Za-z][A-Za-z '\-]*", text) and len(word) > 2:
        return Reading("word", word)
    if not unit and _is_math(bare):
        return Reading("math", bare.replace(" ", ""))
    return Reading("none", text)


def normalise(span: str) -> str:
    """One spelling for what differs in looks only: dollars, boxes, spacing commands, `\\dfrac`, degrees, thousands."""
    text = span.replace("\x0crac", r"\frac").replace("\x08oxed", r"\boxed").strip()  # what JSON made of \f and \b
    text = re.sub(r"\\\\(?=[A-Za-z!])", lambda _: "\\", text) if "matrix" not in text else text  # a doubled backslash
    text = (
        text.replace("−", "-").replace("–", "-").replace("×", r"\times ").replace("π", r"\pi ").replace("°", r"^\circ")
    )
    text = re.sub(r"\*\*|__|`", "", text).strip()
    text = re.sub(r"\\\[|\\\]|\\\(|\\\)", "", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|textit|mbox|mathbf|textrm)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\left(?![a-z])|\\right(?![a-z])", "", text)
    text = text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace(r"\%", "%").replace(r"\$", "\x00")
    # "$15" is money, "$15$" is math: an unpaired leading dollar is a currency sign
    if text.count("$") == 1 and text.startswith("$"):
        text = "\x00" + text[1:]
    text = text.replace("$", "").replace("\x00", "$")
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})", " degree ", text)
    text = re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", re.sub(r"(?<!\\)\bsqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text))
    text = re.sub(r"√\s*(\d+)|√\s*\(([^()]*)\)", lambda m: rf"\sqrt{{{m.group(1) or m.group(2)}}}", text)
    text = text.replace(r"\!", "")
    text = _SPACES.sub(lambda m: "," if m.group(0) == "{,}" else " ", text)
    text = re.sub(r"[\s.,;:!]*$", "", text) if not re.search(r"\d!$", text) else text
    text = _THOUSANDS.sub(lambda m: m.group(1) + m.group(2).replace(",", ""), text)
    text = re.sub(r"(?<=\d) ?, ?(?=\d{3}\b)(?!\d{3},? )", ",", text)
    return " ".join(text.split())


def _split_unit(text: str) -> tuple[str, str]:
    """("40", "minute") of "40 min": words after a number, a percent sign, a leading currency sign, "x = "."""
    assigned = re.fullmatch(r"[A-Za-z](?:_\{?\w\}?)? ?= ?([^=]+)", text)
    if assigned:
        text = assigned.group(1).strip()
    if text.startswith(("$", "-$")):
        return text.replace("$", "", 1).strip(), "$"
    if text.endswith("%"):
        return text[:-1].strip(), "%"
    match = _QUANTITY.fullmatch(text)
    if match and _number(match.group(1).strip()) is not None:
        number, words = match.group(1).strip(), match.group(2)
        # "2pq" is a product, "40 minutes" a quantity: a unit stands apart, or is one we know
        known = len(words) > 1 and words.split()[0].lower() in _UNITS
        if (text[len(number)] == " " or known) and not _NO_UNITS & set(words.lower().split()):
            return number, _unit(words)
    return text, ""


def _unit(words: str) -> str:
    words = words.lower().strip()
    if power := re.fullmatch(r"(.+?) ?\^? ?\{?([23])\}?", words):
        return f"{_unit(power.group(1))}^{power.group(2)}"
    if power := re.fullmatch(r"(square|sq|cubic) (.+)", words):
        return f"{_unit(power.group(2))}^{3 if power.group(1) == 'cubic' else 2}"
    unit = _UNITS.get(words, words)
    return _UNITS.get(unit, unit[:-1] if unit.endswith("s") and len(unit) > 3 else unit)


def _number(text: str) -> tuple[Fraction, int | None] | None:
    if len(text) > _MAX_DIGITS:
        return None
    if m := _INTEGER.fullmatch(text):
        return _signed(m.group(1), Fraction(int(m.group(2)))), None
    if m := _DECIMAL.fullmatch(text):
        digits = m.group(3)
        return _signed(m.group(1), Fraction(int((m.group(2) or "0") + digits), 10 ** len(digits))), len(digits)
    if m := _FRACTION.fullmatch(text):
        over, under = int(m.group(2) or m.group(4)), int(m.group(3) or m.group(5))
        return (_signed(m.group(1), Fraction(over, under)), None) if under else None
    if m := _MIXED.fullmatch(text):
        over, under = int(m.group(3) or m.group(5)), int(m.group(4) or m.group(6))
        return (_signed(m.group(1), int(m.group(2)) + Fraction(over, under)), None) if under else None
    return None


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value


def _compare_numbers(a: Reading, b: Reading) -> tuple[str, str]:
    assert a.value is not None
    assert b.value is not None
    alike = a.unit == b.unit or not a.unit or not b.unit
    if a.value == b.value:
        return (SAME, "number") if alike or not _scaled(a, b) else (UNKNOWN, f"units {a.unit} and {b.unit}")
    if a.unit != b.unit and _scaled(a, b):
        ratio = abs(a.value / b.value) if a.value and b.value else Fraction(0)
        money = {a.unit, b.unit} <= {"$", "%", ""}
        if not money or ratio in (100, Fraction(1, 100)):
            return UNKNOWN, f"units {a.unit or 'none'} and {b.unit or 'none'}"
    written_exactly = a.decimals is None and b.decimals is None
    if not written_exactly and abs(a.value - b.value) <= max(abs(a.value), abs(b.value)) / 100:
        return UNKNOWN, "perhaps rounded"
    return DIFFERENT, "number"


def _scaled(a: Reading, b: Reading) -> bool:
    return any(unit.split("^")[0] in _SCALED for unit in (a.unit, b.unit))


_COMMANDS = re.compile(
    r"\\(?:frac|sqrt|pi|cdot|times|div|pm|infty|cup|cap|le|leq|ge|geq|in|binom|begin|end|\\|\{|\}|sin|cos|tan|log|ln|alpha|beta|theta|emptyset)(?![A-Za-z])|\\[{}\\]"
)


def _is_math(text: str) -> bool:
    """Whether `text` consists of known commands, digits, operators and single-letter names only."""
    if re.search(r"\d\s+\d|[A-Za-z]\s+[A-Za-z]{2,}|_|%|'|\?|\\pm", text):
        return False  # "2 3" would be read as 5, "11_{2}" as 11
    rest = (
        re.sub(r"(?:begin|end)\{[pb]?matrix\}", "", _COMMANDS.sub(" ", text))
        if "matrix" in text
        else _COMMANDS.sub(" ", text)
    )
    return bool(rest.strip() or text) and not re.search(r"\\|[A-Za-z]{3,}|[^\sA-Za-z0-9+\-*/^=<>(){}\[\].,|!&]", rest)
