r"""Texts from outside: damage mended, thoughts split from solutions, conversations and golds in one form.

A text that lost its backslashes (`\boxed` read as an escape is a backspace and `oxed`) is mended and counted.
"""

import ast
import functools
import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

Turn = tuple[str, str]  # role (system, user, assistant, tool), text

# No text contains a bell or a backspace before a letter: it was a backslash and that letter.
# The other escapes are also honest whitespace: they are mended before the rest of a TeX name only.
_ESCAPES = {
    "\x07": (r"\a", r"[A-Za-z]"),
    "\x08": (r"\b", r"[A-Za-z]"),
    "\t": (
        r"\t",
        r"imes|riangle|heta(?![a-z])|ext(?:bf|it|rm)?\{|frac|herefore|au(?![a-z])|ilde\{|anh(?![a-z])"
        r"|an(?=\s*[({^\\\d$]|\t(?:heta|au)|\s[xyztABCDE](?![\w-]))"  # not `an apple`
        r"|(?:(?<=[\w)}\]$]\t)|(?<=[\w)}\]$] \t))o(?=\s*(?:[-+]?\s*[\d\\{]|[A-Za-z](?![A-Za-z])))",  # not the bullet o
    ),
    "\n": (r"\n", r"eq(?![a-z.])|abla(?![a-z])|otin(?![a-z])"),
    "\x0b": (r"\v", r"ec(?![a-z])|ar(?:phi|epsilon|theta)|dots|ee(?![a-z])|ert"),
    "\x0c": (r"\f", r"rac|orall|loor|lat(?![a-z])|box\{"),
    "\r": (r"\r", r"ight|ceil|floor|angle(?![a-z])|ho(?![a-z])"),
}

_DAMAGE = re.compile(
    "|".join(f"{re.escape(character)}(?={names})" for character, (_, names) in _ESCAPES.items())
    + r"|(?P<page>[\x0b\x0c])"
    r"|(?P<stray>\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0e-\x1f\x7f])"
    r"|(?P<surrogate>[\ud800-\udfff])"
)

# Most texts have no damage, and one character class is searched at 412 MB/s, the alternatives above at 15 MB/s.
_SUSPECT = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]|\n(?:eq|abla|otin)")

_HALF_PAIR = re.compile(r"[\ud800-\udfff]")


def repair_text(text: str) -> tuple[str, int]:
    r"""Returns the text with its damage mended, and the number of places.

    `\x08oxed` -> `\boxed`, `\x0crac` -> `\frac`, tab + `imes` -> `\times`, `\r` + `ight` -> `\right`; a lone form feed
    is a line break; other control characters (tab, line feed, carriage return excepted) and terminal colours are
    removed; half a surrogate pair becomes U+FFFD.
    """
    return _DAMAGE.subn(_mend, text) if _SUSPECT.search(text) else (text, 0)


def replace_surrogates(text: str) -> tuple[str, int]:
    """Half surrogate pairs, which JSON can spell and no file can hold, as U+FFFD; and how many there were."""
    return _HALF_PAIR.subn("\ufffd", text)


def _mend(match: re.Match[str]) -> str:
    if match.lastgroup is None:
        return _ESCAPES[match.group()][0]
    return {"page": "\n", "stray": "", "surrogate": "\ufffd"}[match.lastgroup]


def text_of(value: Any) -> str:
    """A cell as text: "" for null and NaN; numbers in plain digits (0.00001, never 1e-05); a turn by its text.

    Raises ValueError for what is no text.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bytes):  # a binary column of Parquet
        return value.decode()
    if isinstance(value, bool):
        raise ValueError(f"{value}: want a text")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal):
        if not math.isfinite(value):
            return ""
        number = value if isinstance(value, Decimal) else Decimal(repr(value))
        return format(number, "f") if abs(number.adjusted()) < 60 else str(number)
    if isinstance(value, dict | list):
        turns = turns_of(value)
        if len(turns) == 1:
            return turns[0][1]
        raise ValueError(f"{len(turns)} turns: want one text")
    raise ValueError(f"{type(value).__name__}: want a text")


_ROLES = dict.fromkeys(("user", "human", "prompter", "question"), "user")
_ROLES |= dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "chatbot", "answer"), "assistant")
_ROLES |= {"system": "system", "developer": "system"}
_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
TURN_KEYS = frozenset(("role", "from", "speaker", "content", "value", "text", *_THOUGHT_KEYS))
_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant|System): ?")


def turns_of(value: Any, role: str = "user") -> list[Turn]:
    """A conversation in any of the usual forms as (role, text) turns; a plain text is one turn of `role`.

    role/content or from/value; one turn or a list; lists side by side (`{"role": [...], "content": [...]}`); content in
    parts; a transcript (`\n\nHuman: ... \n\nAssistant: ...`). A turn's `reasoning_content` becomes its `<think>`.
    Raises ValueError naming what is no turn.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return list(_transcript(value)) if _TRANSCRIPT.match(value) else [(role, value)]
    if isinstance(value, dict):
        columns = [value.get(name) for name in ("role", "from", "content", "value")]
        lists = [column for column in columns if isinstance(column, list)]
        if len(lists) == 2 and any(isinstance(column, list) for column in columns[:2]):
            value = [{"role": who, "content": what} for who, what in zip(*lists, strict=False)]
        else:
            return (
                turns_of(value["messages"], role) if isinstance(value.get("messages"), list) else [_turn(value, role)]
            )
    if not isinstance(value, list):
        raise ValueError(f"{type(value).__name__}: must be a text or a list of chat messages")
    return [_turn(turn, role) for turn in value]


