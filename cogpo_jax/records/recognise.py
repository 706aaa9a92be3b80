"""What the columns of a data set mean: by a preset (presets.py), by the general rule for plain names, or as told.

`recognise` looks at the first rows and says what it understood; `Recognised.example` reads a row. It refuses what
would be lost: a column that looks like a chain of thought while none is mapped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cogpo_jax.errors import UserError
from cogpo_jax.records.general import (
    general_pairs,
    general_problem,
    looks_like_chain,
    plain_columns,
    present,
    with_aliases,
)
from cogpo_jax.records.presets import OTHERS, PAIRS, PROBLEMS, Preset
from cogpo_jax.records.texts import (
    find_path,
    has_tags,
    join_thought,
    split_hashes,
    stated_answer,
    text_of,
    turns_of,
    unwrap_gold,
)

FIRST_ROWS = 100  # rows that are looked at before any work
ROLES = ("problem", "answer", "cot", "id", "model", "source", "difficulty", "choices", "system")
PAIR_ROLES = ("prompt", "chosen", "rejected", "system", "beta", "gap", "weight", "start")


@dataclass(frozen=True)
class Example:
    """A row as one problem. `answer` is its gold, `cot` the chain (thought and solution joined by think tags where it
    has both). `dropped` is the reason why it is none, "" where it is one."""

    problem: str = ""
    answer: str = ""
    cot: str = ""
    id: str = ""
    model: str = ""
    source: str = ""
    difficulty: str = ""
    choices: tuple[str, ...] = ()
    dropped: str = ""


@dataclass(frozen=True)
class Recognised:
    """What the columns are: `columns` maps a role to a path, `gold` is the rule of the gold answer."""

    preset: str
    columns: Mapping[str, str]
    gold: str = ""
    unused: tuple[str, ...] = ()
    skip: tuple[tuple[str, tuple[str, ...], str], ...] = ()
    first: int = 0
    chains: int = 0
    golds: int = 0

    @property
    def gold_from_chain(self) -> bool:
        """Whether a chain supplies its own gold: its check then shows nothing."""
        inner = re.fullmatch(r"(?:box|hash)\((.*)\)", self.gold)
        return bool(inner) and inner[1] in ("cot", self.columns.get("cot"))  # type: ignore[index]

    def line(self) -> str:
        """What was understood, in one line."""
        told = [f"{role}={path}" for role, path in self.columns.items()]
        told += [f"answer={self.gold}"] if self.gold else []
        said = f"columns: preset {self.preset}: {', '.join(told)}"
        if "problem" in self.columns:
            said += f"; of the first {self.first} rows {self.chains} have a chain, {self.golds} a gold"
        said += "; each chain supplies its own gold, so that its check shows nothing" * self.gold_from_chain
        return said + f"; unused: {', '.join(self.unused) or 'none'}"

    def described(self) -> dict[str, Any]:
        """The same for a manifest."""
        return {
            "preset": self.preset,
            "columns": dict(self.columns),
            "gold": self.gold,
            "gold_from_chain": self.gold_from_chain,
            "unused": list(self.unused),
            "first_rows": {"rows": self.first, "with_chain": self.chains, "with_gold": self.golds},
        }

    def example(self, row: Mapping[str, Any]) -> Example:
        """The row as a problem, or with the reason why it is none."""
        row = dict(row)
        for path, values, reason in self.skip:
            if str(find_path(row, path) or "").strip().lower() in values:
                return Example(dropped=reason)
        texts: dict[str, Any] = {}
        for role in ("problem", "id", "model", "source", "difficulty"):
            try:
                texts[role] = _read(row, self.columns.get(role, ""), "user")
            except ValueError:
                if role == "problem":
                    return Example(dropped="problem_is_no_text")
                texts[role] = ""
        if not texts["problem"].strip():
            return Example(dropped="problem_missing")
        try:
            cot = self._chain(row)
        except ValueError:
            return Example(dropped="chain_is_no_text")
        try:
            choices = _choices(find_path(row, self.columns.get("choices", "")))
            answer = self._gold(row, cot, choices)
        except (ValueError, TypeError):
            return Example(dropped="answer_is_no_text")
        if not answer.strip():
            return Example(dropped="answer_missing")
        return Example(**texts, answer=answer, cot=self._without_hashes(cot), choices=choices)

    def _chain(self, row: dict[str, Any]) -> str:
        path = self.columns.get("cot", "")
        if not path:
            return ""
        thought, plus, solution = path.partition("+")
        if not plus:
            return _read(row, path, "assistant")
        return join_thought(_read(row, thought, "assistant"), _read(row, solution, "assistant"))

    def _without_hashes(self, cot: str) -> str:
        # The gold that GSM8K writes under a chain becomes the chain's own final statement.
        before, gold = split_hashes(cot)
        return cot if not gold or not self.gold.startswith("hash(") else f"{before}\n\nThe answer is {gold}"

    def _gold(self, row: dict[str, Any], cot: str, choices: tuple[str, ...]) -> str:
        rule = re.fullmatch(r"(?:(box|hash)\()?(.*?)\)?", self.gold)
        assert rule is not None
        if not self.gold:
            return ""
        value = cot if rule[2] == "cot" and rule[1] else find_path(row, rule[2])
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
            return LETTERS[value]
        if isinstance(offered := find_path(row, self.columns.get("choices", "")), dict):
            labels = [str(label) for label in offered.get("label") or offered]
            if str(value) in labels:
                return LETTERS[labels.index(str(value))]
        if isinstance(value, list) and not any(isinstance(one, dict | list) for one in value):
            value = ", ".join(map(text_of, value))  # an answer of several parts
        text = text_of(value)
        if rule[1] == "box":
            return stated_answer(text)
        gold = split_hashes(text)[1]
        gold = gold if rule[1] or gold else unwrap_gold(text)
        is_text = gold in choices and gold not in LETTERS
        return LETTERS[choices.index(gold)] if is_text else gold


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _choices(value: Any) -> tuple[str, ...]:
    """The texts of the choices: a list, `{"text": [...], "label": [...]}`, or one text by letter."""
    if isinstance(value, dict):
        value = value["text"] if isinstance(value.get("text"), list) else list(value.values())
    return tuple(map(text_of, value or ()))


def recognise(
    first_rows: Sequence[Mapping[str, Any]],
    *,
    preset: str = "",
    columns: str = "",
    gold: str = "auto",
    cot: str = "auto",
    need_gold: bool = True,
) -> Recognised:
    """What the columns of these first rows are, for problems with golds and chains; see docs/data.md.

    `preset` forces one, `columns` ("problem=question,cot=thought+solution") and `gold` (NAME, box(NAME), hash(NAME),
    box(cot)) override it; `cot="none"` says that chains are meant to be left out. Raises UserError: no preset fits, or
    two equally; a column is not there; there is no gold; a column looks like a chain and none is mapped.
    """
    there = _columns(first_rows[:FIRST_ROWS])
    rows, alias = with_aliases([dict(row) for row in first_rows[:FIRST_ROWS]], there)
    told = _parse_map(columns, ROLES)
    if not preset and not told:
        _refuse_pairs(rows, there)
    gold = told.pop("answer", "") if gold == "auto" and "answer" in told else gold
    if cot != "auto":
        told["cot"] = "" if cot == "none" else cot
    general = general_problem(rows, there, alias)
    found = _choose(rows, there, PROBLEMS, preset, general) or general
    mapped = {k: v for k, v in plain_columns(rows).items() if k not in found.map} | dict(found.map) | told
    mapped = {role: present(rows, path) if role not in told else path for role, path in mapped.items() if path}
    mapped = {role: _actual(path, alias) for role, path in mapped.items() if path}
    for role, path in told.items():
        if path and not present(rows, path):
            raise UserError(f"columns.map: {role}={path}: no such column; {_listed(there)}")
    rule = _actual(found.gold, alias) if gold == "auto" else gold
    if not rule and general.gold not in mapped.values():  # a plain gold beside a conversation
        rule = general.gold
    if "problem" not in mapped:
        raise UserError(
            f"columns: no problem in it; {_listed(there)}; nearest preset: {_nearest(rows, PROBLEMS)};"
            " name one as in columns.map=problem=NAME"
        )
    name = re.sub(r"^(?:box|hash)\((.*)\)$", r"\1", rule)
    if gold != "auto" and name != "cot" and not present(rows, name):
        raise UserError(f"columns.gold: {gold}: no such column; {_listed(there)}")
    if not rule and need_gold:
        raise UserError(
            f"columns.gold: preset {found.name} has no gold answers apart from its chains; {_listed(there)}; name one"
            " (columns.gold=NAME), or take what each chain itself states (columns.gold='box(cot)'), which verifies"
            " nothing"
        )
    used = {re.split(r"[.\[]", part)[0] for path in [*mapped.values(), name] for part in re.split(r"[+|]", path)}
    used |= {part for path in mapped.values() for part in path.split("+")}
    unused = tuple(column for column in there if column not in used)
    if not mapped.get("cot") and cot != "none":
        for column in unused:
            if looks_like_chain(column, [row.get(column) for row in rows]):
                raise UserError(
                    f"columns.cot: column {column!r} looks like a chain of thought and would be lost; map it"
                    f" (columns.cot={column}), or say that this is meant (columns.cot=none); {_listed(there)};"
                    f" nearest preset: {_nearest(rows, PROBLEMS)}"
                )
    skip = tuple((_actual(path, alias), texts, reason) for path, texts, reason in found.skip)
    result = Recognised(found.name, mapped, rule, unused, skip, len(rows))
    examples = [result.example(row) for row in rows]
    if cot == "auto" and "cot" not in told and not any(has_tags(example.cot) for example in examples):
        for column in unused:
            if any(has_tags(str(row.get(column))) for row in rows):
                raise UserError(
                    f"columns.cot: column {column!r} has thoughts in tags, and {mapped.get('cot')!r}, which has none,"
                    f" would be read; say which is the chain (columns.cot={column}); {_listed(there)}"
                )
    return replace(result, chains=sum(bool(e.cot) for e in examples), golds=sum(bool(e.answer) for e in examples))


def recognise_pairs(first_rows: Sequence[Mapping[str, Any]], *, preset: str = "", columns: str = "") -> Recognised:
    """What the columns of these first rows are, for preference pairs; raises UserError as `recognise` does."""
    there = _columns(first_rows[:FIRST_ROWS])
    rows, alias = with_aliases([dict(row) for row in first_rows[:FIRST_ROWS]], there)
    told = _parse_map(columns, PAIR_ROLES)
    for role, path in told.items():
        if path and not present(rows, path):
            raise UserError(f"columns: {role}={path}: no such column; {_listed(there)}")
    if not preset and not {"chosen", "rejected"} <= told.keys() and not present(rows, "chosen"):
        _refuse_rated(rows, there, "not pairs")
    found = _choose(rows, there, PAIRS, preset, None) or general_pairs(rows, there, alias)
    if found is None and not {"chosen", "rejected"} <= told.keys():
        missing = next((name for name in ("prompt", "chosen", "rejected") if not present(rows, name)), "rejected")
        raise UserError(
            f"{missing}: missing: a row needs prompt, chosen, rejected; {_listed(there)}; nearest preset:"
            f" {_nearest(rows, PAIRS)}; name them as in columns=prompt=NAME,chosen=NAME,rejected=NAME"
        )
    mapped: dict[str, str] = {name: name for name in ("system", "beta", "gap", "weight") if name in there}
    mapped |= {k: _actual(v, alias) for k, v in (found.map if found else {}).items() if present(rows, v)} | told
    used = {re.split(r"[.\[]", part)[0] for path in mapped.values() for part in path.split("+")}
    unused = tuple(column for column in there if column not in used)
    return Recognised(found.name if found else "as told", mapped, unused=unused, first=len(rows))


def _choose(
    rows: list[dict[str, Any]], there: list[str], presets: tuple[Preset, ...], name: str, general: Preset | None
) -> Preset | None:
    if name:
        named = [preset for preset in presets if preset.name == name]
        if name == "general" and general is not None:
            return general
        if not named:
            known = sorted({preset.name for preset in presets})
            raise UserError(f"columns.preset: {name!r}: no such preset; there are {', '.join(known)}, general")
        fitting = [preset for preset in named if _fits(preset, rows)]
        if not fitting:
            missing = [path for path in named[0].needs if not present(rows, path)] or list(named[0].marks.values())
            raise UserError(f"columns.preset: {name} does not fit: missing {', '.join(missing)}; {_listed(there)}")
        return fitting[0]
    fitting = [preset for preset in presets if _fits(preset, rows)]
    # The specific before the general: what needs all that another needs, and more, rules that one out.
    best = [
        preset
        for preset in fitting
        if not any(
            set(preset.needs) < set(o.needs) or (o.needs == preset.needs and o.marks) for o in fitting if o != preset
        )
    ]
    most = max((len(preset.needs) + len(preset.marks) for preset in best), default=0)
    best = [preset for preset in best if len(preset.needs) + len(preset.marks) == most]
    if len({(*sorted(preset.map.items()), preset.gold) for preset in best}) > 1 and not _read_alike(rows, best):
        names = " and ".join(sorted({preset.name for preset in best}))
        raise UserError(f"columns.preset: {names} fit equally well; give one of them; {_listed(there)}")
    return best[0] if best else None


def _read_alike(rows: list[dict[str, Any]], presets: list[Preset]) -> bool:
    """Whether the presets read the same texts, from columns that repeat each other."""

    def texts(preset: Preset, row: dict[str, Any]) -> list[str]:
        roles = (("problem", "user"), ("cot", "assistant"), ("prompt", "user"))
        return [_read(row, preset.map[role], who).strip() for role, who in roles if role in preset.map]

    try:
        return all(texts(preset, row) == texts(presets[0], row) for preset in presets[1:] for row in rows)
    except ValueError:
        return False


def _actual(path: str, alias: Mapping[str, str]) -> str:
    """A path or gold rule with the columns' own names in place of their plain ones."""
    return re.sub(r"(?<![^+|(])([^.\[\]+|()]+)", lambda m: alias.get(m[1], m[1]), path) if alias else path


