"""Where a text states its final answer: whole spans, never a prefix of one.

One grammar serves the grader, which reads what is stated, and the blinder, which hides it. Every scan here is linear in
the text's length: a model's text may be hostile (10 MB of braces).
"""

import re
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, zip_longest

from crv.verify import grade

MAX_SPAN = 400  # characters; a longer "answer" is prose
MAX_TEXT = 1_000_000  # characters; a longer text is not read at all
MAX_SPANS = 64  # a text that states more final answers states none

_BOXED = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_ONE_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]+)?|\\[A-Za-z]+|[A-Za-z]")  # \boxed 2
_TAG = re.compile(rf"<(final_?answer|answer)>(.{{0,{MAX_SPAN}}}?)</\1>", re.I | re.S)
_MARK = r"(?:\*\*|__)?"
_PHRASE = re.compile(
    # a heading: "### Final Answer", "**Answer:**" alone on its line
    rf"^[ \t]*(?:#{{1,6}}[ \t]*)?{_MARK}(?:the[ \t]+)?(?:final[ \t]+|correct[ \t]+)?answers?[ \t]*[:：]?{_MARK}"
    r"[ \t]*[:：]?[ \t]*\r?\n[ \t\r\n]*"
    # "the answer to this problem is", "Answer: ", "**Answer**: ", "Ans: ", "the correct option is"
    rf"|\b(?:ans(?:wers?)?|correct (?:option|choice)){_MARK}"
    rf"(?:(?:[ \t]+(?:to|of|for)[ \t][^\n.:;$\\]{{1,60}}?)?[ \t\r\n]+(?:is|are|was|would be|must be|equals)\b{_MARK}"
    rf"(?:[ \t]+(?:therefore|thus|then|simply|just|indeed|clearly)\b)?[ \t]*[:：]?|[ \t]*[:：=])"
    rf"{_MARK}[ \t\r\n]*(?:(?:option|choice)[ \t]+(?=\(?[A-H]\b))?"
    r"|^[ \t]*####[ \t]*",
    re.I | re.M,
)
_HINT = re.compile(r"answer|ans\b|correct (?:option|choice)|####")  # a line without one, in lower case, has no phrase
_RETRACTION = re.compile(
    r"\b(?:incorrect|wrong|mistake|error|however|but|wait|actually|instead|not|re-?check|re-?consider"
    r"|should(?: have)? be(?:en)?|correct(?:ed|ion)|contradict\w*|impossible|doesn'?t|isn'?t)\b",
    re.I,
)
_TAIL = 200  # characters of text after the last final answer that are still a closing remark
_LEAD = re.compile(
    r"(?:(?:So|Therefore|Thus|Hence|Finally),?\s+the\s+|The\s+|Therefore,\s+|\*\*)?(?:[Ff]inal\s+|[Cc]orrect\s+)?\Z"
)
_INNER = re.compile(r"[\s*]*(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?", re.I)
_BREAK = re.compile(r"\n|(?<=[.!?])\s|(?<=[.!?])(?=[A-Z\\])")
_JOIN = re.compile(r"(?:\s|\$|,|\\q?quad|\\[,; ]|\\text\{\s*(?:and|or)\s*\}|\band\b|\bor\b){0,20}")
_STOP = re.compile(r"[\n$.!?;]|<[/|]")  # a closing tag, or a token of the chat format, ends a sentence
_NAMED = re.compile(r"^\$?(?:[A-Za-z](?:_\w|_\{\w+\}|\(\w\))?)? ?= ?")
_OPENERS = {"\\[": "\\]", "$$": "$$", "\\(": "\\)"}


@dataclass(frozen=True, slots=True)
class Span:
    """One stated final answer, `text` (`whole[start:end]`, or several boxes in one sentence joined by commas).

    The statement around it goes from `statement` to about `end`.
    """

    start: int
    end: int
    statement: int
    text: str


def final_spans(text: str) -> list[Span]:
    """All final answers that `text` states, in order: boxes, "the answer is ..", "Answer: ..", "#### ..", answer tags,
    headings with the line below.

    Of nested statements the innermost counts. Spans are whole: up to the end of the sentence or line, a dollar group
    never cut. Texts over MAX_TEXT, or with more than MAX_SPANS answers, give none.
    """
    if len(text) > MAX_TEXT:
        return []
    spans = _statements(text, MAX_SPANS)
    return spans or []


