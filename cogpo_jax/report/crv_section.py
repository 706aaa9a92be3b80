"""The CRV part of the page: flows, lengths, rounds, cost, and problems with their texts side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from cogpo_jax.report import svg
from cogpo_jax.report.crv_run import FLOW_COLUMNS, AgentCost, CrvRun, ShownProblem, Text
from cogpo_jax.report.sankey import flows
from cogpo_jax.report.words import Difference, difference

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
        "flows": flows(FLOW_COLUMNS, run.flows, coloured_by=1),
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