def _fits(preset: Preset, rows: list[dict[str, Any]]) -> bool:
    if not all(present(rows, path) for path in preset.needs) or any(present(rows, path) for path in preset.absent):
        return False
    for path, mark in preset.marks.items():
        if sum(mark in str(find_path(row, path)) for row in rows) * 2 <= len(rows):
            return False
    return True


def _read(row: dict[str, Any], path: str, role: str) -> str:
    """The text at a path; of a conversation its last turn of `role`; parts joined by a blank line."""
    texts = []
    for part in path.split("+") if path else ():
        value = find_path(row, part)
        if isinstance(value, list):
            turns = [text for who, text in turns_of(value) if who == role]
            value = turns[-1] if turns else None
        texts.append(text_of(value))
    return "\n\n".join(text for text in texts if text.strip())


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(name) for row in rows for name, value in row.items() if value is not None))


def _parse_map(text: str, roles: tuple[str, ...]) -> dict[str, str]:
    """problem=question,cot=thought+solution -> roles and paths."""
    told = {}
    for pair in re.split(r"[,;](?=\s*\w+\s*=)", text) if text.strip() else ():
        role, equals, path = (part.strip() for part in pair.partition("="))
        if not equals or not path or role not in (*roles, "gold"):
            raise UserError(f"columns.map: {pair!r}: want ROLE=COLUMN, the roles being {', '.join(roles)}")
        told["answer" if role == "gold" else role] = "" if path == "none" else path
    return told


