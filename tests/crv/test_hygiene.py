"""Problems that are not worth a call are dropped before any, for a reason that is counted."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cogpo_jax.errors import UserError
from crv.driver import run
from crv.hygiene import Decontaminator, Hygiene, HygieneOptions, latin_share
from crv.problems import Problem

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "benchmarks")]
from crv_decontamination import measure  # noqa: E402
from scripted import ScriptedPool, label  # noqa: E402
from slow_run import options  # noqa: E402

LONG = (
    "A farmer has {} sheep and twice as many goats on the northern hill, and every third animal is sold at the market "
    "in spring before the river floods the lower meadows. How many animals are left when the summer comes?"
)


def reasons(tmp_path, problems, evaluation=None, **changes):
    hygiene = Hygiene(HygieneOptions(**changes), evaluation or {}, tmp_path / "scratch")
    try:
        return [hygiene.reason(Problem(str(i), text, "1")) for i, text in enumerate(problems)]
    finally:
        hygiene.close()
        assert not (tmp_path / "scratch").exists()


def test_equal_but_for_looks_is_a_duplicate(tmp_path):
    problems = ["What is $2 + 2$?", "what is 2+2 ?", "What is 2 + 3?"]
    assert reasons(tmp_path, problems, duplicates=True) == ["", "duplicate", ""]
    assert reasons(tmp_path, problems) == ["", "", ""]


def test_nearly_equal_is_a_near_duplicate(tmp_path):
    problems = [
        LONG.format(12),
        LONG.format(12).replace("in spring", "in autumn"),
        "Another question altogether, of other words.",
    ]
    assert reasons(tmp_path, problems, near_duplicates=0.7) == ["", "near_duplicate", ""]
    assert reasons(tmp_path, problems, near_duplicates=0.99) == ["", "", ""]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("小明有5个苹果，吃了2个，还剩几个？", "一辆车有5个轮子，丢了2个，还剩几个？"),
        ("У Маши 5 яблок и 2 груши.", "На полке 5 книг и 2 чашки."),
        ("كم ناتج 5 + 2", "ما حاصل 5 + 2"),
        ("Βρείτε το άθροισμα 5 + 2", "Βρείτε τη διαφορά 5 + 2"),
        ("Solve x² = 4", "Solve x2 = 4"),
    ],
)
def test_different_problems_of_any_script_are_no_duplicates(tmp_path, one, other):
    assert reasons(tmp_path, [one, other, one], duplicates=True) == ["", "", "duplicate"]


def test_equal_in_another_form_of_unicode_or_another_size_of_formula_is_a_duplicate(tmp_path):
    problems = [r"Find \binom{5}{2} of them", r"Find $\dbinom{5}{2}$ of them", "Ｆｉｎｄ \\binom{５}{2} of them"]
    assert reasons(tmp_path, problems, duplicates=True) == ["", "duplicate", "duplicate"]


def test_a_short_evaluation_question_is_found_inside_a_problem(tmp_path):
    evaluation = {"quiz": ["What is 6 * 7?", "求 1+2"]}
    problems = ["Answer in words. What is 6 * 7", "What is 6 * 77?", "请求 1+2 的值", "Hm?"]
    found = "contaminated_lexical_quiz"
    assert reasons(tmp_path, problems, evaluation) == [found, "", found, ""]


def test_overlaps_with_an_evaluation_set_are_dropped_by_name(tmp_path):
    evaluation = {"math500": [LONG.format(12)]}
    problems = [f"Answer in French. {LONG.format(12)}", "What is the sum of the first ten odd numbers?"]
    assert reasons(tmp_path, problems, evaluation) == ["contaminated_lexical_math500", ""]


def test_a_template_is_found_only_where_asked_for():
    evaluation = ["Find the 8th term of 3, 9, 27, 81 and so on."]
    other_numbers = "Find the 11th term of 2, 6, 18, 54 and so on."
    assert Decontaminator(evaluation).overlap(other_numbers) == ""
    assert Decontaminator(evaluation, template_share=0.3).overlap(other_numbers) == "template"


def test_lengths_and_scripts(tmp_path):
    problems = ["short", "x" * 50, "Сколько будет два плюс два, если считать медленно?"]
    verdicts = reasons(tmp_path, problems, min_characters=10, max_characters=49, latin_share=0.5)
    assert verdicts == ["too_short", "too_long", "too_long"]
    assert reasons(tmp_path, problems, latin_share=0.5) == ["", "", "other_script"]
    assert latin_share("$\\frac{1}{2}$ 数学") == 0


def test_recall_and_precision_on_labelled_overlaps():
    lexical = measure(ngram=8, template_share=0.0)
    assert lexical["recall_lexical"] >= 0.99
    assert lexical["precision"] >= 0.98
    templates = measure(ngram=10, template_share=0.3)
    assert templates["recall_lexical"] >= 0.99
    assert templates["precision"] >= 0.99


def test_a_run_counts_what_was_dropped_and_asks_nothing_about_it(tmp_path):
    cot = "6 times 7 makes 42. The answer is 42"
    rows = [
        {"problem_id": str(i), "problem": p, "answer": "42", "cot": cot}
        for i, p in enumerate(("What is 6 * 7?", "what is 6*7?", "No"))
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hygiene = HygieneOptions(duplicates=True, min_characters=5)
    config = replace(options(), input=str(tmp_path / "in.jsonl"), hygiene=hygiene)
    pool = ScriptedPool(critic=[label("medium")], corrupter=["6 times 7 makes 41, I think. The answer is 41"])
    summary = run(config, tmp_path / "run", pool)
    assert summary["problems"] == {"total": 3, "fitting": 1, "dropped": 2}
    assert summary["drops"] == {"duplicate": 1, "too_short": 1}
    assert len(pool.asked) == 2


def test_an_evaluation_set_that_is_none_is_refused(tmp_path):
    config = replace(options(), hygiene=HygieneOptions(against=(str(tmp_path / "no.jsonl"),)))
    with pytest.raises(UserError, match="no such file"):
        run(config, tmp_path / "run", ScriptedPool())
