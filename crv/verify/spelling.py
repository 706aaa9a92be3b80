"""One spelling of an answer for what differs in looks only: Unicode, dollars, sizes, spaces, currency, thousands."""

import re
import unicodedata

_LETTERS = """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi
omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega varepsilon vartheta varphi ell"""
GREEK = frozenset(_LETTERS.split())

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
    if "matrix" not in text and "array" not in text:
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
