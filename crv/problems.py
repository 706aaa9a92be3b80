"""Problems in: rows of any container and any known columns, one at a time; what was understood is said before any call.

A row that is no problem is dropped and counted by reason; `columns.strict` makes it an error that names its place.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from cogpo_jax.errors import UserError
from cogpo_jax.records.reader import read_rows
from cogpo_jax.records.recognise import FIRST_ROWS, LETTERS, Recognised, recognise
from cogpo_jax.records.texts import repair_text, replace_surrogates
from crv.options import ColumnsOptions, Options
from crv.verify import grade


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem; `cot` is the original chain of thought (empty: the solver writes one), `model` who wrote it.

    `choices` are the options that `problem` ends in; `answer` is then a letter.
    """

    problem_id: str
    problem: str
    answer: str
    cot: str = ""
    model: str = ""
    source: str = ""
    difficulty: str = ""
    choices: tuple[str, ...] = ()


_BAD = ("problem_missing", "problem_is_no_text", "chain_is_no_text", "answer_missing", "answer_is_no_text")


def read_problems(
    source: str,
    repair: bool = False,
    repaired: Counter[str] | None = None,
    columns: ColumnsOptions | None = None,
    skipped: Counter[str] | None = None,
) -> Iterator[Problem]:
    """Streams the problems of `source` (`reader.read_rows`); raises UserError where none can be had from it.

    A row without an id is known by its place. `repair` mends text that lost its backslashes (`repair_text`); half
    surrogate pairs are replaced always. `repaired` counts the places by field, `skipped` the rows that are no problem
    by reason.
    """
    columns = columns or ColumnsOptions()
    repaired = Counter() if repaired is None else repaired
    skipped = Counter() if skipped is None else skipped

    def bad(place: str, reason: str) -> None:
        skipped[reason] += 1

    rows = read_rows(source, bad=None if columns.strict else bad)
    first = list(islice(rows, FIRST_ROWS))
    meaning = _recognised([row for _, row in first], columns)
    count = found = 0
    for count, (place, row) in enumerate(chain(first, rows), 1):
        example = meaning.example(row)
        if example.dropped:
            if columns.strict and example.dropped in _BAD:
                raise UserError(f"input: {place}: {example.dropped.replace('_', ' ')}; {meaning.line()}")
            skipped[example.dropped] += 1
            continue
        found += 1
        texts = {"problem_id": example.id or f"row-{count:09d}"}
        texts |= {
            name: getattr(example, name) for name in ("problem", "answer", "cot", "model", "source", "difficulty")
        }
        texts["problem"] += _shown(example.choices)
        for name, text in texts.items():
            texts[name], places = repair_text(text) if repair else replace_surrogates(text)
            if places:
                repaired[name] += places
        yield Problem(**texts, choices=example.choices)
    if not found:
        raise UserError(f"input: {source}: no problem in {count} rows, dropped: {dict(skipped)}; {meaning.line()}")


def _shown(choices: tuple[str, ...]) -> str:
    """The choices of a question as the lines under it, each with its letter."""
    lines = (
        c if re.match(r"\(?[A-Z][).:]", c) else f"{letter}. {c}" for letter, c in zip(LETTERS, choices, strict=False)
    )
    return "\n\n" + "\n".join(lines) if choices else ""


def read_questions(source: str) -> Iterator[str]:
    """Streams the problem texts of an evaluation set; answers are not needed."""
    rows = read_rows(source)
    first = list(islice(rows, FIRST_ROWS))
    meaning = recognise([row for _, row in first], cot="none", need_gold=False)
    meaning = dataclasses.replace(meaning, gold="", skip=())
    for place, row in chain(first, rows):
        example = meaning.example(row)
        if example.dropped:
            raise UserError(f"hygiene.against: {place}: no problem, question or prompt in it")
        yield example.problem


def understand(options: Options) -> Recognised:
    """What the input's columns are, before any work. Raises UserError for an input that is missing or empty, for one
    of which something would be lost, and where most golds of the first rows cannot be read."""
    columns = options.columns
    rows = read_rows(options.input, bad=None if columns.strict else lambda place, reason: None)
    first = [row for _, row in islice(rows, FIRST_ROWS)]
    meaning = _recognised(first, columns)
    examples = [example for row in first if not (example := meaning.example(row)).dropped]
    unreadable = [example.answer for example in examples if not grade.readable(example.answer)]
    if len(unreadable) * 2 > len(examples) and not options.judge:
        raise UserError(
            f"columns.gold: {len(unreadable)} of the first {len(examples)} gold answers cannot be read, as"
            f" {unreadable[0][:60]!r}; want the bare answer: give columns.gold=NAME, box(NAME) or hash(NAME);"
            f" {meaning.line()}"
        )
    if first and not examples:
        next(read_problems(options.input, columns=columns))  # says what is wrong with them, if all rows are so
    return dataclasses.replace(meaning, golds=len(examples) - len(unreadable))


def _recognised(rows: list[dict[str, object]], columns: ColumnsOptions) -> Recognised:
    return recognise(rows, preset=columns.preset, columns=columns.map, gold=columns.gold, cot=columns.cot)