def _transcript(text: str) -> Iterator[Turn]:
    pieces = _TRANSCRIPT.split(text)
    for who, said in zip(pieces[1::2], pieces[2::2], strict=True):
        yield {"Human": "user", "Assistant": "assistant", "System": "system"}[who], said.strip()


def _turn(turn: Any, role: str) -> Turn:
    if not isinstance(turn, dict):
        raise ValueError(f"{str(turn)[:60]!r}: a message must have a text role and content")
    who = next((turn[name] for name in ("role", "from", "speaker") if isinstance(turn.get(name), str)), role)
    said = next((turn[name] for name in ("content", "value", "text") if turn.get(name) is not None), None)
    thought = next((turn[name] for name in _THOUGHT_KEYS if isinstance(turn.get(name), str) and turn[name]), "")
    if isinstance(said, list):
        said = "".join(_part(part) for part in said)
    if said is None and thought:
        said = ""
    if not isinstance(said, str) or not any(name in turn for name in ("role", "from", "speaker")):
        raise ValueError(f"{str(turn)[:60]}: a message must have a text role and content")
    return _ROLES.get(who.lower(), who.lower()), join_thought(thought, said) if thought else said


def _part(part: Any) -> str:
    """A piece of a content in parts; thinking parts get think tags."""
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    said = part.get("text", part.get("thinking", part.get("content"))) if isinstance(part, dict) else None
    if not isinstance(said, str) or kind not in ("text", "thinking", "reasoning", "input_text", "output_text"):
        raise ValueError(f"a content part of type {kind}: only texts can be read")
    return said if kind.endswith("text") else join_thought(said, "")


_THINK = r"(think(?:ing)?|thoughts?|reasoning)"
THOUGHT_OPENS = re.compile(  # how models mark a thought, in the text itself
    rf"<(?:seed:)?{_THINK}>|<\|(?:begin_of_thought|start_thinking|channel\|>analysis<\|message)\|>|\[THINK\]|◁think▷",
    re.I,
)
THOUGHT_CLOSES = re.compile(
    rf"</(?:seed:)?{_THINK}>|<\|(?:end_of_thought|end_thinking|channel\|>final<\|message)\|>|\[/THINK\]|◁/think▷", re.I
)
_SOLUTION = re.compile(
    r"\s*(?:<(answer|solution|response|output)>(?P<tagged>.*)</\1>|"
    r"<\|begin_of_solution\|>(?P<r1>.*?)(?:<\|end_of_solution\|>|$))\s*",
    re.I | re.S,
)
_ANSWER_LAST = re.compile(r"(?P<thought>.*?)<(answer|solution)>(?P<solution>.*?)</\2>\s*", re.I | re.S)


def split_thought(text: str) -> tuple[str, str]:
    """(thought, solution) along the tags of any family, stripped of them; ("", text) where no tags part the two."""
    text = text.strip()
    if close := THOUGHT_CLOSES.search(text):
        thought, solution = THOUGHT_OPENS.sub("", text[: close.start()], count=1), text[close.end() :]
        if whole := _SOLUTION.fullmatch(solution):
            solution = whole["tagged"] if whole["r1"] is None else whole["r1"]
    elif not THOUGHT_OPENS.search(text) and (last := _ANSWER_LAST.fullmatch(text)):
        thought, solution = last["thought"], last["solution"]
    else:
        return "", text
    thought, solution = thought.strip(), solution.strip()
    return (thought, solution) if thought and solution else ("", text)


def has_tags(text: str) -> bool:
    """Whether the text has tags of a thought."""
    return bool(THOUGHT_CLOSES.search(text))


def join_thought(thought: str, solution: str) -> str:
    """One text of the two, which `split_thought` takes apart again; of one where the other is empty."""
    return f"<think>\n{thought.strip()}\n</think>\n\n{solution.strip()}".strip() if thought.strip() else solution


_HASHES = re.compile(r"(?:^|\n|\s)####\s*(?P<gold>[^\n]+)")
_CALCULATIONS = re.compile(r"<<[^<>]*>>")
_PAIRS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_STATED = re.compile(
    r"(?:answer\s*(?:is|:|=)|答案\s*(?:是|为|：|:))\s*[:：]?\s*(?P<gold>[^\n]{1,200}?)\s*[.。]?\s*$", re.I
)


