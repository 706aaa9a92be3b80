"""One spelling of an answer for what differs in looks only (`spell`), and its tokens."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

MAX_DEPTH = 24  # of brackets in brackets; each costs about ten frames of Python's stack
T = TypeVar("T")

_LETTERS = """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi
omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega varepsilon vartheta varphi ell"""
GREEK = frozenset(_LETTERS.split())
_NAMES = """sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch
arcsinh arccosh arctanh ln lg log exp"""
FUNCTIONS = frozenset(_NAMES.split())
_WORDS = FUNCTIONS | {"sqrt", "pi", "and", "or", "infinity", "asin", "acos", "atan"}
_ALIASES = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "arsinh": "arcsinh", "arcosh": "arccosh",
    "artanh": "arctanh", "cosec": "csc", "tg": "tan", "ctg": "cot", "land": "and", "wedge": "and", "lor": "or",
    "vee": "or", "infinity": "infty", "varnothing": "emptyset", "mid": "|", "vert": "|", "lvert": "|", "rvert": "|",
    "backslash": "setminus", "leqslant": "le", "geqslant": "ge", "leq": "le", "geq": "ge", "neq": "ne", "lt": "<",
    "gt": ">", "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "ast": "*", "times": "*", "cdot": "*",
    "colon": ":", "lgroup": "(", "rgroup": ")", "exponentialE": "e",
    "imaginaryI": "i", "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta",
}  # fmt: skip

# Unicode that NFKC would lose or change (x² -> x2), or that has a LaTeX name.
_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
    "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ",
    "≠": r"\ne ", "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ",
    "∖": r"\setminus ", "°": r"^{\circ}", "∠": r"\angle ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "′": "'", "’": "'", "“": '"', "”": '"', "∧": r"\land ", "∨": r"\lor ",
    "≈": r"\approx ", "∀": r"\forall ", "∛": r"\sqrt[3]", "⟨": r"\langle ", "⟩": r"\rangle ", "。": ".", "、": ",",
}  # fmt: skip
_SIGNS |= {
    unicodedata.lookup(f"GREEK {case} LETTER {name.upper().replace('LAMBDA', 'LAMDA')}"): f"\\{name} "
    for name in GREEK
    if not name.startswith(("var", "ell"))
    for case in (["CAPITAL"] if name[0].isupper() else ["SMALL"])
}
_RAISED = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in (0xB2, 0xB3, 0xB9, *range(0x2070, 0x2080))}
_LOWERED = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0x2080, 0x208F)}
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|normal)?|mathrm|mbox|mathbf|mathit|hbox|rm|bf)\s*\{([^{}]*)\}")
_THIN = re.compile(r"(?<![\d.,])(\d{1,3})((?:(?:\{,\}|,\\!|\\,)\s*\d{3})+)(?!\d)")
_SAID = re.compile(
    r"«?(?:(?:so|thus|therefore),? )?(?:the )?(?:final |correct )?answers? ?(?:is|are|:) ?:?»?(?= )", re.I
)
_GROUPED = re.compile(r"([+-]?\s*[1-9]\d{0,2})((?:,\d{3})+)(\.\d+)?")


def spell(text: str) -> str:
    """One spelling for what differs in looks only: Unicode, dollars, sizes, spaces; no value changes.

    `\\text{..}` becomes words in guillemets, a currency sign a leading ¤, runs of spaces one space.
    """
    text = text.replace("\x0crac", r"\frac").replace("\x08oxed", r"\boxed").strip()  # what JSON made of \f and \b
    if not text.isascii():
        text = _from_unicode(text)
    if "matrix" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z!])", lambda _: "\\", text)  # a doubled backslash; in matrices it ends a row
    text = re.sub(r"^(?:\*\*|__|`)+|(?:\*\*|__|`)+$", "", text).strip()
    text = re.sub(r"\\[\[\]()]", " ", text)
    text = re.sub(r"\\([dtc])frac", r"\\frac", text).replace(r"\dbinom", r"\binom").replace(r"\tbinom", r"\binom")
    text = re.sub(r"\\operatorname\*?\s*\{\s*([A-Za-z]+)\s*\}", r"\\\1 ", text)
    text = re.sub(r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?|\\(?:displaystyle|limits|,?\s*$)", "", text)
    text = _THIN.sub(lambda m: m.group(1) + re.sub(r"\D", "", m.group(2)), text)
    text = _TEXT.sub(lambda m: f"«{' '.join(m.group(1).replace('$', '').split())}»", text)
    text = text.replace(r"\$", "¤").replace("€", "¤").replace("£", "¤").replace(r"\%", "%").replace(r"\#", "#")
    if text.count("$") % 2 and re.match(r"-?\$", text):  # "$15" is money, "$15$" is mathematics
        text = text.replace("$", "¤", 1)
    text = text.replace("$", " ").replace(r"\!", "")
    text = re.sub(r"(?<!\\)\\[,;: >]|\\q?quad|\\(?:thin|en)space(?![A-Za-z])|~|\s+", " ", text)
    text = re.sub(r"(?<=\d) ?\^? ?\{? ?«?(?:st|nd|rd|th)»? ?\}?(?![A-Za-z])", "", text)  # 11th
    text = re.sub(r"(?<=[\d)}]) ?[xX] ?(?=\d)(?<= )|(?<=\d) [xX] (?=[\d(])", r" \\times ", text)
    text = re.sub(r"\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})", r"^{\\circ}", text)
    return _trim(" ".join(text.split()))


def join_thousands(text: str) -> str:
    """`text` with its commas gone if it is, as a whole, one grouped number (1,234,567.8); `2, 500` is a list."""
    match = _GROUPED.fullmatch(text.strip())
    return match.group(1) + match.group(2).replace(",", "") + (match.group(3) or "") if match else text


def _from_unicode(text: str) -> str:
    text = re.sub(r"√ ?(\d+|[a-z](?![a-z]))", r"\\sqrt{\1}", text)
    text = re.sub(r"√ ?\(([^()]*)\)", r"\\sqrt{\1}", text).replace("√", r"\sqrt ")
    for table, sign in ((_RAISED, "^"), (_LOWERED, "_")):
        for run in sorted(set(re.findall(f"[{''.join(table)}]+", text)), key=len, reverse=True):
            text = text.replace(run, f"{sign}{{{''.join(table[c] for c in run)}}}")
    out = []
    for c in text:
        if unicodedata.decomposition(c).startswith("<fraction>"):  # ½
            over, under = unicodedata.normalize("NFKC", c).split("⁄")
            out.append(rf"\frac{{{over}}}{{{under}}}")
        else:
            plain = unicodedata.decomposition(c).startswith(("<wide>", "<narrow>", "<font>", "<noBreak>", "<compat>"))
            out.append(_SIGNS.get(c) or (unicodedata.normalize("NFKC", c) if plain else c))  # but not a circled 2
    text = "".join(out)
    return "".join(_SIGNS.get(c, c) for c in text) if not text.isascii() else text


def _trim(text: str) -> str:
    """Without the punctuation of the sentence around it; `!` after mathematics is a factorial."""
    text = _SAID.sub("", text, count=1) if _SAID.match(text) else text
    text = text.lstrip(" :")
    while text and (text[-1] in " .,;:" or (text[-1] == "!" and not re.search(r"[\w)\]}!]!$", text))):
        text = text[:-1]
    while text.startswith("«") and text.endswith("»") and text.count("«") == 1:
        text = text[1:-1].strip()
    return text


class UnreadableError(ValueError):
    """The text is not, as a whole, mathematics that this parser knows."""


_TOKEN = re.compile(
    r"\\[A-Za-z]+|\\[{}\\|]|(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+(?![\d.^]))?|«[^»]*»|[A-Za-z]+|<=|>=|\*\*|\.\.\.|\S",
    re.ASCII,
)


_DIGITS = "0123456789"


@dataclass(frozen=True, slots=True)
class Token:
    text: str
    spaced: bool  # whether a space stands before it

    @property
    def number(self) -> bool:
        return self.text[0] in _DIGITS or (self.text[0] == "." and self.text[1:2] in _DIGITS and len(self.text) > 1)

    @property
    def letter(self) -> bool:
        return len(self.text) == 1 and self.text.isalpha()


def tokens(text: str) -> list[Token]:
    found: list[Token] = []
    for match in _TOKEN.finditer(text):
        word, spaced = match.group(0), match.start() > 0 and text[match.start() - 1] == " "
        if word.startswith("«"):
            word = word[1:-1].strip().lower() if len(word.strip("« »")) > 1 else word[1:-1].strip()
            if not (word in _WORDS or len(word) == 1 or word in {"", ",", "if", "for"}):
                for_name = found and found[-1].text in "_{"  # m_{\text{max}} is a name; other words are no mathematics
                if not for_name:
                    raise UnreadableError(f"words: {word}")
            spaced = True
            if not word:
                continue
        if word[0] == "\\" and len(word) > 1:
            name = word[1:]
            name = _ALIASES.get(name, name)
            word = (
                name if name in {"|", "<", ">", "*", "[", "]", ":", "\\{", "\\}", "(", ")", "e", "i"} else f"\\{name}"
            )
        elif word == "**":
            word = "^"
        elif word[0].isalpha() and len(word) > 1:
            if word in _WORDS:
                word = f"\\{_ALIASES.get(word, word)}"
            else:
                in_name = bool(found) and found[-1].text in "_{"
                if len(word) > 2 and not in_name and not word.isupper() and not _is_product(word):
                    raise UnreadableError(f"a word: {word}")
                found += [Token(c, spaced and k == 0) for k, c in enumerate(word)]
                continue
        found.append(Token(word, spaced))
    return found


def _is_product(word: str) -> bool:
    """Whether three or four letters are a product (abc, xyz) and no word: in order, and not one of the few words."""
    return (
        len(word) < 5
        and word.islower()
        and list(word) == sorted(set(word))
        and word not in {"any", "how", "box", "not", "most", "best"}
    )


class Reader:
    """The tokens of a text and a place in them; `ambiguous` once people would read it in another way too."""

    def __init__(self, tokens: list[Token]):
        self.tokens, self.at, self.depth, self.ambiguous = list(tokens), 0, 0, False
        self.bars = 0  # open absolute values: the next | closes one

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead].text if self.at + ahead < len(self.tokens) else ""

    def next(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1].text

    def take(self, *texts: str) -> str:
        if self.peek() not in texts or not self.peek():
            raise UnreadableError(f"{self.peek() or 'the end'!r} where {' or '.join(texts)} should be")
        return self.next()

    def fail(self) -> NoReturn:
        raise UnreadableError(f"what is {self.peek()!r} here?")

    def raw_group(self) -> str:
        self.take("{")
        depth, out = 1, ""
        while True:
            token = self.next()
            depth += (token == "{") - (token == "}")
            if not depth:
                return out
            out += token

    def inside(self, read: Callable[[], T]) -> T:
        """What `read` gives of the inside of a bracket. Raises UnreadableError beyond MAX_DEPTH."""
        bars, self.bars = self.bars, 0
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnreadableError("nested too deeply")
        node = read()
        self.depth -= 1
        self.bars = bars
        return node
