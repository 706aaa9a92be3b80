"""What the arms' evaluations say: accuracy and differences with intervals; tables, bars, a page, the documents."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from arms import ROOT, Bench, evaluation_folder

from cogpo_jax.atomic import write_atomic, write_json


def interval(values: np.ndarray, draws: int = 2000) -> list[float]:
    """95% interval of the mean of [seeds, problems]: seeds and problems are drawn anew, together (bootstrap)."""
    rng = np.random.default_rng(0)
    seeds, problems = values.shape
    means = []
    for _ in range(draws):
        rows = values[rng.integers(seeds, size=seeds)]
        means.append(float(np.mean([row[rng.integers(problems, size=problems)].mean() for row in rows])))
    return [float(x) for x in np.percentile(means, (2.5, 97.5))]


def results(benches: Sequence[Bench], arms: Sequence[str], split: str) -> dict[str, Any]:
    """Accuracy by arm and every paired difference, over the seeds that have the arm, or both.

    Intervals are over seeds and problems; a difference of one seed is `cogpo evaluate --compare`'s, with its p.
    """
    from cogpo_jax.evaluation.summary import compare, read_samples

    done: dict[str, dict[int, list[dict[str, Any]]]] = {arm: {} for arm in arms}
    for bench in benches:
        for arm in arms:
            if (folder := evaluation_folder(bench, arm, split)).joinpath("summary.json").is_file():
                done[arm][bench.seed] = read_samples(folder)
    done = {arm: runs for arm, runs in done.items() if runs}
    folders = {bench.seed: evaluation_folder(bench, "", split) for bench in benches}

    def right(arm: str, seeds: Sequence[int]) -> np.ndarray:
        return np.array([[sample["verdict"] == "correct" for sample in done[arm][seed]] for seed in seeds], float)

    by_arm, differences = {}, {}
    for i, (arm, runs) in enumerate(done.items()):
        values, samples = right(arm, list(runs)), [sample for one in runs.values() for sample in one]
        by_arm[arm] = {
            "accuracy": float(values.mean()),
            "interval": interval(values),
            "by_seed": {str(seed): float(row.mean()) for seed, row in zip(runs, values, strict=True)},
            "tokens": float(np.mean([sample["tokens"] for sample in samples])),
            "cut_off": sum(sample["finish_reason"] == "length" for sample in samples),
            "unknown": sum(sample["verdict"] == "unknown" for sample in samples),
            "verdicts": {
                str(seed): "".join("01"[int(one)] for one in row) for seed, row in zip(runs, values, strict=True)
            },
        }
        for other in list(done)[:i]:
            both = [seed for seed in runs if seed in done[other]]
            if len(both) == 1:
                told = compare(folders[both[0]] / other, folders[both[0]] / arm)["overall"]
                one = {"difference": told["difference"], "interval": [told["low"], told["high"]], "p": told["p"]}
                differences[f"{arm} - {other}"] = {**one, "seeds": both}
            elif both:
                values = right(arm, both) - right(other, both)
                one = {"difference": float(values.mean()), "interval": interval(values), "seeds": both}
                differences[f"{arm} - {other}"] = one
    seeds = sorted({seed for runs in done.values() for seed in runs})
    return {"split": split, "seeds": seeds, "arms": by_arm, "differences": differences}


def table(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The arms of `names` as a Markdown table, in that order."""
    lines = ["| training | right | 95% interval | seeds | tokens |", "|---|---|---|---|---|"]
    for arm, name in names.items():
        if one := found["arms"].get(arm):
            low, high = one["interval"]
            seeds = len(one["by_seed"])
            lines.append(
                f"| {name} | {one['accuracy']:.1%} | {low:.1%} to {high:.1%} | {seeds} | {one['tokens']:.0f} |"
            )
    return "\n".join(lines)


def differences_table(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Every paired difference between the arms of `names` as a Markdown table."""
    lines = ["| difference | points | 95% interval | seeds |", "|---|---|---|---|"]
    for pair, one in found["differences"].items():
        first, second = pair.split(" - ")
        if first in names and second in names:
            low, high = (100 * end for end in one["interval"])
            points = f"{100 * one['difference']:+.1f} | {low:+.1f} to {high:+.1f}"
            lines.append(f"| {first} - {second} | {points} | {len(one['seeds'])} |")
    return "\n".join(lines)


def publish(found: Mapping[str, Any], name: str, names: Mapping[str, str]) -> None:
    """The results into docs/results/NAME.json and between the marks `NAME: arms` and so on of the documents."""
    rounded = json.loads(json.dumps(found), parse_float=lambda x: round(float(x), 4))
    write_json(ROOT / "docs" / "results" / f"{name}.json", rounded)
    tables = {"arms": table(found, names), "differences": differences_table(found, names)}
    for file in (ROOT / "docs" / "results.md", ROOT / "README.md"):
        text = file.read_text(encoding="utf-8")
        for kind, rows in tables.items():
            begin, end = f"<!-- {name}: {kind} -->", f"<!-- end of {kind} -->"
            if begin in text:
                head, _, rest = text.partition(begin)
                text = f"{head}{begin}\n{rows}\n{end}{rest.partition(end)[2]}"
        write_atomic(file, text)


def bars(found: Mapping[str, Any]) -> str:
    """The arms' accuracies as SVG: a bar and its 95% interval for each."""
    drawn = []
    for i, (arm, one) in enumerate(found["arms"].items()):
        y, (low, high) = 24 * i, (130 + 400 * end for end in one["interval"])
        drawn += [
            f'<text x="0" y="{y + 15}">{arm}</text>',
            f'<rect x="130" y="{y + 4}" width="{400 * one["accuracy"]:.1f}" height="14" fill="#79a"/>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 11}" y2="{y + 11}" stroke="#000"/>',
            f'<text x="540" y="{y + 15}">{one["accuracy"]:.1%}, {one["tokens"]:.0f} tokens</text>',
        ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="700" height="{6 * len(drawn)}" font-family="sans-serif"'
    return f'{head} font-size="13">{"".join(drawn)}</svg>'


def write_page(found: Mapping[str, Any], file: Path) -> None:
    """A self-contained page of `results`: the bars, and every difference."""
    rows = []
    for name, one in found["differences"].items():
        low, high = (100 * end for end in one["interval"])
        rows.append(f"<tr><td>{name}<td>{100 * one['difference']:+.1f}<td>{low:+.1f} to {high:+.1f}</tr>")
    page = f"""<!doctype html><meta charset="utf-8"><title>Does it teach?</title>
<style>body{{font:14px sans-serif;max-width:52em;margin:2em auto}}td{{padding:.1em 1em .1em 0}}</style>
<h1>Does it teach?</h1>
<p>Share of problems answered right ({found["split"]} split, seeds {found["seeds"]}); lines and ranges are 95% intervals
over seeds and problems. One seed says nothing about other seeds.</p>
{bars(found)}
<h2>Differences, in points</h2><table>{"".join(rows)}</table>
<pre>{json.dumps(found.get("settings", {}), indent=1)}</pre>
"""
    write_atomic(file, page)