def split_hashes(text: str) -> tuple[str, str]:
    """(chain, gold) of a text that ends in `#### GOLD`, as in GSM8K; calculator marks `<<...>>` are left out."""
    found = list(_HASHES.finditer(text)) if "####" in text else []
    if not found:
        return text, ""
    return _CALCULATIONS.sub("", text[: found[-1].start()]).strip(), unwrap_gold(found[-1]["gold"])


def boxed(text: str) -> str:
    r"""What the last `\boxed{...}` holds, "" where there is none."""
    for start in reversed([match.end() for match in _BOX.finditer(text)]):
        depth = 1
        for at in range(start, min(len(text), start + 2000)):
            if text[at - 1] != "\\":
                depth += {"{": 1, "}": -1}.get(text[at], 0)
            if not depth:
                return text[start:at].strip()
    return ""


def stated_answer(text: str) -> str:
    """What a text states as its answer: its last box; else what follows `####`, an answer tag or `answer is`."""
    if gold := boxed(text):
        return unwrap_gold(gold)
    if gold := split_hashes(text)[1]:
        return gold
    thought, solution = split_thought(text)
    lines = solution.strip().splitlines()
    if lines and (stated := _STATED.search(lines[-1])):
        return unwrap_gold(stated["gold"])
    return unwrap_gold(solution) if thought and len(lines) == 1 and len(solution) <= 60 else ""


def unwrap_gold(text: str) -> str:
    r"""A gold answer without its wrapping: `####`, `<<...>>`, `$...$`, `\boxed{...}`, a JSON list of one text."""
    text = _CALCULATIONS.sub("", text).strip()
    before = None
    while text != before:
        before = text
        if text.startswith("####"):
            text = text[4:].strip()
        for opening, closing in _PAIRS:
            inner = text[len(opening) : -len(closing)]
            if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
                text = inner.strip() if opening not in inner and closing not in inner else text
        box = _BOX.match(text)
        if box and text.endswith("}") and boxed(text) == text[box.end() : -1].strip():
            text = text[box.end() : -1].strip()
        if text.startswith('["') and text.endswith('"]'):
            try:
                items = json.loads(text)
            except ValueError:
                break
            text = items[0].strip() if len(items) == 1 and isinstance(items[0], str) else text
    return text


_STEP = re.compile(r"([^.\[\]]+)|\[([^\]]*)\]")


@functools.lru_cache(1024)
def _steps(path: str) -> list[list[tuple[str | None, str | None]]]:
    """The steps (name, selector) of each alternative of a path."""
    return [[(step[1] and step[1].strip(), step[2]) for step in _STEP.finditer(p.strip())] for p in path.split("|")]


_VERIFIED = re.compile(r"verif|correct|is_right|passed", re.I)


def find_path(row: dict[str, Any], path: str) -> Any:
    """What stands at a path of a row, None where nothing does: `a.b`, `a[0]`, `a[-1]`, `a[user]` (the last turn of a
    role), `a[verified]` (the first item that a list or field of flags calls right, else the first); `p|q`: the first
    of the two that is there. A text on the way that holds JSON is read."""
    if path in row or not path:
        return row.get(path)
    for steps in _steps(path):
        value: Any = row
        for i, (name, selector) in enumerate(steps):
            if isinstance(value, str):
                value = json_of(value)
            if name is not None:
                value = value.get(name) if isinstance(value, dict) else None
            else:
                value = _selected(value, selector or "", row, steps[i - 1][0] or "")
        if value is not None and value != "":
            return value
    return None


def json_of(text: str) -> Any:
    """The object or list that a text holds as JSON or as a Python literal; None where it holds none."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    for read in (functools.partial(json.loads, parse_float=Decimal), ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _selected(value: Any, selector: str, row: dict[str, Any], name: str) -> Any:
    if isinstance(value, dict) and selector in ("user", "assistant", "system"):
        try:
            value = [{"role": role, "content": text} for role, text in turns_of(value)]
        except ValueError:
            return None
    if not isinstance(value, list) or not value:
        return None
    if re.fullmatch(r"-?\d+", selector):
        return value[int(selector)] if -len(value) <= int(selector) < len(value) else None
    if selector in ("user", "assistant", "system"):
        turns = [turn for turn in value if isinstance(turn, dict)]
        role = [_ROLES.get(str(t.get("role", t.get("from", ""))).lower(), "") for t in turns]
        return next((turn for turn, who in zip(turns[::-1], role[::-1], strict=True) if who == selector), None)
    if selector == "verified":
        flags: list[Any] = [
            any(_VERIFIED.search(key) and flag is True for key, flag in item.items()) if isinstance(item, dict) else 0
            for item in value
        ]
        for column, marks in row.items():
            if isinstance(marks, list) and len(marks) == len(value) and _VERIFIED.search(column) and column != name:
                flags = [flag or mark is True for flag, mark in zip(flags, marks, strict=True)]
        return value[flags.index(True)] if True in flags else value[0]
    return None
