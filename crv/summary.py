"""What a run came to: counts, cost, and what a pilot foretells of the whole run."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from crv.ledger import Ledger
from crv.options import PoolOptions

_ONE_WORD = 0.9  # the share of one label from which the critic says one word only
_FEW = 30  # labels from which a share means something


def summarise(ledger: Ledger) -> dict[str, Any]:
    """Counts of the whole run: problems by state, labels, drops by reason, pairs by gap, rounds, ..."""
    gaps = {"small": 0, "medium": 0, "large": 0}
    for pairs, count in ledger.counts("pairs", "pairs != ''").items():
        for gap in pairs.split():
            gaps[gap] += count
    rows = ledger.db.execute(
        "SELECT dropped, COUNT(*) FROM problems WHERE dropped != '' GROUP BY dropped ORDER BY dropped"
    )
    early, states = dict(rows), ledger.counts("state")
    dropped = states.pop("dropped", 0) + sum(early.values())
    return {
        "problems": {"total": sum(states.values()) + dropped, **states, "dropped": dropped},
        "labels": ledger.counts("label", "label != ''"),
        "drops": {**early, **ledger.counts("reason", "state = 'dropped'")},
        "skipped_rows": json.loads(ledger.meta("skipped") or "{}"),
        "understood": json.loads(ledger.meta("understood") or "{}"),
        "repeated_rows": int(ledger.meta("taken_in") or 0),
        "repaired_places": json.loads(ledger.meta("repaired") or "{}"),
        "pairs": gaps,
        "rounds": ledger.counts("rounds", "rounds > 0"),
        **_read_outcomes(ledger),
        **({"audit": json.loads(audit)} if (audit := ledger.meta("audit")) else {}),
    }


def _read_outcomes(ledger: Ledger) -> dict[str, dict[str, int]]:
    """Unusable answers by agent and reason (the ledger keeps their texts), and texts proved wrong by who wrote them."""
    unusable, wrong = Counter[str](), Counter[str]()
    for _, row in ledger.outcomes():
        unusable.update(f"{step['step']}: {step['unusable']}" for step in row["story"] if "unusable" in step)
        wrong.update(response["origin"] for response in row["responses"] if response["kind"] == "incorrect")
    return {"unusable": dict(sorted(unusable.items())), "wrong_by_origin": dict(sorted(wrong.items()))}


# What helps where most problems end for one reason: the first part that the reason ends in.
_ADVICE = {
    "length": "raise sampling.max_tokens (or agents.NAME.max_tokens), or let the model think less (pool.extra_body)",
    "prompt_too_long": "serve the model with a longer context, or set pool.context if the server has more",
    "content_filter": "the provider's filter refuses them: ask for another filter, or use another model",
    "refused": "the server refuses them in the words above: pool.omit and pool.extra_body change what is sent",
    "JSON": "this model does not keep to the form: give another one, or a server with constrained output",
    "label": "this model does not keep to the form: give another one, or a server with constrained output",
    "empty": "the model answers nothing after its thought: raise sampling.max_tokens, or think less (pool.extra_body)",
    "gold_unreadable": "the answers of the input are of a kind that no rule reads: see judge, and docs/crv.md",
    "no_solution": "give the input chains of thought, or raise solver.attempts",
}
_ANY_ADVICE = "look at one of them with --why=PROBLEM_ID; another model or prompt may be needed"


def went_badly(ledger: Ledger, share: float, aside: Sequence[str]) -> str:
    """One line where more than `share` of the walked problems were dropped for one reason, or set aside; else empty.

    It names the reason, an example and what to change. `aside`: what the servers said last of problems set aside.
    """
    (walked,) = ledger.db.execute("SELECT COUNT(*) FROM outcomes").fetchone()
    if len(aside) > share * (walked + len(aside)):
        return f"{len(aside)} of {walked + len(aside)} problems are not finished, as calls keep failing: {aside[0]}"
    drops = ledger.counts("reason", "state = 'dropped'")
    reason = max(drops, key=lambda name: drops[name], default="")
    if not reason or drops[reason] <= share * walked:
        return ""
    problem_id, row = next(ledger.outcomes("reason = ?", (reason,)))
    steps = [{name: value for name, value in step.items() if value not in ("", None)} for step in row["story"][:-1]]
    example = json.dumps(steps[-1], ensure_ascii=False)[:300] if steps else "no call was needed"
    advice = next((words for end, words in _ADVICE.items() if reason.endswith(end)), _ANY_ADVICE)
    return (
        f"{drops[reason]} of {walked} problems were dropped as {reason}; the first, {problem_id}, ended with {example};"
        f" {advice}"
    )


def count_calls(ledger: Ledger) -> dict[str, dict[str, int]]:
    """Finished calls and their tokens by agent, those of earlier prompts included: what the run has cost."""
    rows = ledger.db.execute(
        "SELECT agent, COUNT(*), SUM(prompt_tokens), SUM(output_tokens), SUM(cached_tokens) FROM calls"
        " GROUP BY agent ORDER BY agent"
    )
    names = ("calls", "prompt_tokens", "output_tokens", "cached_tokens")
    return {agent: dict(zip(names, counts, strict=True)) for agent, *counts in rows}


def forecast(ledger: Ledger, rows: int, seconds: float, asked: int, pool: PoolOptions) -> dict[str, Any]:
    """What `rows` problems will take if they are like those of the ledger; `findings` are sentences for a person.

    `seconds` and `asked` are those of this start (a resumed pilot is timed by its last part); GPU-hours count all of
    `pool.gpus` for the whole time; `cost` is in the currency of `pool.price_in` and `pool.price_out`.
    """
    (done,) = ledger.db.execute("SELECT COUNT(*) FROM outcomes").fetchone()
    if not done:
        return {}
    calls, prompt, output, cached = ledger.db.execute(
        "SELECT COUNT(*), TOTAL(prompt_tokens), TOTAL(output_tokens), TOTAL(cached_tokens) FROM calls"
    ).fetchone()
    (groups,) = ledger.db.execute("SELECT COUNT(*) FROM outcomes WHERE pairs != ''").fetchone()
    (triangles,) = ledger.db.execute("SELECT COUNT(*) FROM outcomes WHERE pairs LIKE '%small%large%'").fetchone()
    scale = rows / done
    hours = calls * scale / (asked / seconds) / 3600 if asked and seconds else None
    return {
        "pilot": done,
        "problems": rows,
        "calls": round(calls * scale),
        "calls_per_problem": round(calls / done, 2),
        "prompt_tokens": round(prompt * scale),
        "output_tokens": round(output * scale),
        "cached_share": round(cached / prompt, 3) if prompt else None,
        "hours": None if hours is None else round(hours, 2),
        "gpu_hours": None if hours is None else round(hours * pool.gpus, 2),
        "cost": round((prompt * pool.price_in + output * pool.price_out) * scale / 1e6, 2),
        "groups": round(groups * scale),
        "triangles": round(triangles * scale),
        "yield": round(groups / done, 3),
        "findings": findings(ledger.counts("label", "label != ''"), ledger.counts("reason", "state = 'dropped'"), done),
    }


def findings(labels: dict[str, int], drops: dict[str, int], done: int) -> list[str]:
    """What a person should look at before the big run."""
    said = []
    total = sum(labels.values())
    for label, count in labels.items():
        if total >= _FEW and count > _ONE_WORD * total:
            said.append(f"the critic says {label!r} of {count} of {total} texts: change its prompt or its model")
    for reason, count in drops.items():
        if done >= _FEW and count > done / 4:
            said.append(f"{count} of {done} problems are dropped as {reason}")
    return said
