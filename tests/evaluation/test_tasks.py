"""Tasks are data: what a row may look like, what is asked, and what is refused."""

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.evaluation.run import Evaluation, load_problems
from cogpo_jax.evaluation.tasks import TASKS, Task, gold_answer, load_task, make_problems, problem_from_json

SHIPPED = sorted(path.stem for path in TASKS.glob("*.toml"))
EXTRACT = Path(__file__).parent / "gsm8k_extract.jsonl"


def problems(task: str, *rows: dict[str, Any], seed: int = 0, **changes: Any) -> list[Any]:
    return make_problems(load_task(task, **changes), rows, "rows", seed)


def test_the_methods_benchmarks_are_all_there() -> None:
    wanted = "gsm8k math500 aime24 aime25 gpqa_diamond olympiadbench mmlu mmlu_pro bbh livecodebench math choice code"
    assert set(wanted.split()) <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_task_is_sound(name: str) -> None:
    task = load_task(name)
    assert "{problem}" in task.prompt
    assert task.name == name


def test_gsm8k_rows_give_what_follows_the_four_hashes() -> None:
    made = load_problems(Evaluation(load_task("gsm8k"), str(EXTRACT), ""))
    assert [p.gold for p in made[:3]] == ["72", "10", "5"]
    assert made[0].messages[-1][1].endswith("put your final answer within \\boxed{}.")


@pytest.mark.parametrize(
    ("value", "gold"),
    [("so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"), (18, "18"), (["3"], "3"), ("a\n#### 1,000", "1,000"), (0.5, "0.5")],
)
def test_gold_answers_are_unwrapped(value: Any, gold: str) -> None:
    assert gold_answer(value) == gold


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 2},
        {"question": "q", "options": ["a", "b", "c", "d"], "answer": "C"},
        {"question": "q", "A": "a", "B": "b", "C": "c", "D": "d", "answer": "C"},
        {"question": "q", "choices": {"label": list("ABCD"), "text": ["a", "b", "c", "d"]}, "answer": "(C)"},
        {"question": "q", "choices": ["w", "x", "yes", "z"], "answer": "yes"},
        {"question": "q", "choices": ["w", "x", "yes", "z"], "answer": "Yes"},
        {"question": "q", "choices": ["w", "x", "yes", "z"], "answer": "C. yes"},
        {"question": "q", "choices": ["w", "x", "yes", "z"], "answer": "\\boxed{C}"},
        {"question": "q", "choices": ["w", "x", "yes", "z"], "answer": ["Option C"]},
        {"question": "q", "choices": '["w", "x", "yes", "z"]', "answer": 2.0},
        {"question": "q", "choices": {"label": list("1234"), "text": ["a", "b", "c", "d"]}, "answerKey": "3"},
        {"question_stem": "q", "choices": {"label": list("ABCD"), "text": ["a", "b", "c", "d"]}, "answerKey": "C"},
    ],
)
def test_a_key_may_be_a_letter_a_place_or_a_text(row: dict[str, Any]) -> None:
    (problem,) = problems("choice", row)
    assert problem.gold == "C"


@pytest.mark.parametrize(
    "choices",
    [["A) x", "B) y"], [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], ["(A) x", "(B) y"], '["x", "y"]'],
)
def test_options_are_shown_without_the_labels_of_the_data(choices: Any) -> None:
    (problem,) = problems("choice", {"question": "q", "choices": choices, "answer": "A"})
    assert sorted(problem.choices) == ["x", "y"]


def test_options_are_shuffled_by_seed_and_the_order_leads_back() -> None:
    row = {"Question": "q", "Correct Answer": "right", **{f"Incorrect Answer {i}": f"w{i}" for i in (1, 2, 3)}}
    made = [problems("gpqa_diamond", row, seed=seed)[0] for seed in range(12)]
    assert len({p.choices for p in made}) > 4
    assert all(p.gold == "A" and p.choices[p.order.index(0)] == "right" for p in made)
    assert problems("gpqa_diamond", row, seed=3)[0] == made[3]


def test_a_problem_survives_its_journey_through_json() -> None:
    for problem in (
        *problems("choice", {"id": 1, "problem": "q", "choices": ["x", "y"], "answer": "A"}),
        *problems("code", {"id": 2, "problem": "q", "tests": [{"input": "1", "output": "2"}]}),
    ):
        assert problem_from_json(json.loads(json.dumps(problem.to_json()))) == problem


