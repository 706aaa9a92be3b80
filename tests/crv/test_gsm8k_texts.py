"""The shipped texts of GSM8K problems: right where they should be, proved wrong where not, and nobody else's."""

import asyncio
import json
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))
from gsm8k_texts import texts_by_rule  # noqa: E402

from crv.verify import algebra  # noqa: E402
from crv.verify.certificate import certify, ladder  # noqa: E402

QUESTION = "Natalia sold clips to 48 friends in April, and half as many in May. How many did she sell altogether?"
ANSWER = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 clips.\n#### 72"
FIXTURE = ROOT / "examples" / "gsm8k_cots"


async def _compare(gold, answer):
    return algebra.compare(gold, answer)


def verdict(gold, text):
    return asyncio.run(certify(gold, text, ladder(_compare))).verdict


def rows(name):
    return [json.loads(line) for line in (FIXTURE / name).read_text(encoding="utf-8").splitlines()]


def test_all_three_texts_reach_the_answer_and_differ_in_length():
    texts = texts_by_rule(QUESTION, ANSWER, random.Random(0))
    assert all(verdict("72", text) == "correct" for text in (texts.fitting, texts.terse, texts.convoluted))
    assert len(texts.terse) * 1.2 < len(texts.fitting) < len(texts.convoluted) / 1.2
    assert "<<" not in texts.fitting + texts.terse + texts.convoluted


def test_a_solution_of_one_calculation_has_no_terse_text():
    assert texts_by_rule(QUESTION, "She sold 48+24 = <<48+24=72>>72.\n#### 72", random.Random(0)) is None


def test_every_shipped_problem_is_of_gsm8k_and_easy_and_hard_are_in_balance():
    problems, recordings = rows("problems.jsonl"), rows("recordings.jsonl")
    assert all(row["problem_id"].startswith("gsm8k_train/") for row in problems)
    labels = [json.loads(row["answer"])["label"] for row in recordings if row["agent"] == "critic"]
    assert abs(labels.count("easy") - labels.count("hard")) <= 0.1 * len(labels)


@pytest.mark.parametrize(("agent", "expected"), [("corrupter", "incorrect")])
def test_every_made_mistake_is_proved_wrong(agent, expected):
    gold = {row["problem_id"]: row["answer"] for row in rows("problems.jsonl")}
    made = [row for row in rows("recordings.jsonl") if row["agent"] == agent][::10]
    assert made
    assert all(verdict(gold[row["problem_id"]], row["answer"]) == expected for row in made)
