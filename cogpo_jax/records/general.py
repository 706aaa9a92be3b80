"""What plain column names mean where no preset fits: the general rules for problems and for preference pairs."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from cogpo_jax.records.presets import CONTEXT_NAMES, GOLD_NAMES, KEY_NAMES, PLAIN_NAMES, PROBLEM_NAMES, Preset
from cogpo_jax.records.texts import find_path, has_tags, unwrap_gold

Row = dict[str, Any]

_THOUGHT = re.compile(r"thought|thinking|reasoning|rationale|trajector|deliberat", re.I)
_COT = re.compile(
    r"(?:^|_)cots?(?:_content)?$|chain_of_thought", re.I
)  # a thought beside a solution; alone it is the whole chain
_SOLUTION = re.compile(r"solution|response|output|completion|attempt|generation|explanation|generated|^reply", re.I)
_REPLY = re.compile(r"^content$|^assistant$|(?:model|llm|assistant)_answer$", re.I)  # beside a thought, or a problem
_CHAIN = re.compile(rf"{_THOUGHT.pattern}|{_SOLUTION.pattern}|(?:^|_)cot|cot\b|chain", re.I)
_NO_CHAIN = re.compile(
    r"problem|question|prompt|instruct|system|query|context|test|code|meta|type|source|reason$", re.I
)
_TEXT_KEYS = ("response", "answer", "text", "content", "solution", "output", "completion")
_SCORE_KEYS = ("overall_score", "score", "rating", "reward", "pm_score")
_PROSE = 20  # words; a longer answer is a text that has one, not the answer


def with_aliases(rows: Sequence[Row], there: Sequence[str]) -> tuple[list[Row], dict[str, str]]:
    """The rows, in which a column also goes by its plain name (lower case, _ for spaces); and plain name -> column."""
    plain = {re.sub(r"[\s-]+", "_", name.strip().lower()): name for name in reversed(there)}
    alias = {name: column for name, column in plain.items() if name not in there}
    return [row | {name: row.get(column) for name, column in alias.items()} for row in rows], alias


def present(rows: Sequence[Row], path: str) -> str:
    """The path, of a `+` those parts that are there; "" where no row has it."""
    if "+" in path:
        return "+".join(part for part in path.split("+") if present(rows, part))
    return path if path and any(find_path(row, path) is not None for row in rows) else ""


def is_text(rows: Sequence[Row], path: str) -> bool:
    """Whether some row has a text there that is not empty."""
    return any(isinstance(value := find_path(row, path), str) and value.strip() for row in rows)


def looks_like_chain(name: str, values: Sequence[Any]) -> bool:
    """Whether a column holds chains of thought: by its name, its length or its tags."""
    values = [value[0] if isinstance(value, list) and value else value for value in values]
    texts = [str(value) for value in values if isinstance(value, str | dict) and value]
    if any(has_tags(text) for text in texts):
        return True
    typical = sorted(map(len, texts))[len(texts) // 2] if texts else 0
    if _NO_CHAIN.search(name):
        return False
    return typical > 600 or (bool(_CHAIN.search(name)) and typical > 20)


def plain_columns(rows: Sequence[Row]) -> dict[str, str]:
    """Role -> column of what may stand beside a problem: id, model, source, difficulty, choices."""
    found = {role: next((n for n in names if present(rows, n)), "") for role, names in PLAIN_NAMES.items()}
    if any(isinstance(find_path(row, found["choices"]), str) for row in rows):
        del found["choices"]  # one text: it is not known where a choice ends
    return {role: name for role, name in found.items() if name}


def general_problem(rows: Sequence[Row], there: Sequence[str], alias: dict[str, str]) -> Preset:
    """The rule for plain names, known or not: a problem, a gold, a chain of one or two columns."""
    named = [name for name in PROBLEM_NAMES if is_text(rows, name) or present(rows, f"{name}[user]")]
    problem = alias.get(named[0], named[0]) if named else ""
    for name in ("messages", "conversations", "conversation"):
        if not problem and present(rows, f"{name}[user]"):
            problem = f"{name}[user]"
    ends = [name for name in there if re.search(r"[\s_-](?:question|problem)$", name, re.I) and is_text(rows, name)]
    problem = problem or (ends[0] if len(ends) == 1 else "")
    keys = KEY_NAMES if "choices" in plain_columns(rows) else ()
    golds = [name for name in (*GOLD_NAMES, *keys) if present(rows, name) and not _is_prose(rows, name)]
    gold = next((n for n in golds if not all(isinstance(find_path(row, n), bool | None) for row in rows)), "")
    gold = alias.get(gold, gold)
    texts = [name for name in there if name not in (problem, gold) and is_text(rows, name)]
    rest = [name for name in texts if not _NO_CHAIN.search(name)]
    thought = next((name for name in rest if _THOUGHT.search(name)), "")
    solutions = [name for name in rest if _SOLUTION.search(name) and name != thought]
    short = next((name for name in solutions if name.lower() == "solution"), "")
    if not gold and short and _length(rows, short) <= 60 and not _is_prose(rows, short):
        gold = short  # as in s1K
        solutions.remove(short)
    prose = [name for name in texts if name.lower() in GOLD_NAMES and name not in (gold, problem)]
    solutions += [name for name in [*filter(_REPLY.search, texts), *prose] if name != thought]
    solution = next((name for name in solutions if thought or _length(rows, name) > 20), "")
    if solution and not thought:
        thought = next((name for name in rest if _COT.search(name) and name != solution), "")
    if not thought and not solution:
        solution = next((path for name in there if (path := _of_several(rows, name))), "")
    if not thought and not solution and problem:
        for name in ("messages", "conversations"):
            solution = f"{name}[assistant]" if not solution and present(rows, f"{name}[assistant]") else solution
        others = [name for name in rest if _COT.search(name) and _length(rows, name) > 60]
        solution = solution or next(iter(others), "")
    if thought and any(has_tags(str(row.get(solution))) for row in rows if solution):
        thought = ""
    before = next((alias.get(name, name) for name in CONTEXT_NAMES if problem and is_text(rows, name)), "")
    if before and _is_apart(rows, before, problem):
        problem = f"{before}+{problem}"
    chain = f"{thought}+{solution}" if thought and solution else thought or solution
    mapped = {role: path for role, path in (("problem", problem), ("cot", chain)) if path}
    return Preset("general", (), mapped, gold)


def _of_several(rows: Sequence[Row], name: str) -> str:
    """The path of the text to take of a list of responses, which may be texts or records with one."""
    if not (_SOLUTION.search(name) or _THOUGHT.search(name)):
        return ""
    paths = [f"{name}[verified]", *(f"{name}[verified].{key}" for key in _TEXT_KEYS)]
    return next((path for path in paths if is_text(rows, path)), "")


def _is_apart(rows: Sequence[Row], before: str, problem: str) -> bool:
    """Whether a context is not already part of the problem."""
    pairs = [(find_path(row, before), find_path(row, problem)) for row in rows]
    return any(isinstance(text, str) and text.strip() and text.strip() not in str(rest) for text, rest in pairs)


def _is_prose(rows: Sequence[Row], name: str) -> bool:
    """Whether most texts of a column are long, or say more than a box holds: solutions with an answer in them."""
    texts = [value for row in rows if isinstance(value := find_path(row, name), str)]
    prose = [len(text.split()) > _PROSE or len(text) > 400 or "\\boxed" in unwrap_gold(text) for text in texts]
    return sum(prose) * 2 > max(len(texts), 1)


def _length(rows: Sequence[Row], name: str) -> float:
    """The median length of a column's texts."""
    lengths = sorted(len(str(value)) for row in rows if (value := find_path(row, name)) is not None)
    return lengths[len(lengths) // 2] if lengths else 0


# --- preference pairs ---

_OPPOSITES = (
    ("chosen", "rejected"), ("preferred", "dispreferred"), ("preferred", "rejected"), ("accepted", "rejected"),
    ("better", "worse"), ("winner", "loser"), ("win", "lose"), ("winning", "losing"), ("positive", "negative"),
    ("good", "bad"), ("j", "k"),
)  # fmt: skip
_RESPONSE = re.compile(r"respon|answer|output|complet|conversation|ref\b|ref_|summar|generat|candidate|reply|solution")
_DECISION = re.compile(r"winner|prefer|better|choice|chosen|label")
_SCORE = re.compile(r"score|rating|reward|winner")


def general_pairs(rows: Sequence[Row], there: Sequence[str], alias: dict[str, str]) -> Preset | None:
    """The rule for pairs under plain names: two opposite columns; two numbered ones with scores or a decision; or a
    list of responses with scores."""
    plain = {name: alias.get(name, name) for name in (*alias, *(n for n in there if n not in alias.values()))}
    prompt = next((alias.get(n, n) for n in PROBLEM_NAMES if is_text(rows, n) or present(rows, f"{n}[user]")), "")
    base = {"prompt": prompt} if prompt else {}
    texts = [name for name in plain if name != prompt and any(isinstance(row.get(name), str | list) for row in rows)]
    for good, bad in _OPPOSITES:
        for name in texts:
            other = "_".join(bad if word == good else word for word in name.split("_"))
            if good in name.split("_") and other in texts:
                return Preset("general", (), base | {"chosen": plain[name], "rejected": plain[other]})
    for one, two in (("0", "1"), ("1", "2"), ("a", "b")):
        for name in texts:
            other = name[:-1] + two
            if name.endswith(one) and other in texts and _RESPONSE.search(name[:-1]):
                decision = _decision(rows, plain, one, two)
                both = {"first": plain[name], "second": plain[other]}
                return Preset("general", (), base | both | decision) if decision else None
    for name in texts:
        if path := _scored_list(rows, plain, name):
            return Preset("general", (), base | path)
    return None


def _decision(rows: Sequence[Row], plain: dict[str, str], one: str, two: str) -> dict[str, str]:
    """The columns that say which of two responses is better: a score each, or one that names it."""
    numeric = [name for name in plain if any(_is_number(row.get(name)) for row in rows)]
    for name in numeric:
        if name.endswith(one) and _SCORE.search(name) and name[:-1] + two in numeric:
            return {"first_score": plain[name], "second_score": plain[name[:-1] + two]}
    told = next((name for name in plain if _DECISION.search(name) and _is_scalar(rows, name)), "")
    if not told:
        return {}
    signed = any(_is_number(row.get(told)) and row[told] < 0 for row in rows)
    return {"preference" if signed else "winner": plain[told]}


def _scored_list(rows: Sequence[Row], plain: dict[str, str], name: str) -> dict[str, str]:
    for row in rows:
        values = row.get(name)
        if not isinstance(values, list) or len(values) < 2:
            continue
        if all(isinstance(value, dict) and text_and_score(value) for value in values):
            return {"ranked": plain[name]}
        if all(isinstance(value, str) for value in values):
            for other in plain:
                marks = row.get(other)
                if isinstance(marks, list) and len(marks) == len(values) and all(map(_is_number, marks)):
                    return {"responses": plain[name], "ratings": plain[other]}
    return {}


def text_and_score(record: dict[str, Any]) -> tuple[str, float] | None:
    """The text of a scored response and its score, the higher the better; None where it has not both."""
    text = next((record[key] for key in _TEXT_KEYS if isinstance(record.get(key), str)), None)
    if text is not None and _is_number(record.get("rank")):
        return text, -float(record["rank"])
    score = next((record[key] for key in _SCORE_KEYS if _is_number(record.get(key))), None)
    return None if text is None or score is None else (text, float(score))


def named_one(value: Any, first: str, second: str) -> int | None:
    """Which of two columns a decision names by what their names differ in: 0, 1, or None (a tie, or neither).

    `b` and `model_b` name the second of response_a, response_b; so does 1 of response_0, response_1.
    """
    marks = next(((a, b) for a, b in zip(first.lower(), second.lower(), strict=False) if a != b), ("", ""))
    said = re.split(r"[_\s]", str(value).strip().lower())[-1]
    return marks.index(said) if said in marks else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _is_scalar(rows: Sequence[Row], name: str) -> bool:
    return any(isinstance(row.get(name), str | int) for row in rows) and not any(
        isinstance(row.get(name), list | dict) for row in rows
    )
