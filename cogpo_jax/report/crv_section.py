"""The CRV part of the page: a run's counts, flows, lengths, rounds, cost, and problems with their texts side by side.

`crv.review.read_overview` reads a CrvRun from a ledger.
"""

import difflib
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from cogpo_jax.report import charts

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
_TITLES = {"original": "Original", "solver": "Solution", "rewrite": "Rewrite", "wrong": "Corrupted"}


def crv_section(run: CrvRun) -> dict[str, Any]:
    """What the template shows of a run; the marked texts are escaped."""
    series = [(title, {n: run.words[of, n] for n in names if run.words.get((of, n))}) for title, of, names in _LENGTHS]
    rounds: dict[str, list[int]] = {}
    for (number, state), count in sorted(run.rounds.items()):
        parts = rounds.setdefault(f"{number} round{'s' if number > 1 else ''}", [0, 0])
        parts[state != "rewritten"] += count
    return {
        "run": run,
        "unfinished": run.problems - sum(run.states.values()),
        "flows": charts.flows(FLOW_COLUMNS, run.flows, coloured_by=1),
        "lengths": [
            (title, charts.histogram(counted, "words", "texts"), {name: median(c) for name, c in counted.items()})
            for title, counted in series
            if counted
        ],
        "rounds": rounds,
        "cost": [*run.cost, *([_total(run.cost)] if len(run.cost) > 1 else [])],
        "calls": sum(cost.calls for cost in run.cost),
        "output_tokens": sum(cost.output_tokens for cost in run.cost),
        "timed": any(cost.seconds for cost in run.cost),
        "problems": [(problem, columns(problem.texts)) for problem in run.shown],
        "states": sorted({problem.state for problem in run.shown}),
        "labels": sorted({problem.label or "none" for problem in run.shown}),
    }


def median(counts: Mapping[int, int]) -> int:
    """The lower median of what is counted."""
    return statistics.median_low(Counter(counts).elements())


def _total(costs: Sequence[AgentCost]) -> AgentCost:
    names = ("calls", "prompt_tokens", "cached_tokens", "output_tokens", "seconds")
    sums = {name: sum(getattr(cost, name) for cost in costs) for name in names}
    return AgentCost("all", "", ends=sum((Counter(cost.ends) for cost in costs), Counter[str]()), **sums)


def columns(texts: Sequence[Text]) -> list[dict[str, Any]]:
    """A column a text: the original with what its rewrite left out, the others with what they add to their source."""
    by_id = {text.id: text.text[:MOST_CHARACTERS] for text in texts}
    compared: dict[str, Difference] = {}
    sources: dict[str, Difference] = {}
    for text in texts:
        if text.parent in by_id:
            compared[text.id] = difference(by_id[text.parent], by_id[text.id])
            # Its final rewrite is what the original is compared with, where it has one.
            if text.kind == "suitable" or text.parent not in sources:
                sources[text.parent] = compared[text.id]
    shown = []
    for text in texts:
        mine, source = compared.get(text.id), sources.get(text.id)
        shown.append(
            {
                "title": _title(text.id),
                "kind": text.kind,
                "kind_words": KIND_WORDS[text.kind],
                "words": len(text.text.split()),
                "text": mine.after if mine else source.before if source else by_id[text.id],
                "cut": max(len(text.text) - MOST_CHARACTERS, 0),
                "from": _title(text.parent).lower() if mine else "",
                "shared": mine.shared if mine else None,
                "origin": text.origin,
                "model": text.model,
                "proof": proof_words(text.proof),
            }
        )
    return shown


def _title(name: str) -> str:
    word, _, number = name.partition("-")
    title = _TITLES.get(word, "Response")
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