def _statements(text: str, limit: int | None = None) -> list[Span] | None:
    """The final answers in the order of the text; None for more than `limit` boxes, tags or phrases."""
    most = None if limit is None else limit + 1
    phrases = list(islice(_phrases(text), most))
    openings = list(islice(_BOXED.finditer(text), most)) if "\\" in text else []
    marked = list(islice(_TAG.finditer(text), most)) if "answer>" in text.lower() else []
    if limit is not None and max(len(phrases), len(openings), len(marked)) > limit:
        return None
    boxes = list(_boxed(text, openings))
    starts = [box.start for box in boxes]
    marked = [m for m in marked if m.group(2).strip()]
    others = [Span(m.start(2), m.end(2), _statement_start(text, m.start()), m.group(2)) for m in marked]
    begins: dict[int, int] = {}  # where the words before each answer start
    for match, following in zip_longest(phrases, phrases[1:]):
        start, end = match.end(), _sentence_end(text, match.end())
        if following and start <= following.start() and _INNER.fullmatch(text, start, following.start()):
            continue  # "Final Answer: The final answer is 4": the inner one is the statement
        k = bisect(starts, match.start())  # the box before, and the one after
        if (k and match.start() < boxes[k - 1].end) or any(start <= s < end for s in starts[k : k + 2]):
            continue  # the box is the answer, or the words stand inside one
        if end > start:
            others.append(Span(start, end, _statement_start(text, match.start()), text[start:end]))
            begins[start] = match.start()
    spans = sorted([*others, *_joined(text, boxes)], key=lambda span: span.start)
    if len(spans) < 2:
        return spans
    kept = []
    for span, inner in zip_longest(spans, spans[1:]):
        if (
            inner and inner.end <= span.end
        ):  # "4. The answer is 5" says two things, <answer>The answer is 5</answer> one
            begin = begins.get(inner.start, span.start)
            if inner.start in starts or _INNER.fullmatch(text, span.start, max(span.start, begin)):
                continue
        kept.append(span)
    return kept


def _phrases(text: str) -> Iterator[re.Match[str]]:
    """What _PHRASE finds; most lines are passed over at a tenth of its cost."""
    lowered = text.lower()
    if len(lowered) != len(text):
        yield from _PHRASE.finditer(text)
        return
    end = -1
    for hint in _HINT.finditer(lowered):
        if hint.start() <= end:
            continue
        line, end = text.rfind("\n", 0, hint.start()) + 1, text.find("\n", hint.start())
        end = end if end >= 0 else len(text)
        for match in _PHRASE.finditer(text, line, min(len(text), end + MAX_SPAN)):
            if match.start() > end:
                break
            yield match


def _joined(text: str, boxes: list[Span]) -> list[Span]:
    """Boxes with nothing but a comma, "and" or "or" between them are one answer."""
    out: list[Span] = []
    for box in boxes:
        between = _JOIN.fullmatch(text, out[-1].end + 1, box.start) if out else None
        opening = text.rfind("\\", out[-1].end, box.start) if out else -1
        between = _JOIN.fullmatch(text, out[-1].end + 1, opening) if out and opening > out[-1].end else None
        if between and re.search(r",|and|or", between.group(0)):
            sign = " or " if re.search(r"\bor\b", between.group(0)) else ", "
            out[-1] = replace(out[-1], end=box.end, text=out[-1].text + sign + box.text)
        else:
            out.append(box)
    return out


def retracts(text: str, spans: list[Span]) -> bool:
    """Whether the text takes its last final answer back, or reasons on after it."""
    if not spans:
        return False
    tail = text[spans[-1].end :]
    return len(tail.strip()) > _TAIL or bool(_RETRACTION.search(tail))


def cut_final_statement(text: str) -> tuple[str, str]:
    """(body, final statement): the sentence that states the last final answer, and all after it, is cut off.

    Without a final answer the statement is empty.
    """
    spans = final_spans(text)
    if not spans:
        return text.rstrip(), ""
    cut = spans[-1].statement
    return text[:cut].rstrip(), text[cut:].strip()


def hide_final_answers(text: str, gold: str = "") -> str:
    """The text without any sentence that states a final answer: what an answer-blind reader may see.

    Lines that are nothing but the gold answer go too, and so does a box that never closes, with all after it. A text
    over MAX_TEXT is hidden whole.
    """
    if len(text) > MAX_TEXT:
        return ""
    if spans := _statements(text):
        kept, position = [], 0
        for span in spans:
            kept.append(text[position : max(position, span.statement)])
            position = max(position, _sentence_end(text, span.end))
        text = "".join([*kept, text[position:]])
    if opening := _BOXED.search(text):
        text = text[: _statement_start(text, opening.start())]
    lines = text.split("\n")
    if gold:
        lines = [line for line in lines if not _only(line, gold)]
    return "\n".join(lines).rstrip()


