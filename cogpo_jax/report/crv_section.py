"""The CRV part of the page: a run's counts, flows, lengths, rounds, cost, and problems with their texts side by side.

`crv.review.read_overview` reads a CrvRun from a ledger.
"""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from cogpo_jax.report import svg

# The columns of the flow picture, each with its places in drawing order; "" is passed through without a stop.
ORIGINAL = ("right", "undecided", "wrong", "none given", "gold unreadable", "not looked at")
CRITIC = ("medium", "easy", "hard", "no label", "")
REWRITES = ("kept as it was", "1 round", "2 rounds", "3 rounds", "more rounds", "")
END = (
    "suitable as it was",
    "suitable rewrite",
    "no rewrite passed",
    "critic unusable",
    "no right original",
    "dropped before any call",
)
FLOW_COLUMNS = {"original": ORIGINAL, "critic": CRITIC, "rewrites": REWRITES, "verified": END}

FlowPath = tuple[str, ...]  # one place of each column


@dataclass(frozen=True)
class AgentCost:
    """Finished calls of one agent and model; `seconds`: summed over calls, as the server told them (0 = not told)."""

    agent: str
    model: str
    calls: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    seconds: float
    ends: Mapping[str, int]  # finish reasons but "stop"


@dataclass(frozen=True)
class Text:
    """One response of a shown problem; `parent`: id of the response that it was made from."""

    id: str
    parent: str
    kind: str
    origin: str
    model: str
    text: str
    proof: Mapping[str, Any]


@dataclass(frozen=True)
class ShownProblem:
    """A problem of the browser; `story`: one dict a step, as in the ledger."""

    problem_id: str
    problem: str
    answer: str
    state: str
    reason: str
    label: str
    rounds: int
    pairs: str
    texts: tuple[Text, ...]
    story: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class CrvRun:
    """A run's counts, and some of its problems.

    `problems`: taken in; `walked`: those that have come to their end with calls; `states` counts these, and as dropped
    those that hygiene left out. `words`: by label
    and series, how many texts have how many words. `rounds`: (rounds, state) -> problems.
    """

    problems: int
    walked: int
    states: Mapping[str, int]
    drops: Mapping[str, int]
    pairs: Mapping[str, int]
    flows: Mapping[FlowPath, int]
    words: Mapping[tuple[str, str], Counter[int]]
    rounds: Mapping[tuple[int, str], int]
    unusable: Mapping[str, int]
    cost: tuple[AgentCost, ...]
    shown: tuple[ShownProblem, ...]


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


MOST_CHARACTERS = 20_000  # of one text on the page
KIND_WORDS = {
    "suitable": "suitable",
    "easy": "too terse",
    "hard": "too convoluted",
    "incorrect": "wrong",
    "unknown": "unknown",
}
_LENGTHS = (
    ("Too terse originals, and what became of them", "easy", ("original", "rewritten")),
    ("Too convoluted originals, and what became of them", "hard", ("original", "rewritten")),
    ("All suitable and all wrong texts", "all", ("suitable", "wrong")),
)
_STATES = ("rewritten", "fitting", "dropped")
_TITLES = {"original": "Original", "solver": "Solution", "rewrite": "Rewrite", "wrong": "Corrupted"}


def crv_section(run: CrvRun) -> dict[str, Any]:
    """What the template shows of a run; the SVG and the marked texts are escaped."""
    return {
        "run": run,
        "unfinished": run.problems - sum(run.states.values()),
        "flows": svg.flows(FLOW_COLUMNS, run.flows, coloured_by=1),
        "lengths": [chart for title, label, names in _LENGTHS if (chart := _lengths(run, title, label, names))],
        "rounds": _rounds(run),
        "drops": svg.bars(_spoken(run.drops), 2),
        "unusable": svg.bars(_spoken(run.unusable), 3),
        "cost": [*map(_cost_row, run.cost), *([_total(run.cost)] if len(run.cost) > 1 else [])],
        "calls": sum(cost.calls for cost in run.cost),
        "output_tokens": sum(cost.output_tokens for cost in run.cost),
        "timed": any(cost.seconds for cost in run.cost),
        "problems": [_card(problem) for problem in run.shown],
        "states": [state for state in _STATES if any(problem.state == state for problem in run.shown)],
        "labels": sorted({problem.label or "none" for problem in run.shown}),
    }


def _lengths(run: CrvRun, title: str, label: str, names: Sequence[str]) -> dict[str, Any] | None:
    series = {name: run.words[label, name] for name in names if run.words.get((label, name))}
    medians = {name: _median(counts) for name, counts in series.items()}
    if not series:
        return None
    return {"title": title, "chart": svg.histogram(series, "words", "texts"), "medians": medians}


