"""What changed between two texts, word by word, as safe HTML."""

import difflib
import re
from dataclasses import dataclass

from markupsafe import Markup, escape

_WORD = re.compile(r"\S+\s*|\s+")
_EXACT = 600  # words; in longer texts the commonest words are matched only beside others, or it takes minutes
_LEAST_SHARED = 0.4  # below it marks would cover everything and say nothing


@dataclass(frozen=True)
class Difference:
    """`before` with the words that left, `after` with those that came, marked (<del>, <ins>); escaped.

    `shared`: share of words in both texts that stayed, 0 to 1; where it is small nothing is marked.
    """

    before: Markup
    after: Markup
    shared: float


def difference(before: str, after: str) -> Difference:
    """Compares two texts word by word; spaces and line breaks are kept, and do not count."""
    old, new = _WORD.findall(before), _WORD.findall(after)
    a, b = [word.strip() for word in old], [word.strip() for word in new]
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=max(len(a), len(b)) > _EXACT)
    shared = matcher.ratio()
    if shared < _LEAST_SHARED:
        return Difference(escape(before), escape(after), shared)
    left, right = [], []
    for kind, i, j, k, m in matcher.get_opcodes():
        left.append(_part("" if kind == "equal" else "del", old[i:j]))
        right.append(_part("" if kind == "equal" else "ins", new[k:m]))
    return Difference(Markup("").join(left), Markup("").join(right), shared)


def _part(tag: str, words: list[str]) -> Markup:
    text = "".join(words)
    body = text.rstrip()
    if not tag or not body:
        return escape(text)
    return Markup("<{0}>{1}</{0}>{2}").format(Markup(tag), body, text[len(body) :])
