"""What was established about a text, and how: the JSON that travels with every response."""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from crv.verify import grade
from crv.verify.extract import final_spans, retracts

CORRECT, INCORRECT, UNKNOWN = "correct", "incorrect", "unknown"
RETRACTED = "goes on after its final answer"
Compare = Callable[[str, str], Awaitable[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Certificate:
    """`verdict` on a text against the gold answer, by which `rule`, from which final `answers`.

    `blind`: answer-blind re-solves that agreed, of how many; `votes`: of independent solutions for gold, and against.
    """

    verdict: str
    rule: str
    gold: str = ""
    answers: tuple[str, ...] = ()
    blind: tuple[int, int] | None = None
    votes: tuple[int, int] | None = None
    version: int = grade.VERSION

    def to_json(self) -> str:
        """The certificate as one line of JSON with sorted keys."""
        return json.dumps({name: getattr(self, name) for name in sorted(self.__slots__)}, ensure_ascii=False)


async def certify(gold: str, text: str, compare: Compare, choices: Sequence[str] = ()) -> Certificate:
    """Grades a whole text: correct = every stated answer is the gold one; incorrect = every one is proved to differ.

    Anything between (no stated answer, two answers, an answer taken back, a span that does not parse whole) is unknown.
    `choices`: the options of a multiple-choice question in order; an answer that is an option's text is its letter.
    """
    spans = final_spans(text)
    answers = tuple(dict.fromkeys(span.text.strip(" \t\r\n") for span in spans))
    if not spans:
        return Certificate(UNKNOWN, "no final answer", gold)
    if retracts(text, spans):
        return Certificate(UNKNOWN, RETRACTED, gold, answers)
    if len(answers) > 8:
        return Certificate(UNKNOWN, "more than eight final answers", gold, answers[:8])
    verdicts = [await compare(gold, _letter(answer, choices)) for answer in answers]
    rules = "; ".join(dict.fromkeys(rule for _, rule in verdicts))
    if all(verdict == grade.SAME for verdict, _ in verdicts):
        return Certificate(CORRECT, rules, gold, answers)
    if all(verdict == grade.DIFFERENT for verdict, _ in verdicts):
        return Certificate(INCORRECT, rules, gold, answers)
    mixed = any(verdict == grade.SAME for verdict, _ in verdicts)
    return Certificate(UNKNOWN, "several final answers" if mixed else rules, gold, answers)


def _letter(answer: str, choices: Sequence[str]) -> str:
    """The letter of the one option that `answer` spells out, or `answer` itself."""
    if not choices or grade.read(answer).kind == "choice":
        return answer
    found = [i for i, choice in enumerate(choices) if grade.compare(choice, answer)[0] == grade.SAME]
    return chr(ord("A") + found[0]) if len(found) == 1 else answer


def ladder(algebra: Compare) -> Compare:
    """Cheap rules first, `algebra` (a worker's compare) only where they ask for it."""

    async def compare(gold: str, answer: str) -> tuple[str, str]:
        verdict, rule = grade.compare(gold, answer)
        return await algebra(gold, answer) if rule == "algebra" else (verdict, rule)

    return compare
