"""Outcomes -> records: sft and groups, split by problem, in an order that no run can change."""

import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from cogpo_jax.records import Group, Response, SftExample, write_data
from crv.balance import balanced, count_directions
from crv.ledger import Ledger
from crv.loop import Outcome
from crv.options import Options
from crv.pairs import make_group
from crv.problems import Problem

_PROBLEM_FIELDS = tuple(field.name for field in fields(Problem))  # asdict copies deeply: 20 times as slow


def outcome_row(problem: Problem, outcome: Outcome) -> dict[str, Any]:
    """What the ledger keeps of a finished problem, as JSON."""
    return {
        "problem": {name: getattr(problem, name) for name in _PROBLEM_FIELDS},
        "responses": [dict(vars(response)) for response in outcome.responses],
        "story": list(outcome.story),
    }


def gaps_of(problem: Problem, outcome: Outcome) -> str:
    """The gaps of the pairs that a finished problem gives ("small medium large"), empty where there are none."""
    group = make_group(problem, outcome.responses) if outcome.state != "dropped" else None
    return " ".join(pair.gap for pair in group.pairs) if group else ""


def export(ledger: Ledger, options: Options, folder: str | os.PathLike[str], info: dict[str, Any]) -> dict[str, Any]:
    """Writes all finished problems as records and returns the manifest; equal ledgers give equal bytes.

    A problem is held out by a hash of its id: the `heldout` (count, or share below 1) smallest ones of those that give
    records.
    """
    cut = _heldout_cut(ledger, options)
    splits = {"train": False, "validation": True}
    return write_data(
        folder,
        sft={name: _sft(ledger, options, cut, heldout) for name, heldout in splits.items()},
        groups={
            "train": _balanced(ledger, options, cut),
            "validation": _groups(ledger, options, cut, True),
        },
        shards=options.shards,
        info=info,
    )


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


def _heldout_cut(ledger: Ledger, options: Options) -> int:
    """The split hash up to which a problem is held out; -1 where none is."""
    if options.heldout < 1:
        return int(options.heldout * 2**64) - 1
    ids = ledger.db.execute("SELECT problem_id FROM outcomes WHERE pairs != ''")
    smallest = heapq.nsmallest(int(options.heldout), (_split_hash(problem_id, options.seed) for (problem_id,) in ids))
    return smallest[-1] if smallest else -1


def _split_hash(problem_id: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"split\0{seed}\0{problem_id}".encode()).digest()[:8], "big")


def _sft(ledger: Ledger, options: Options, cut: int, heldout: bool) -> Iterator[SftExample]:
    for problem, responses in _finished(ledger, options, cut, heldout):
        for r in responses:
            if r.kind == "suitable":
                yield SftExample(
                    problem.problem_id,
                    "",
                    problem.problem,
                    r.thought,
                    r.solution,
                    r.text,
                    problem.answer,
                    problem.difficulty,
                    problem.source,
                    id=r.id,
                    parent=r.parent,
                    origin=r.origin,
                    model=r.model,
                )


def _balanced(ledger: Ledger, options: Options, cut: int) -> Iterator[Group]:
    """The training groups; held-out pairs stay as they are, since they are counted by direction."""
    if options.balance == "none":
        return _groups(ledger, options, cut, False)
    directions = count_directions(_groups(ledger, options, cut, False))
    groups = _groups(ledger, options, cut, False)
    return balanced(groups, directions, options.balance, lambda name: _split_hash(name, options.seed) / 2**64)


def _groups(ledger: Ledger, options: Options, cut: int, heldout: bool) -> Iterator[Group]:
    for problem, responses in _finished(ledger, options, cut, heldout):
        if group := make_group(problem, responses):
            yield group


def _finished(
    ledger: Ledger, options: Options, cut: int, heldout: bool
) -> Iterator[tuple[Problem, tuple[Response, ...]]]:
    def wanted(problem_id: str) -> bool:
        return (_split_hash(problem_id, options.seed) <= cut) == heldout

    for _, row in ledger.outcomes("state != 'dropped'", wanted=wanted):
        responses = ({**r, "loss_spans": tuple(map(tuple, r["loss_spans"]))} for r in row["responses"])
        yield Problem(**row["problem"]), tuple(Response(**r) for r in responses)
