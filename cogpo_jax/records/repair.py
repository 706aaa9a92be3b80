r"""Text that lost its backslashes: `\boxed` read as an escape is a backspace and `oxed`; mended and counted."""

import re

# Escapes that no prose contains before a letter: the control character was a backslash and that letter.
_ESCAPES = {"\x07": r"\a", "\x08": r"\b", "\x0b": r"\v", "\x0c": r"\f"}

# Tab and carriage return are also honest whitespace: only before the rest of a TeX name that begins with t or r.
_TAB_NAMES = r"imes|riangle|heta(?![a-z])|ext(?:bf|it|rm)?\{|frac|herefore|au(?![a-z])|an[({^\\]|ilde\{"
_RETURN_NAMES = r"ight|ceil|floor|angle(?![a-z])|ho(?![a-z])"

_DAMAGE = re.compile(
    r"(?P<escape>[\x07\x08\x0b\x0c])(?=[A-Za-z])"
    rf"|(?P<tab>\t)(?={_TAB_NAMES})"
    rf"|(?P<cr>\r)(?={_RETURN_NAMES})"
    r"|(?P<page>[\x0b\x0c])"
    r"|(?P<stray>\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0e-\x1f\x7f])"
    r"|(?P<surrogate>[\ud800-\udfff])"
)


def repair_text(text: str) -> tuple[str, int]:
    r"""Returns the text with its damage mended, and the number of places.

    `\x08oxed` -> `\boxed`, `\x0crac` -> `\frac`, tab + `imes` -> `\times`, `\r` + `ight` -> `\right`; a lone form feed
    is a line break; other control characters (tab, line feed, carriage return excepted) and terminal colours are
    removed; half a surrogate pair becomes U+FFFD.
    """
    return _DAMAGE.subn(_mend, text)


def _mend(match: re.Match[str]) -> str:
    found = match.group()
    if match["escape"]:
        return _ESCAPES[found]
    return {"tab": r"\t", "cr": r"\r", "page": "\n", "stray": "", "surrogate": "\ufffd"}[match.lastgroup or ""]