def _median(counts: Mapping[int, int]) -> int:
    """The lower median of what is counted."""
    left = (sum(counts.values()) + 1) // 2
    for size in sorted(counts):
        left -= counts[size]
        if left <= 0:
            return size
    raise ValueError("nothing is counted")


def _rounds(run: CrvRun) -> Markup:
    rows: dict[str, dict[str, int]] = {}
    for (rounds, state), count in sorted(run.rounds.items()):
        name = f"{rounds} round{'s' if rounds > 1 else ''}"
        rows.setdefault(name, {})["a rewrite passed" if state == "rewritten" else "none passed"] = count
    return svg.stacked(rows, ("a rewrite passed", "none passed"))


def _spoken(counts: Mapping[str, int]) -> dict[str, int]:
    return {name.replace("_", " "): count for name, count in sorted(counts.items(), key=lambda item: -item[1])}


def _cost_row(cost: AgentCost) -> dict[str, Any]:
    return {
        "agent": cost.agent.replace("_", " "),
        "model": cost.model,
        "calls": cost.calls,
        "prompt_tokens": cost.prompt_tokens,
        "cached": cost.cached_tokens / cost.prompt_tokens if cost.prompt_tokens else None,
        "output_tokens": cost.output_tokens,
        "per_call": cost.output_tokens / cost.calls,
        "seconds": cost.seconds,
        "ends": ", ".join(f"{reason} {count:,}" for reason, count in sorted(cost.ends.items())),
    }


def _total(costs: Sequence[AgentCost]) -> dict[str, Any]:
    ends: dict[str, int] = {}
    for cost in costs:
        for reason, count in cost.ends.items():
            ends[reason] = ends.get(reason, 0) + count
    names = ("calls", "prompt_tokens", "cached_tokens", "output_tokens", "seconds")
    sums = {name: sum(getattr(cost, name) for cost in costs) for name in names}
    return _cost_row(AgentCost("all", "", ends=ends, **sums))


def _card(problem: ShownProblem) -> dict[str, Any]:
    return {
        "id": problem.problem_id,
        "problem": problem.problem,
        "answer": problem.answer,
        "state": problem.state,
        "reason": problem.reason.replace("_", " "),
        "label": problem.label or "none",
        "rounds": problem.rounds,
        "pairs": problem.pairs,
        "columns": _columns(problem.texts),
        "steps": [_step(step) for step in problem.story],
    }


def _columns(texts: Sequence[Text]) -> list[dict[str, Any]]:
    """A column a text: the original with what its rewrite left out, the others with what they add to their source."""
    by_id = {text.id: text for text in texts}
    compared: dict[str, Difference] = {}
    sources: dict[str, Difference] = {}
    for text in texts:
        if text.parent in by_id:
            compared[text.id] = difference(_cut(by_id[text.parent].text), _cut(text.text))
            # Its final rewrite is what the original is compared with, where it has one.
            if text.kind == "suitable" or text.parent not in sources:
                sources[text.parent] = compared[text.id]
    columns = []
    for text in texts:
        body: str | Markup = _cut(text.text)
        if text.id in compared:
            body = compared[text.id].after
        elif text.id in sources:
            body = sources[text.id].before
        columns.append(
            {
                "title": _title(text.id),
                "id": text.id,
                "kind": text.kind,
                "kind_words": KIND_WORDS[text.kind],
                "words": len(text.text.split()),
                "text": body,
                "cut": max(len(text.text) - MOST_CHARACTERS, 0),
                "from": _title(text.parent).lower() if text.id in compared else "",
                "shared": compared[text.id].shared if text.id in compared else None,
                "origin": text.origin,
                "model": text.model,
                "proof": proof_words(text.proof),
            }
        )
    return columns


def _cut(text: str) -> str:
    return text[:MOST_CHARACTERS]


def _title(name: str) -> str:
    word, _, number = name.partition("-")
    title = _TITLES.get(word, name)
    if not number.isdigit():
        return title
    return f"{title}, round {number}" if word == "rewrite" else f"{title} {int(number) + 1}"


def proof_words(proof: Mapping[str, Any]) -> str:
    """A certificate in a line: the verdict, the rule it was reached by, and the blind re-solves."""
    parts = [str(proof[name]) for name in ("verdict", "rule") if proof.get(name)]
    if proof.get("answers"):
        parts.append("states " + ", ".join(map(str, proof["answers"])))
    if proof.get("blind"):
        parts.append("re-solved blind {} of {}".format(*proof["blind"]))
    return " · ".join(parts)


def _step(step: Mapping[str, Any]) -> dict[str, str]:
    details = (f"{name} {value}" for name, value in step.items() if name != "step" and value not in ("", None, []))
    return {"name": str(step["step"]), "details": ", ".join(details)}
