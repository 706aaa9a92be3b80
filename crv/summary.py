"""What a run came to: counts, cost, and what a pilot foretells of the whole run."""

import json
from collections import Counter
from typing import Any

from crv.ledger import Ledger

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
        "repeated_rows": int(ledger.meta("taken_in") or 0),
        "repaired_places": json.loads(ledger.meta("repaired") or "{}"),
        "pairs": gaps,
        "rounds": ledger.counts("rounds", "rounds > 0"),
        "unusable": _unusable(ledger),
        **({"audit": json.loads(audit)} if (audit := ledger.meta("audit")) else {}),
    }


def _unusable(ledger: Ledger) -> dict[str, int]:
    """How many answers were cut off, empty or did not parse, by agent and reason; the ledger keeps their texts."""
    counts: Counter[str] = Counter()
    for _, row in ledger.outcomes():
        counts.update(f"{step['step']}: {step['unusable']}" for step in row["story"] if "unusable" in step)
    return dict(sorted(counts.items()))


def count_calls(ledger: Ledger) -> dict[str, dict[str, int]]:
    """Finished calls and their tokens by agent, those of earlier prompts included: what the run has cost."""
    rows = ledger.db.execute(
        "SELECT agent, COUNT(*), SUM(prompt_tokens), SUM(output_tokens), SUM(cached_tokens) FROM calls"
        " GROUP BY agent ORDER BY agent"
    )
    names = ("calls", "prompt_tokens", "output_tokens", "cached_tokens")
    return {agent: dict(zip(names, counts, strict=True)) for agent, *counts in rows}


def forecast(ledger: Ledger, rows: int, seconds: float, asked: int, gpus: int) -> dict[str, Any]:
    """What `rows` problems will take if they are like those of the ledger; `findings` are sentences for a person.

    `seconds` and `asked` are those of this start (a resumed pilot is timed by its last part); GPU-hours count all
    `gpus` for the whole time.
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
        "gpu_hours": None if hours is None else round(hours * gpus, 2),
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