def test_braces_of_a_problem_stay_as_they_are() -> None:
    (problem,) = problems("math", {"problem": "the set {options} and {x}", "answer": "1"})
    assert problem.messages[-1][1].startswith("the set {options} and {x}\n")


def test_few_shot_examples_of_the_same_subject_become_turns() -> None:
    row = {"question": "q", "choices": ["x", "y"], "answer": 1, "subject": "law"}
    shots = [
        {**row, "question": "other", "subject": "art"},
        {**row, "question": "first"},
        {**row, "question": "second"},
    ]
    (problem,) = make_problems(load_task("mmlu", few_shot=2), [row], "rows", 0, shots)
    assert [role for role, _ in problem.messages] == ["user", "assistant"] * 2 + ["user"]
    assert problem.messages[0][1].startswith("first")
    assert problem.messages[1][1] == "The answer is (B)."


def test_livecodebench_private_tests_are_read_without_unpickling() -> None:
    private = json.dumps([{"input": "2", "output": "4", "testtype": "stdin"}])
    packed = base64.b64encode(zlib.compress(pickle.dumps(private))).decode()
    row = {"question_content": "q", "public_test_cases": '[{"input": "1", "output": "2", "testtype": "stdin"}]'}
    (problem,) = problems("livecodebench", {**row, "private_test_cases": packed})
    assert [test["input"] for test in problem.tests] == ["1", "2"]


@pytest.mark.parametrize(
    ("tests", "wanted"),
    [
        ({"inputs": ["2 3\n"], "outputs": ["5\n"]}, ("2 3\n", "5\n", "")),
        ('{"inputs": [["2", "3"]], "outputs": [["5"]]}', ("2\n3", "5", "")),
        ({"fn_name": "add", "inputs": [[2, "3"]], "outputs": [5]}, ('2\n"3"', 5, "add")),
        ([{"input": ["2", "3"], "output": ["5"]}], ("2\n3", "5", "")),
        ({"input": "2", "output": "5"}, ("2", "5", "")),
    ],
)
def test_tests_as_apps_has_them(tests: Any, wanted: tuple[Any, ...]) -> None:
    (problem,) = problems("code", {"problem": "q", "tests": tests})
    assert [tuple(test[name] for name in ("input", "output", "function")) for test in problem.tests] == [wanted]


BAD = [
    ("code", {"problem": "q", "tests": {"inputs": ["1", "2"], "outputs": ["1"]}}, "tests: 2 inputs and 1 outputs"),
    ("math", {"question": "q"}, "answer: no column"),
    ("math", {"problem": "", "answer": "1"}, "problem: "),
    ("math", {"problem": "q", "answer": True}, "answer: True"),
    ("choice", {"problem": "q", "choices": ["only"], "answer": "A"}, "choices: "),
    ("choice", {"problem": "q", "choices": ["x", "y"], "answer": "Z"}, "answer: 'Z'"),
    ("choice", {"problem": "q", "choices": ["x", "y"], "answer": "A. y"}, "answer: 'A. y'"),
    ("choice", {"problem": "q", "choices": ["x", None], "answer": "A"}, "choices: "),
    ("code", {"problem": "q", "tests": []}, "tests: none"),
]


@pytest.mark.parametrize(("task", "row", "message"), BAD)
def test_a_row_that_does_not_fit_is_named(task: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"rows:1: {message}".replace("(", r"\(")):
        problems(task, row)


def test_two_problems_of_one_id_are_refused() -> None:
    with pytest.raises(UserError, match="rows:2: id: 'a': also that of row 1"):
        problems("math", *[{"id": "a", "problem": "q", "answer": "1"}] * 2)


def test_a_column_may_be_named() -> None:
    task = load_task("math", ["answer:key"])
    assert make_problems(task, [{"problem": "q", "answer": "1", "key": "2"}], "rows", 0)[0].gold == "2"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grader": "magic"}, "grader: 'magic'"),
        ({"samples": 0}, "samples"),
        ({"columns": {"question": ["q"]}}, "columns.question"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Task(**{"name": "t", "grader": "math", "prompt": "{problem}", "columns": {}, **fields})


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="give one of aime24"):
        load_task("gsm9k")
