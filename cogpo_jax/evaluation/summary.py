"""What graded samples say: the figures of one run, and two runs against each other."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError
from cogpo_jax.evaluation import statistics
from crv.verify.spelling import spell

_MEANT_TO_DIFFER = ("model", "weights", "file", "engine", "dtype", "problems")


def summarise(samples: Sequence[Mapping[str, Any]], groups: Mapping[str, str]) -> dict[str, Any]:
    """The figures of graded samples; `groups` names every problem, and its group or "".

    `accuracy` is pass@1: the mean over problems of the share of correct samples. Unknown is not correct there;
    `accuracy_if_unknown_correct` says how much could hide in it.
    """
    by_problem = _by_problem(samples)
    counts = {name: [len(rows), sum(r["verdict"] == "correct" for r in rows)] for name, rows in by_problem.items()}
    single = all(n == 1 for n, _ in counts.values())
    fewest = min(n for n, _ in counts.values())
    ks = sorted({2**i for i in range(fewest.bit_length())} | {fewest})
    shares = [c / n for n, c in counts.values()]
    hopeful = [sum(r["verdict"] != "incorrect" for r in rows) / len(rows) for rows in by_problem.values()]
    tally = Counter(row["verdict"] for row in samples)
    share = lambda test: sum(map(test, samples)) / len(samples)  # noqa: E731
    told = [row for row in samples if row["finish_reason"] is not None]
    kinds = {"all": samples} | {
        v: [r for r in samples if r["verdict"] == v] for v in ("correct", "incorrect", "unknown")
    }
    per_group: dict[str, list[float]] = defaultdict(list)
    for name, (n, c) in counts.items():
        per_group[groups.get(name, "")].append(c / n)
    return {
        "problems": len(by_problem),
        "problems_without_samples": sorted(set(groups) - set(by_problem)),
        "samples": len(samples),
        "samples_per_problem": {"least": fewest, "most": max(n for n, _ in counts.values())},
        "accuracy": statistics.mean_with_interval(shares, single),
        "accuracy_if_unknown_correct": sum(hopeful) / len(hopeful),
        "pass_at_k": {
            str(k): statistics.mean_with_interval([statistics.pass_at_k(n, c, k) for n, c in counts.values()], single)
            for k in ks
        },
        "majority_at_k": {
            str(k): statistics.mean_with_interval([_majority(rows, k) for rows in by_problem.values()], single)
            for k in ks
        },
        "verdicts": {verdict: tally[verdict] for verdict in ("correct", "incorrect", "unknown")},
        "shares": {
            "unknown": share(lambda r: r["verdict"] == "unknown"),
            "no_answer": share(lambda r: r["extracted"] is None),
            "truncated": sum(r["finish_reason"] == "length" for r in told) / len(told) if told else None,
            "broken_thoughts": share(lambda r: r["thoughts"] == "broken"),
            "repetition": share(lambda r: r["repetition"]),
        },
        "unknown_by_reason": dict(Counter(r["reason"] for r in kinds["unknown"]).most_common()),
        "tokens": {
            kind: statistics.lengths([r["tokens"] for r in rows if r["tokens"] is not None])
            for kind, rows in kinds.items()
        },
        "groups": {
            name: statistics.mean_with_interval(values, single)
            for name, values in sorted(per_group.items())
            if len(per_group) > 1
        },
        "detectable_points": statistics.detectable(len(by_problem), fewest),
    }


def _majority(rows: Sequence[Mapping[str, Any]], k: int) -> float:
    correct = sum(row["verdict"] == "correct" for row in rows)
    others = Counter(
        spell(row["extracted"]).lower() for row in rows if row["verdict"] != "correct" and row["extracted"] is not None
    )
    return statistics.majority_at_k(correct, list(others.values()), len(rows) - correct - sum(others.values()), k)


def read_samples(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a finished evaluation's samples.jsonl."""
    path = Path(folder, "samples.jsonl")
    if not path.is_file():
        raise UserError(f"{folder}: holds no finished evaluation (samples.jsonl)")
    with path.open(encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def runs_in(folder: str | Path) -> dict[str, Path]:
    """The evaluations in a folder by task: itself, or its subfolders."""
    folders = [Path(folder), *sorted(f for f in Path(folder).glob("*") if f.is_dir())]
    found: dict[str, Path] = {}
    for place in folders:
        if (place / "samples.jsonl").is_file() and (place / "evaluation.json").is_file():
            found.setdefault(_settings(place)["task"]["name"], place)
    if not found:
        raise UserError(f"{folder}: holds no finished evaluation (samples.jsonl)")
    return found


def compare(a: str | Path, b: str | Path, common: bool = False) -> dict[str, Any]:
    """B minus A, by task and over all problems together, on the same problems asked with the same prompts.

    Raises UserError where tasks, problems or prompts are not the same, unless `common`: then the problems of both
    count, and how many were left out or asked otherwise is said.
    """
    runs_a, runs_b = runs_in(a), runs_in(b)
    if set(runs_a) != set(runs_b) and not (common and set(runs_a) & set(runs_b)):
        names = [", ".join(sorted(runs)) for runs in (runs_a, runs_b)]
        raise UserError(
            f"--compare: {a} holds {names[0]}; {b} holds {names[1]}: nothing to pair; give runs of one task"
        )
    tasks: dict[str, Any] = {}
    pairs: list[tuple[Fraction, Fraction]] = []
    single = True
    for name in sorted(set(runs_a) & set(runs_b)):
        tasks[name], some, alone = _compare_task(runs_a[name], runs_b[name], common)
        pairs += some
        single &= alone
    return {"a": str(a), "b": str(b), "tasks": tasks, "overall": statistics.paired(pairs, single)}


def sentence(result: Mapping[str, Any]) -> str:
    """A paired result in one line."""
    needed = result["problems_needed"]
    return (
        f"{100 * result['a']:.1f} -> {100 * result['b']:.1f}, {100 * result['difference']:+.1f} points "
        f"({100 * result['low']:+.1f} to {100 * result['high']:+.1f}), "
        f"{result['test']} p = {result['p']:.3g}, mid-p = {result['mid_p']:.3g}; "
        f"{result['better_with_b']} problems better, {result['worse_with_b']} worse; "
        + (f"about {needed:,} problems show a difference like that" if needed else "no difference to show")
    )


def _compare_task(a: Path, b: Path, common: bool) -> tuple[dict[str, Any], list[tuple[Fraction, Fraction]], bool]:
    of_a, of_b = ({name: _verdicts(rows) for name, rows in _by_problem(read_samples(run)).items()} for run in (a, b))
    both = [name for name in of_a if name in of_b]
    other_prompts = [name for name in both if of_a[name][0] != of_b[name][0]]
    only = len(of_a) - len(both), len(of_b) - len(both)
    if not common and any(only):
        raise UserError(
            f"--compare: {only[0]} problems are only in {a}, {only[1]} only in {b}: say --common to leave out"
        )
    if not common and other_prompts:
        raise UserError(
            f"--compare: {len(other_prompts)} of {len(both)} problems were asked with other prompts in {b} "
            f"({other_prompts[0]!r}): say --common to compare all the same"
        )
    if not both:
        raise UserError(f"--compare: {a} and {b} have no problem in common")
    pairs = [(of_a[name][1], of_b[name][1]) for name in both]
    single = all(runs[name][2] == 1 for runs in (of_a, of_b) for name in both)
    changed = [{"id": n, "a": float(x), "b": float(y)} for n, (x, y) in zip(both, pairs, strict=True) if x != y]
    settings = differing(_settings(a), _settings(b))
    return (
        {
            **statistics.paired(pairs, single),
            "only_in_a": only[0],
            "only_in_b": only[1],
            "other_prompts": len(other_prompts),
            "other_settings": {n: [x, y] for n, x, y in settings if n.partition(".")[0] not in _MEANT_TO_DIFFER},
            "changed": sorted(changed, key=lambda row: row["a"] - row["b"]),
        },
        pairs,
        single,
    )


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> tuple[str, Fraction, int]:
    """(prompt digest, share of correct samples, samples) of one problem."""
    return rows[0]["prompt_digest"], Fraction(sum(r["verdict"] == "correct" for r in rows), len(rows)), len(rows)


def _by_problem(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in samples:
        found[row["id"]].append(row)
    return found


def _settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def differing(a: Any, b: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, there, here) of each field of two JSON objects that differs."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = sorted({*a, *b})
        return [d for key in names for d in differing(a.get(key), b.get(key), f"{name}.{key}".lstrip("."))]
    return [] if a == b else [(name, a, b)]
