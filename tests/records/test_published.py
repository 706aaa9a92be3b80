"""Published sets in their own columns: each is read right, or refused for its reason; docs/data.md lists them.

`python tests/records/test_published.py` writes the table of docs/data.md anew.
"""

import json
import sys
from pathlib import Path

import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.records.reader import read_rows
from cogpo_jax.records.recognise import recognise, recognise_pairs
from cogpo_jax.records.rows import DropReason, FlatRow, SourceRow, parse_row
from crv.verify.grade import readable

ROOT = Path(__file__).parents[2]
SAMPLES = Path(__file__).parent / "published"
sys.path.insert(0, str(SAMPLES))
import made  # noqa: E402

START = "| set | preset | what becomes of each column | command |\n|---|---|---|---|\n"


def samples():
    files = {path.stem: path for path in sorted(SAMPLES.glob("*.json*"))}
    found = {name: [row for _, row in read_rows(path)] for name, path in files.items()}
    for name, row in {**made.PROBLEMS, **made.PAIRS}.items():
        found[name] = [{"conversations": row} if isinstance(row, list) else row]
    return dict(sorted(found.items()))


ALL = samples()


def understood(rows):
    """(command, meaning), or (command, why it is refused)."""
    try:
        return "cogpo convert", recognise_pairs(rows)
    except UserError as error:
        refused = str(error)
    if "unpaired" in refused or "step-rated" in refused:
        return "refused", refused.partition(";")[0]
    try:
        meaning = recognise(rows)
        golds = [meaning.example(row).answer for row in rows]
        if sum(bool(gold) and not readable(gold) for gold in golds) * 2 > len(golds):
            return "refused", f"most gold answers cannot be read ({meaning.gold} is prose)"
        return "cogpo crv", meaning
    except UserError as error:
        if "no gold answers apart" not in str(error):
            return "refused", str(error).partition(";")[0]
    return "cogpo crv --config.columns.gold='box(cot)'", recognise(rows, gold="box(cot)")


def table():
    lines = []
    for name, rows in ALL.items():
        command, meaning = understood(rows)
        if command == "refused":
            lines.append(f"| {name} | - | {meaning.removeprefix('columns: ')} | refused |")
            continue
        told = [f"{role} = {path}" for role, path in meaning.columns.items()]
        told += [f"answer = {meaning.gold}"] if meaning.gold else []
        told += [f"unused: {', '.join(meaning.unused)}"] if meaning.unused else []
        cells = "; ".join(told).replace("|", "\\|")
        lines.append(f"| {name} | {meaning.preset} | {cells} | `{command}` |")
    return START + "\n".join(lines) + "\n"


def test_the_documents_table_is_what_the_samples_give():
    assert table() in (ROOT / "docs" / "data.md").read_text()


@pytest.mark.parametrize("name", made.PROBLEMS)
def test_a_set_of_problems_keeps_its_problem_gold_and_chain(name):
    command, meaning = understood(ALL[name])
    assert command.startswith("cogpo crv")
    example = meaning.example(ALL[name][0])
    assert (example.problem, example.answer, example.dropped) == (made.ASK, "42", "")
    carries = "Six sevens" in json.dumps(ALL[name])
    assert ("Six sevens are forty-two." in example.cot) == carries
    assert meaning.gold_from_chain == ("box(cot)" in command or meaning.gold == "hash(answer)")


@pytest.mark.parametrize("name", made.PAIRS)
def test_a_set_of_pairs_keeps_its_prompt_and_which_is_better(name):
    row = ALL[name][0]
    (pair,) = parse_row(SourceRow("x", row), recognise_pairs([row]))
    assert isinstance(pair, FlatRow)
    assert (pair.prompt, pair.chosen[2], pair.rejected[2], pair.messages) == (made.ASK, "42", "43", "")


def test_a_continuation_is_joined_with_its_start():
    rows = ALL["math_step_dpo_10k"]
    (pair,) = parse_row(SourceRow("x", rows[0]), recognise_pairs(rows))
    assert pair.chosen[2].startswith("Let's think step by step.\nStep 1: Read the numbers.\nStep 2: Riley has")


def test_the_first_verified_generation_is_the_chain():
    rows = ALL["openr1_math_220k"]
    assert "\\boxed{55}" in recognise(rows).example(rows[0]).cot


