"""Verdicts: thoughts are cut off first, the last stated answer counts, what cannot be shown is unknown."""

import asyncio
from typing import Any

import pytest

from cogpo_jax.evaluation.grading import Grader, cut_thoughts, grade_choice, grade_text, repeats
from cogpo_jax.evaluation.tasks import Problem, load_task, make_problems


def math(gold: str, *responses: str | None) -> list[Any]:
    async def grades() -> list[Any]:
        async with Grader() as grader:
            return [await grader.grade("math", Problem("p", "q", (), gold), response) for response in responses]

    return asyncio.run(grades())


def test_math_is_graded_by_what_follows_the_thoughts() -> None:
    right, wrong, unknown = math(
        "7",
        "<think>\nPerhaps \\boxed{8}.\n</think>\n\nSo \\boxed{7}.",
        "<think>\\boxed{7}</think> The answer is 8.",
        "<think>It is \\boxed{7}, or not",
    )
    assert (right.verdict, right.extracted, right.thoughts) == ("correct", "7", "closed")
    assert (wrong.verdict, wrong.extracted) == ("incorrect", "8")
    assert (unknown.verdict, unknown.extracted, unknown.thoughts) == ("unknown", None, "broken")
    assert unknown.reason == "thoughts that do not end"


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("We add.\nTherefore, n = 3.", "correct"),
        ("Thus $n = 3$.", "correct"),
        ("So the sum is 1 + 2 = 3", "correct"),
        ("Hence n = 4.", "incorrect"),
        ("Therefore n = 3. Let us check that.", "unknown"),
        ("We set n = 3.", "unknown"),
    ],
)
def test_a_last_sentence_that_concludes_with_an_equation_states_the_answer(response: str, verdict: str) -> None:
    (graded,) = math("3", response)
    assert graded.verdict == verdict


def test_of_several_final_answers_the_last_one_counts() -> None:
    late, early = math("7", "The answer is 5.\nThen the answer is 7.", "The answer is 7.\nThen the answer is 5.")
    assert (late.verdict, late.extracted) == ("correct", "7")
    assert (early.verdict, early.extracted) == ("incorrect", "5")


def test_no_answer_and_no_response_are_unknown_with_their_reason() -> None:
    none, missing = math("7", "I do not know.", None)
    assert (none.verdict, none.extracted, none.reason) == ("unknown", None, "no final answer")
    assert (missing.verdict, missing.reason) == ("unknown", "no response: the row has none")


@pytest.mark.parametrize(
    ("response", "rest", "state"),
    [
        ("plain", "plain", "none"),
        ("<think>a</think>b", "b", "closed"),
        ("a</think>b", "b", "closed"),
        ("<think>a", "", "broken"),
        ("<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>b", "b", "closed"),
        ("<think>a</think>b<think>c", "b", "broken"),
        ("<think>a</think>b</think>c", "c", "broken"),
        (
            "<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>b<|end_of_solution|>",
            "b",
            "closed",
        ),
    ],
)
def test_thoughts_are_cut_off(response: str, rest: str, state: str) -> None:
    assert cut_thoughts(response) == (rest, state)


CHOICE = Problem("p", "q", (), "B", ("Rome", "Paris", "2", "Oslo, Norway"), (2, 1, 0, 3))


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("\\boxed{B}", "B"),
        ("The answer is (B).", "B"),
        ("The answer is B. Paris", "B"),
        ("The answer is Paris.", "B"),
        ("**Answer:** B) Paris", "B"),
        ("\\boxed{\\text{A}}", "C"),  # shown at A, third in the data
        ("The answer is 2.", "A"),  # the option's text, not a place
        ("First A.\nThe answer is A.\nNo: the answer is B.", "B"),
        ("I think so.\n\n(B)", "B"),
        ("Oslo is in Norway. The answer is Oslo, Norway.", "D"),
        ("b", "B"),
        ("The answer is (b).", "B"),
        ("Option B is correct.", "B"),
        ("I choose B.", "B"),
        ("Rome is older. So B.", "B"),
        ("The answer is B because it is on the Seine.", "B"),
        ('The answer is "B".', "B"),
        ("答案是B", "B"),
        ("- B. Paris", "B"),
        ("The best answer is option (B), Paris.", "B"),
        ("I think it is B.", "B"),
        ('{"answer": "B"}', "B"),
    ],
)
def test_a_choice_is_read_by_letter_or_text_and_unshuffled(response: str, letter: str) -> None:
    verdict, extracted, _ = grade_choice(CHOICE, response)
    assert (verdict, extracted) == ("correct" if letter == "B" else "incorrect", letter)


@pytest.mark.parametrize(
    "response",
    [
        "A city.",
        "So B is wrong.",
        "The answer is (B) and (C).",
        "The answer is B, C.",
        "B or C",
        "The answer is (B) Rome.",
        "The answer is London.",
        "\\boxed{F}",
        "",
    ],
)
def test_a_choice_that_is_none_or_two_of_the_options_is_unknown(response: str) -> None:
    assert grade_choice(CHOICE, response)[0] == "unknown"


def test_a_shuffled_choice_gets_the_verdict_of_its_option() -> None:
    row = {"problem": "q", "choices": ["w", "x", "y", "z"], "answer": "y"}
    for seed in range(8):
        (problem,) = make_problems(load_task("choice"), [row], "rows", seed)
        letter = "ABCD"[problem.choices.index("y")]
        assert grade_choice(problem, f"The answer is ({letter}).")[:2] == ("correct", "C")


@pytest.mark.parametrize(
    ("gold", "response", "verdict"),
    [
        ("(D)", "So the answer is (D).", "correct"),
        ("(D)", "So the answer is D.", "correct"),
        ("(D)", "So the answer is (E).", "incorrect"),
        ("True", "So the answer is true.", "correct"),
        ("fern oak", "So the answer is oak fern.", "incorrect"),
        ("24", "It is 24", "unknown"),
    ],
)
def test_big_bench_answers_match_word_for_word(gold: str, response: str, verdict: str) -> None:
    assert grade_text(gold, response)[0] == verdict


def test_repetition_is_seen_and_ordinary_text_is_not_called_that() -> None:
    assert repeats("Let us see. " + "So x = 2. " * 60)
    assert repeats(
        "\n".join(f"Wait, let me check the sum of all the numbers in the list again. {i}" for i in range(40))
    )
    assert not repeats("Natalia sold 48 / 2 = 24 clips in May, and 48 + 24 = 72 clips altogether.")
    assert not repeats(" ".join(str(i) for i in range(500)))
    assert not repeats("")