def _refuse_pairs(rows: list[dict[str, Any]], there: list[str]) -> None:
    """Refuses preference data, of which no problem should be made by mistake."""
    for chosen, rejected in (("chosen", "rejected"), ("chosen_response", "rejected_response")):
        if present(rows, chosen) and present(rows, rejected):
            raise UserError(f"columns: these are preference pairs; `cogpo convert` reads them; {_listed(there)}")
    _refuse_rated(rows, there, "not problems with golds")


def _refuse_rated(rows: list[dict[str, Any]], there: list[str], what: str) -> None:
    for other in OTHERS:
        paths, mark = other["needs"].split(), other.get("mark")
        if not all(present(rows, path) for path in paths) or (other.get("of") and "pairs" not in what):
            continue
        last = [find_path(row, paths[-1]) for row in rows]
        if any(mark in str(value) if mark else isinstance(value, bool | list | int | float) for value in last):
            raise UserError(f"columns: these are {other['kind']}, {what}: {other['why']}; {_listed(there)}")


def _nearest(rows: list[dict[str, Any]], presets: tuple[Preset, ...]) -> str:
    def near(preset: Preset) -> tuple[int, int]:
        found = sum(bool(present(rows, path)) for path in preset.needs)
        return found, -len(preset.needs)

    best = max(presets, key=near)
    missing = [path for path in best.needs if not present(rows, path)]
    return f"{best.name} (missing {', '.join(missing)})" if missing else best.name


def _listed(there: list[str]) -> str:
    return f"columns found: {', '.join(there[:30]) or 'none'}"
