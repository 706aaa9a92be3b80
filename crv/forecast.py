"""From a pilot to the whole run: calls, tokens, GPU-hours, yield, and whether the critic has more than one word."""

from typing import Any

from crv.ledger import Ledger

_ONE_WORD = 0.9  # the share of one label from which the critic says one word only
_FEW = 30  # labels from which a share means something


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