def test_proofs_are_skipped_by_name():
    rows = ALL["numinamath_1.5"]
    assert [recognise(rows).example(row).dropped for row in rows] == ["", "", "proof"]


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        ({"problem": "p", "answer": "1", "my_notes": "long " * 200}, {}, "'my_notes' looks like a chain"),
        ({"problem": "p", "answer": "1", "x": "<think>\nhm\n</think> 1"}, {}, "'x' looks like a chain"),
        (
            {"question": "q", "answer": "1", "solution": "1 it is", "r1": "<think>hm</think> 1"},
            {},
            "column 'r1' has thoughts in tags, and 'solution', which has none, would be read",
        ),
        ({"question": "q", "answer": "so " * 25 + "7"}, {}, "no gold answers apart from its chains"),
        ({"a": "1", "b": "2"}, {}, "no problem in it; columns found: a, b; nearest preset"),
        ({"problem": "p", "answer": "1"}, {"preset": "gsm8k"}, "gsm8k does not fit: missing"),
        ({"problem": "p", "answer": "1"}, {"preset": "no"}, "'no': no such preset"),
        ({"problem": "p", "answer": "1"}, {"columns": "cot=why"}, "cot=why: no such column"),
        ({"problem": "p", "answer": "1"}, {"gold": "box(why)"}, "no such column"),
        ({"problem": "p", "answer": "1"}, {"columns": "why"}, "want ROLE=COLUMN"),
        (
            {"question": "q", "final_answer": "1", "r1_solution_1": "c", "solution": "1", "answer": "1"},
            {},
            "deepmath and limo fit equally well",
        ),
    ],
)
def test_what_would_be_lost_or_is_unclear_is_refused(columns, changes, message):
    with pytest.raises(UserError) as error:
        recognise([columns], **changes)
    assert message in str(error.value)


def test_an_index_is_a_letter_only_where_there_are_choices():
    assert recognise([{"problem": "p", "answer": 1}]).example({"problem": "p", "answer": 1}).answer == "1"
    row = {"question": "q", "choices": ["x", "y"], "answer": 1}
    example = recognise([row]).example(row)
    assert (example.answer, example.choices) == ("B", ("x", "y"))


@pytest.mark.parametrize(
    ("columns", "problem", "gold"),
    [
        ({"body": "Tom has 3.", "question": "How many?", "answer": "3"}, "Tom has 3.\n\nHow many?", "3"),
        ({"Body": "Tom has 3.", "Question": "How many?", "question_concat": "Tom has 3. How many?", "Answer": 3.0},
         "Tom has 3. How many?", "3.0"),
        ({"context": "Tom has 3.", "question": "Tom has 3. How many?", "answer": "3"}, "Tom has 3. How many?", "3"),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, "q", "B"),
        ({"question_stem": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}, "q", "B"),
        ({"question": "q", "options": ["A)x", "B)y"], "correct": "B"}, "q", "B"),
        ({"question": "q", "options": {"A": "x", "B": "y"}, "answer_idx": "B"}, "q", "B"),
        ({"problem": "q", "answer": ["1", "2"]}, "q", "1, 2"),
        ({"question": "q", "options": ["x", "y"], "answer": "y", "answer_letter": "B"}, "q", "B"),
        ({"query": "q", "response": "So 6.", "answer": "7"}, "q", "7"),
        ({"instruction": "q", "input": "", "output": "Sechs.\n所以答案是7。"}, "q", "7"),
        ({"Open-ended Verifiable Question": "q", "Ground-True Answer": "x"}, "q", "x"),
    ],
)  # fmt: skip
def test_a_question_is_read_whole_and_a_key_is_a_letter(columns, problem, gold):
    example = recognise([columns], gold="box(cot)" if "output" in columns else "auto").example(columns)
    assert (example.problem, example.answer) == (problem, gold)


@pytest.mark.parametrize("winner", ["tie", "tie (bothbad)", "", None])
def test_a_tie_is_no_pair(winner):
    rows = [{"prompt": "p", "response_a": "x", "response_b": "y", "winner": who} for who in ("model_a", winner)]
    meaning = recognise_pairs(rows)
    assert isinstance(parse_row(SourceRow("x", rows[0]), meaning), list)
    assert parse_row(SourceRow("x", rows[1]), meaning) == DropReason.NO_PREFERENCE


def test_numbered_responses_without_a_decision_are_no_pairs():
    with pytest.raises(UserError, match="chosen: missing"):
        recognise_pairs([{"prompt": "p", "response_a": "x", "response_b": "y"}])


def test_a_chain_may_be_left_out_on_purpose():
    row = {"problem": "p", "answer": "$\\boxed{1}$", "my_notes": "long " * 200}
    assert recognise([row], cot="none").example(row).answer == "1"
    assert recognise([row], cot="my_notes").example(row).cot.startswith("long")


if __name__ == "__main__":
    path = ROOT / "docs" / "data.md"
    before, _, _ = path.read_text().partition(START)
    path.write_text(before + table())
