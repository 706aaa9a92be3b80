"""The report's section on evaluations: models by tasks, accuracy against length, responses with their verdicts."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cogpo_jax.atomic import write_atomic
from cogpo_jax.evaluation.summary import read_samples, runs_in
from cogpo_jax.report import charts

SHOWN = 300  # responses of each run in the page
_LONGEST = 6000  # characters of a response in the page


def write_page(path: str | Path, folders: Sequence[str | Path], comparison: Mapping[str, Any] | None = None) -> None:
    """A page of its own about finished evaluations, and about two of them against each other."""
    from cogpo_jax.report.page import build_page

    write_atomic(path, build_page(evaluations=evaluations_section(folders, comparison)))


def evaluations_section(folders: Sequence[str | Path], comparison: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What evaluations.html shows of the folders."""
    runs = [_run(run) for folder in folders for run in runs_in(folder).values()]
    tasks = sorted({run["task"] for run in runs})
    models = list(dict.fromkeys(run["model"] for run in runs))
    table = [
        {"model": model, "cells": [[run for run in runs if (run["model"], run["task"]) == (model, t)] for t in tasks]}
        for model in models
    ]
    points: dict[str, list[charts.Point]] = defaultdict(list)
    for run in runs:
        tokens = run["summary"]["tokens"]["all"]
        if tokens:
            points[f"{run['model']}, {run['task']}"].append((tokens["mean"], 100 * run["summary"]["accuracy"]["value"]))
    changed = [
        {"task": task, **row}
        for task, result in (comparison or {"tasks": {}})["tasks"].items()
        for row in result["changed"]
    ]
    return {
        "runs": runs,
        "tasks": tasks,
        "table": table,
        "by_length": charts.lines(points, "tokens per response, mean", "accuracy (%)") if len(runs) > 1 else "",
        "comparison": comparison,
        "changed": changed[:SHOWN],
        "more_changed": max(0, len(changed) - SHOWN),
        "responses": [card for run in runs for card in run.pop("cards")],
    }


def _run(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    with (folder / "problems.jsonl").open(encoding="utf-8") as f:
        problems = {row["id"]: row for row in map(json.loads, f)}
    samples = read_samples(folder)
    lengths = defaultdict(list)
    counted = sorted((row for row in samples if row["tokens"] is not None), key=lambda row: row["tokens"])
    bins = (
        [counted[i * len(counted) // 8 : (i + 1) * len(counted) // 8] for i in range(8)] if len(counted) >= 16 else []
    )
    for rows in filter(None, bins):
        right = sum(row["verdict"] == "correct" for row in rows)
        lengths["accuracy"].append((sum(row["tokens"] for row in rows) / len(rows), 100 * right / len(rows)))
    return {
        "model": summary["model"],
        "task": summary["task"],
        "summary": summary,
        "lengths": charts.lines(lengths, "tokens of the response (eighths of the samples)", "correct (%)"),
        "histogram": charts.histogram(_by_verdict(counted), "tokens", "responses") if counted else "",
        "cards": [_card(row, problems[row["id"]], summary) for row in _chosen(samples)],
        "samples": len(samples),
    }


def _by_verdict(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, int]]:
    counts: dict[str, dict[int, int]] = {}
    for row in rows:
        of = counts.setdefault(row["verdict"], defaultdict(int))
        of[row["tokens"]] += 1
    return dict(sorted(counts.items()))


def _chosen(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most SHOWN samples: of each verdict its fair share, in the order of the file."""
    by_verdict: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(samples):
        by_verdict[row["verdict"]].append(i)
    turns = [i for k in range(len(samples)) for of in by_verdict.values() if k < len(of) for i in [of[k]]]
    return [samples[i] for i in sorted(turns[:SHOWN])]


def _card(row: Mapping[str, Any], problem: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    response = row["response"] or ""
    marks = [("truncated", row["finish_reason"] == "length"), ("repetition", row["repetition"])]
    marks += [("broken thoughts", row["thoughts"] == "broken"), ("no answer", row["extracted"] is None)]
    return {
        **{name: row[name] for name in ("id", "sample", "verdict", "reason", "extracted", "tokens")},
        "task": summary["task"],
        "model": summary["model"],
        "problem": problem["problem"],
        "gold": problem["gold"],
        "marks": [name for name, there in marks if there],
        "text": response[:_LONGEST],
        "cut": max(0, len(response) - _LONGEST),
    }
