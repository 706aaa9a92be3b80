"""Recall and precision of the decontamination on labelled overlaps with GSM8K problems (tests/data/decontamination).

    python benchmarks/crv_decontamination.py

The evaluation set is the evaluation problems of all overlaps. Recall: the share of overlapping training problems that
are dropped, lexical and semantic ones apart. Precision: overlapping ones among all dropped, the rest being clean ones.
"""

import json
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

from cogpo_jax import cli
from crv.hygiene import Decontaminator

_FILE = Path(__file__).parents[1] / "tests" / "data" / "decontamination" / "overlaps.jsonl.xz"


def overlaps() -> list[dict[str, str]]:
    """The labelled rows {kind, rule, evaluation, training}."""
    return [json.loads(line) for line in lzma.decompress(_FILE.read_bytes()).split(b"\n") if line]


def measure(ngram: int, template_share: float) -> dict[str, Any]:
    """Recall by kind, clean problems dropped, and precision."""
    rows = overlaps()
    decontaminator = Decontaminator({row["evaluation"] for row in rows} - {""}, ngram, template_share)
    total = Counter(row["kind"] for row in rows)
    dropped = Counter(row["kind"] for row in rows if decontaminator.overlap(row["training"]))
    found = dropped["lexical"] + dropped["semantic"]
    return {
        "ngram": ngram,
        "template_share": template_share,
        "recall_lexical": round(dropped["lexical"] / total["lexical"], 3),
        "recall_semantic": round(dropped["semantic"] / total["semantic"], 3),
        "clean_dropped": f"{dropped['clean']} of {total['clean']}",
        "precision": round(found / (found + dropped["clean"]), 3),
    }


def main() -> None:
    """Prints one JSON object a setting."""
    for ngram, share in ((8, 0.0), (10, 0.0), (13, 0.0), (10, 0.4), (10, 0.3), (10, 0.2)):
        print(json.dumps(measure(ngram, share)))


if __name__ == "__main__":
    cli.run(main)
