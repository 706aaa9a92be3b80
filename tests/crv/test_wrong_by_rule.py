"""Made mistakes: one step changed, carried through, proved to end elsewhere."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from wrong_by_rule import corrupt_by_rule

from crv.verify.extract import final_spans


def test_a_mistake_is_carried_through_every_later_step():
    text = "There are 3 * 8 = 24 legs. Each costs 2, so 24 * 2 = 48. With tax, 48 + 12 = 60.\nThe answer is 60"
    wrong = corrupt_by_rule(text, random.Random(0))
    legs, cost, total = (
        int(wrong.split(f"{before} = ")[1].split(".")[0].split()[0]) for before in ("3 * 8", "* 2", "+ 12")
    )
    assert legs != 24
    assert cost == 2 * legs
    assert total == cost + 12
    assert [span.text for span in final_spans(wrong)] == [str(total)]
    assert abs(len(wrong) - len(text)) <= 4


def test_numbers_before_the_mistake_and_others_stay():
    text = "We have 240 seats and 30 rows. So 240 / 30 = 8 seats a row, and 240 - 30 = 210 remain.\nThe answer is 210"
    wrong = corrupt_by_rule(text, random.Random(1))
    assert wrong.startswith("We have 240 seats and 30 rows. So 240 / 30 = 8 seats a row, and 240 - 30 = ")
    assert "210" not in wrong


def test_a_mistake_that_does_not_reach_the_answer_is_none():
    assert corrupt_by_rule("First 3 * 8 = 24. It is not needed.\nThe answer is 7", random.Random(0)) == ""
    assert corrupt_by_rule("Clearly it is so.\nThe answer is 7", random.Random(0)) == ""