def _only(line: str, gold: str) -> bool:
    """Whether a line is the gold answer and nothing else, or `x =` before it; a calculation is a step, and stays."""
    line = _NAMED.sub("", line.strip(), count=1)
    return 0 < len(line) <= MAX_SPAN and "=" not in line and grade.compare(gold, line)[0] == grade.SAME


_SPEAKS_OF_ANSWER = re.compile(
    r"\b(?:given|provided|expected|reference|gold|stated|known|official|desired|target|intended)\s+"
    r"(?:final\s+|correct\s+)?(?:answer|solution|result)\b"
    r"|\banswer\s+(?:that\s+)?(?:is|was|has been|we are|we were)?\s*(?:given|provided|supplied|told|expected)\b"
    r"|\banswer key\b"
    r"|\b(?:since|because|as|given that|knowing|know|told|note) (?:that )?the (?:final |correct )?answer"
    r" (?:is|must|should)\b"
    r"|\bthe (?:correct )?answer should be\b|\bmatch(?:es|ing)? the (?:\w+ )?answer\b"
    r"|\b(?:consistent|agrees?|agreement|in line|not match) with the (?:\w+ )?answer\b"
    r"|\b(?:problem|question|prompt) (?:says|states|gives|tells us) (?:that )?the answer\b",
    re.I,
)


def speaks_of_answer(text: str) -> str:
    """The words in which a text gives away that it was told the answer ("the given answer"), or an empty string."""
    match = _SPEAKS_OF_ANSWER.search(text[:MAX_TEXT])
    return match.group(0) if match else ""


def _boxed(text: str, boxes: list[re.Match[str]]) -> Iterator[Span]:
    """The content of each balanced box of at most MAX_SPAN characters, and of boxes without braces; of boxes in boxes
    the innermost. An unclosed one gives none."""
    held: Span | None = None
    closing = _closing(text, {match.end() for match in boxes})
    for match in boxes:
        start, end = match.end(), closing.get(match.end(), -1)
        if text[start : start + 1] != "{":
            token = _ONE_TOKEN.match(text, start)
            end = token.end() if token else -1
        else:
            start += 1
        if end < 0 or end - start > MAX_SPAN:
            continue
        span = Span(start, end, _statement_start(text, match.start()), text[start:end])
        if held and not (held.start <= match.start() < held.end):
            yield held
        held = replace(span, statement=held.statement) if held and match.start() < held.end else span
    if held:
        yield held


def _closing(text: str, openings: set[int]) -> dict[int, int]:
    """Where the braces that open at `openings` close."""
    closes: dict[int, int] = {}
    open_braces: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text) if openings else ():
        if match.group(0) == "{":
            open_braces.append(match.start())
        elif match.group(0) == "}" and open_braces:
            opening = open_braces.pop()
            if opening in openings:
                closes[opening] = match.start()
    return closes


def _sentence_end(text: str, start: int) -> int:
    """Where the sentence that goes on at `start` ends (line end, or a full stop that is no decimal point)."""
    limit = min(len(text), start + MAX_SPAN)
    dollars = False
    i = start
    opener = next((o for o in _OPENERS if text.startswith(o, start)), "")
    if opener and (close := text.find(_OPENERS[opener], start + 2, limit)) != -1:
        i = close + 2  # a display may go over several lines
    while stop := _STOP.search(text, i, limit):
        i, c = stop.start(), stop.group(0)
        if c == "\n" or c[0] == "<":
            return i
        if c == "$" and text[i - 1 : i] != "\\":
            dollars = not dollars and text.find("$", i + 1, limit) != -1
        elif c == "." and dollars and text[i + 1 : i + 2] == "$" and not text[i + 2 : i + 3].strip():
            return i + 2  # "$4.$": the full stop inside the mathematics
        elif c in ".!?;" and not dollars:
            following = text[i + 1 : i + 2]
            ends = c == ";" or not following or following in "\"')*$" or following.isspace() or following.isupper()
            if ends and not (c == "!" and text[i - 1 : i].isalnum()):  # "5! ways" is a factorial
                return i
        i += 1
    return limit


def _statement_start(text: str, position: int) -> int:
    """The start of the sentence in which `position` stands, within MAX_SPAN characters."""
    low = max(0, position - MAX_SPAN)
    lead = _LEAD.search(text, max(0, position - 40), position)
    if lead and (lead.end() > lead.start() or text[position : position + 1] == "A"):
        return lead.start()  # "... = 35 The answer is 35": a capital begins the statement, stop or not
    start = low
    for match in _BREAK.finditer(text, low, position):
        start = match.end()
    while start < position and text[start].isspace():
        start += 1
    return start
