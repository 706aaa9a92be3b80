"""Where a text states its final answer: whole spans, never a prefix of one.

Every scan here is linear in the text's length: a model's text may be hostile (10 MB of braces).
"""

import re
from dataclasses import dataclass
from itertools import islice

MAX_SPAN = 400  # characters; a longer "answer" is prose
MAX_TEXT = 1_000_000  # characters; a longer text is not read at all
MAX_SPANS = 64  # a text that states more final answers states none

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_PHRASE = re.compile(
    r"\banswers?\b(?:\s+(?:is|are|was|would be|must be|equals)\b[ \t]*:?|\s*:)(?:\*\*)?[ \t\r\n]*|^[ \t]*####[ \t]*",
    re.I | re.M,
)
_RETRACTION = re.compile(
    r"\b(?:incorrect|wrong|mistake|error|however|but|wait|actually|instead|not|re-?check|re-?consider"
    r"|should(?: have)? be(?:en)?|correct(?:ed|ion)|contradict\w*|impossible|doesn'?t|isn'?t)\b",
    re.I,
)
_TAIL = 200  # characters of text after the last final answer that are still a closing remark
_LEAD = re.compile(
    r"(?:(?:So|Therefore|Thus|Hence|Finally),?\s+the\s+|The\s+|Therefore,\s+|\*\*)?(?:[Ff]inal\s+|[Cc]orrect\s+)?$"
)
_BREAK = re.compile(r"\n|(?<=[.!?])\s|(?<=[.!?])(?=[A-Z\\])")


@dataclass(frozen=True, slots=True)
class Span:
    """One stated final answer: `text[start:end]` is the answer, the statement around it begins at `statement`."""

    start: int
    end: int
    statement: int
    text: str


def final_spans(text: str) -> list[Span]:
    """All final answers that `text` states, in order: `\\boxed{..}`, "the answer is ..", "Answer: ..", "#### ..".

    A phrase whose answer is boxed gives the box's content. Spans are whole: up to the end of the sentence or line, a
    dollar group never cut. Texts over MAX_TEXT, or with more than MAX_SPANS answers, give none.
    """
    if len(text) > MAX_TEXT:
        return []
    openings, phrases = (list(islice(p.finditer(text), MAX_SPANS + 1)) for p in (_BOXED, _PHRASE))
    if max(len(openings), len(phrases)) > MAX_SPANS:
        return []
    boxes = _boxed(text, openings)
    spans = [Span(start, end, _statement_start(text, start), text[start:end]) for start, end in boxes]
    starts = [start for start, _ in boxes]
    for match in phrases:
        start, end = match.end(), _sentence_end(text, match.end())
        if any(start <= s < end for s in starts) or any(s <= match.start() < e for s, e in boxes):
            continue  # the box is the answer, or the words stand inside one
        if end > start:
            spans.append(Span(start, end, _statement_start(text, match.start()), text[start:end]))
    return sorted(spans, key=lambda span: span.start)


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


def hide_final_answers(text: str) -> str:
    """The text without any sentence that states a final answer: what an answer-blind reader may see."""
    kept, position = [], 0
    for span in final_spans(text):
        kept.append(text[position : max(position, span.statement)])
        position = max(position, _sentence_end(text, span.end))
    return "".join([*kept, text[position:]]).rstrip()


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


def _boxed(text: str, openings: list[re.Match[str]]) -> list[tuple[int, int]]:
    """(start, end) of the content of each balanced box of at most MAX_SPAN characters; an unclosed one gives none."""
    found = []
    for match in openings:
        depth, i, limit = 1, match.end(), min(len(text), match.end() + MAX_SPAN)
        while i < limit and depth:
            if text[i] == "\\":
                i += 1
            elif text[i] in "{}":
                depth += 1 if text[i] == "{" else -1
            i += 1
        if not depth:
            found.append((match.end(), i - 1))
    return found


def _sentence_end(text: str, start: int) -> int:
    """Where the sentence that goes on at `start` ends (line end, or a full stop that is no decimal point)."""
    limit = min(len(text), start + MAX_SPAN)
    dollars = False
    i = start
    while i < limit:
        c = text[i]
        if c == "\n":
            break
        if c == "$" and text[i - 1 : i] != "\\":
            dollars = not dollars and text.find("$", i + 1, limit) != -1
        elif c in ".!?;" and not dollars:
            following = text[i + 1 : i + 2]
            ends = c == ";" or not following or following in "\"')*$" or following.isspace() or following.isupper()
            if ends and not (c == "!" and text[i - 1 : i].isalnum()):  # "5! ways" is a factorial
                break
        i += 1
    return i


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
