"""The verifier on real texts with adjudicated labels: hardly ever wrong about "correct", never about "wrong"."""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from crv_verifier import figures, judge, shipped


def test_precision_on_real_texts():
    counts: Counter[tuple[str, str]] = Counter()
    for row in shipped():
        counts[row["label"], judge(row).verdict] += 1
    result = figures(counts)
    assert result["texts"] > 1500
    assert result["precision_of_correct"] >= 0.99
    assert result["false_proved_wrong"] == 0, "a right text was proved wrong"
    assert result["proved_wrong"] >= 400
    assert counts["correct", "correct"] >= 700


def test_the_labels_that_differ_from_the_source_are_listed_with_their_rule():
    adjudicated = [row for row in shipped() if row["source"] is False and row["label"] == "correct"]
    assert len(adjudicated) > 150
    assert all(row["why"].startswith("the same but for") for row in adjudicated)
