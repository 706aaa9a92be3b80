"""Final answers are found whole, and only where a text states them."""

import time

import pytest

from crv.verify.extract import cut_final_statement, final_spans, hide_final_answers, retracts, speaks_of_answer


def answers(text: str) -> list[str]:
    return [span.text for span in final_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So x is 3.\nThe answer is 42", ["42"]),
        ("The answer is 20.5.", ["20.5"]),
        ("The answer is $\\boxed{\\frac{1}{2}}$.", ["\\frac{1}{2}"]),
        ("\\boxed{19} and later \\boxed{13}", ["19", "13"]),
        ("The final answer is: 2y", ["2y"]),
        ("6 * 7 = 42\n#### 42", ["42"]),
        ("**Answer:** 40 minutes", ["40 minutes"]),
        ("The answer is $1. 5$ or so", ["$1. 5$ or so"]),
        ("= 5!\nThe answer is 5! ways.", ["5! ways"]),
        ("nothing is stated here", []),
        ("an unclosed \\boxed{3", []),
    ],
)
def test_spans_are_whole(text, expected):
    assert answers(text) == expected


def test_a_damaged_fraction_stays_in_the_span():
    assert answers("The answer is \x0crac{1}{2}") == ["\x0crac{1}{2}"]


def test_an_answer_taken_back_is_noticed():
    text = "The answer is 15. This is incorrect, it should be 5"
    assert retracts(text, final_spans(text))
    calm = "The answer is 15. That completes the solution."
    assert not retracts(calm, final_spans(calm))


@pytest.mark.parametrize(
    ("text", "body", "statement"),
    [
        ("2 + 2 = 4. Therefore, the answer is 4.", "2 + 2 = 4.", "Therefore, the answer is 4."),
        ("2 + 2 = 4 The answer is 4", "2 + 2 = 4", "The answer is 4"),
        ("2 + 2 = 4.\nWe get $\\boxed{4}$.", "2 + 2 = 4.", "We get $\\boxed{4}$."),
        ("no end", "no end", ""),
    ],
)
def test_the_final_statement_is_cut_off(text, body, statement):
    assert cut_final_statement(text) == (body, statement)


def test_hidden_answers_leave_the_reasoning():
    hidden = hide_final_answers("First, the answer is 4. Check: 2 + 2 gives it. So the answer is $\\boxed{4}$.")
    assert "4" not in hidden
    assert "Check: 2 + 2 gives it" in hidden


@pytest.mark.parametrize(
    "text",
    [
        "This matches the given answer.",
        "Since the answer is 12, we know x = 3",
        "as stated in the answer key",
        "to be consistent with the correct answer",
        "The answer provided is 4",
    ],
)
def test_talk_of_the_given_answer_is_found(text):
    assert speaks_of_answer(text)


def test_plain_reasoning_is_not_talk_of_the_answer():
    assert not speaks_of_answer("We are given a triangle. The given side is 4. The answer is 12.")


@pytest.mark.parametrize("text", ["{" * 10_000_000, "\\boxed{" * 100_000, "The answer is " * 50_000, "$" * 900_000])
def test_hostile_text_costs_little(text):
    start = time.monotonic()
    final_spans(text)
    hide_final_answers(text)
    speaks_of_answer(text)
    assert time.monotonic() - start < 10
