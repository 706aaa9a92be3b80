"""Does the student's own surprisal tell fitting, terse and convoluted texts apart, better than length does?

    python benchmarks/surprisal.py --run=runs/teaches/seed-0/sft_asis --output=docs/results/surprisal.json

In the controlled world (examples/arithmetic), where a text's kind is known: problems of 2, 4, 8 and 12 steps, so that
lengths of the kinds overlap (the student was trained on 8 alone); each with one text, of a kind drawn at random. The
texts go through `cogpo score --by_step`. Printed and written, for each pair of kinds: the AUC (the chance that a text
of the first kind has more of the measure than one of the second; 0.5: tells nothing) of three measures, with 95%
intervals (bootstrap over texts). Measures: tokens; surprisal (nats a token); the most surprising step (nats).
"""

import json
import random
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import arms
import numpy as np
from absl import flags

sys.path.insert(0, str(arms.ROOT / "examples" / "arithmetic"))

from world import World, chains

from cogpo_jax import cli
from cogpo_jax.atomic import write_json
from cogpo_jax.text import TextFormat

RUN = flags.DEFINE_string("run", None, "Workdir of an SFT run of benchmarks/teaches.py.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)
TEXTS = flags.DEFINE_integer("texts", 600, "How many texts.")
STEP = r" (?=[a-l] [+-]|[a-l] \d|check )|\n"  # a step ends where the next name, a check or the last line begins
MEASURES = ("tokens", "surprisal", "most surprising step")


def area(high: np.ndarray, low: np.ndarray) -> float:
    """The chance that one of `high` is above one of `low`; ties count half (Mann-Whitney)."""
    return float((high[:, None] > low).mean() + (high[:, None] == low).mean() / 2)


def interval(high: np.ndarray, low: np.ndarray, draws: int = 500) -> list[float]:
    """95% interval of `area`: texts are drawn anew."""
    rng = np.random.default_rng(0)
    drawn = [area(rng.choice(high, len(high)), rng.choice(low, len(low))) for _ in range(draws)]
    return [round(float(x), 3) for x in np.percentile(drawn, (2.5, 97.5))]


def measures(row: dict[str, Any]) -> list[float]:
    """A scored text's MEASURES."""
    worst = max(-step["logp"] for step in row["steps"])
    return [row["tokens"], -row["logp"] / row["tokens"], worst]


def main() -> None:
    """Scores the texts and prints the areas."""
    from cogpo_jax.training.checkpoint import export_checkpoint
    from cogpo_jax.training.score_rows import ScoreOptions, score_file

    rng, rows = random.Random("surprisal"), []
    by_size = [iter(chains(World(steps=size), TEXTS.value, f"surprisal {size}")) for size in (2, 4, 8, 12)]
    for _ in range(TEXTS.value):
        chain, kind = next(rng.choice(by_size)), rng.choice(arms.KINDS)
        rows.append({"prompt": chain.problem, "response": chain.text(kind), "kind": kind})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_checkpoint(RUN.value, str(folder / "hf"), dtype="float32")
        (folder / "in").write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = ScoreOptions(by_step=STEP, text_format=TextFormat(prompt="raw", response="plain"))
        score_file(str(folder / "hf"), str(folder / "in"), str(folder / "out"), options)
        scored = [json.loads(line) for line in (folder / "out").read_bytes().splitlines()]
    values = {kind: np.array([measures(row) for row in scored if row["kind"] == kind]) for kind in arms.KINDS}
    found: dict[str, Any] = {
        "texts": {kind: len(of) for kind, of in values.items()},
        "mean": {kind: dict(zip(MEASURES, of.mean(0).round(3).tolist(), strict=True)) for kind, of in values.items()},
    }
    for a, b in combinations(arms.KINDS, 2):
        pairs = {m: (values[a][:, i], values[b][:, i]) for i, m in enumerate(MEASURES)}
        found[f"{a} over {b}"] = {m: {"auc": round(area(*of), 3), "interval": interval(*of)} for m, of in pairs.items()}
    write_json(Path(OUTPUT.value), found)
    print(json.dumps(found))


if __name__ == "__main__":
    cli.run(main)
