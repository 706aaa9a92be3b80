"""Final answers are found whole, and only where a text states them."""

import time

import pytest

from crv.verify import grade
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


FORMS = [
    ("The answer is 18.", "18"),
    ("Therefore, the final answer is: 18", "18"),
    ("The answer to the problem is 18", "18"),
    ("The answer is therefore 18.", "18"),
    ("#### 18", "18"),
    ("Final Answer: The final answer is $18$. I hope it is correct.", "$18$"),
    ("**Answer**: 18", "18"),
    ("**Answer:** 18", "18"),
    ("Answer = 18", "18"),
    ("Ans: 18", "18"),
    (r"x=\boxed 18", "18"),
    (r"So $\boxed{18}$.", "18"),
    (r"So $\fbox{18}$.", "18"),
    (r"\boxed{\boxed{18}}", "18"),
    (r"\boxed{\text{The answer is } 18}", r"\text{The answer is } 18"),
    ("<answer>18</answer>", "18"),
    (r"<answer>\boxed{18}</answer>", "18"),
    ("<answer>The answer is 18</answer>", "18"),
    ("### Final Answer\n18", "18"),
    ("**Final Answer**\n\n18", "18"),
    ("#### Answer:\n18", "18"),
    ("The answer is\n\\[ 18 \\]", "\\[ 18 \\]"),
    ("The answer is $$\n18\n$$", "$$\n18\n$$"),
]


@pytest.mark.parametrize(("statement", "said"), FORMS)
def test_every_form_is_recognised_and_what_is_recognised_is_hidden(statement, said):
    text = f"First we add 9 and 9.\n{statement}"
    assert answers(text) == [said]
    assert grade.compare("18", said)[0] == "same"
    hidden = hide_final_answers(text, gold="18")
    assert hidden.startswith("First we add 9 and 9.")
    assert "18" not in hidden
    assert final_spans(hidden) == []


@pytest.mark.parametrize("line", ["18", "$18$", "**18**", "x = 18.", "= 18", "$$18$$", "18.0"])
def test_a_line_that_is_only_the_gold_answer_is_hidden(line):
    assert hide_final_answers(f"We add.\n{line}\nThat was it.", gold="18") == "We add.\nThat was it."


def test_a_calculation_that_ends_in_the_gold_answer_is_a_step_and_stays():
    assert hide_final_answers("$20 - $2 = $18\n18", gold="18") == "$20 - $2 = $18"


def test_a_box_that_never_closes_is_hidden_and_states_nothing():
    text = "We add 9 and 9. So we get \\boxed{18"
    assert answers(text) == []
    assert hide_final_answers(text) == "We add 9 and 9."


def test_a_text_of_many_answers_states_none_and_is_hidden_all_the_same():
    text = "Work.\n" + "The answer is 18.\n" * 100
    assert answers(text) == []
    assert "18" not in hide_final_answers(text)


def test_boxes_joined_by_and_are_one_answer():
    assert answers(r"$\boxed{1} \quad \text{and} \quad \boxed{2}$") == ["1, 2"]


def test_what_stands_before_an_inner_statement_is_still_said():
    assert answers("The answer is not 26, the answer is 12") == ["not 26, the answer is 12", "12"]
