"""The verifier on real texts with adjudicated labels: hardly ever wrong about "correct", never about "wrong"."""

import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from crv_verifier import SET, figures, judge, shipped


def test_precision_on_real_texts():
    counts: Counter[tuple[str, str]] = Counter()
    for row in shipped():
        counts[row["label"], judge(row).verdict] += 1
    result = figures(counts)
    assert result["texts"] > 1350
    assert result["precision_of_correct"] >= 0.995
    assert result["false_proved_wrong"] == 0, "a right text was proved wrong"
    assert result["proved_wrong"] >= 400
    assert counts["correct", "correct"] >= 820


def test_facts_from_the_public_tests_of_other_graders():
    """Nothing unequal passes for equal, nothing equal is proved wrong, and most is decided."""
    lines = SET.with_name("equivalence.jsonl").read_text(encoding="utf-8").splitlines()
    counts: Counter[tuple[bool, str]] = Counter()
    wrong = []
    for row in map(json.loads, lines):
        verdict = judge({"gold": row["gold"], "text": row["candidate"]}).verdict
        counts[row["equal"], verdict] += 1
        if verdict == ("incorrect" if row["equal"] else "correct"):
            wrong.append((row["gold"], row["answer"], verdict))
    assert wrong == []
    equal, unequal = (sum(n for (label, _), n in counts.items() if label is side) for side in (True, False))
    assert equal + unequal == len(lines) > 500
    assert counts[True, "correct"] >= 0.95 * equal
    assert counts[False, "incorrect"] >= 0.75 * unequal


def test_the_labels_that_differ_from_the_source_are_listed_with_their_rule():
    adjudicated = [row for row in shipped() if row["source"] is False and row["label"] == "correct"]
    assert len(adjudicated) > 150
    assert all(row["why"].startswith("the same but for") for row in adjudicated)
