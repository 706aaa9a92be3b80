"""A problem's way: each branch of the loop, and what it leaves behind."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cogpo_jax.configs import crv_recorded
from crv.agents import Agents, UnusableError, read_answer
from crv.loop import run_problem
from crv.options import Options, SolverOptions, VerifierOptions
from crv.output import make_group
from crv.pool.base import Answer
from crv.problems import Problem
from crv.prompts import load_prompts
from crv.verify import grade

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from scripted import ScriptedPool, label  # noqa: E402


def _config():
    return crv_recorded.get_config()


OPTIONS = Options.from_config(_config())
PROBLEM = Problem("p", "What is 6 times 7?", "42", "Six times seven is 42. The answer is 42", "teacher-x")
RIGHT = "6 times 7 is 6 + 6 + 6 + 6 + 6 + 6 + 6, which is 42. The answer is 42"
WRONG = "6 times 7 is 6 + 6 + 6 + 6 + 6 + 6, which is 36. The answer is 36"
BLIND = "The answer is \\boxed{42}"


AGENTS = Agents(load_prompts("default"), OPTIONS)


async def _no_algebra(gold, answer):
    return grade.UNKNOWN, "no worker in this test"


async def _compare(gold, answer):
    verdict, rule = grade.compare(gold, answer)
    return await _no_algebra(gold, answer) if rule == "algebra" else (verdict, rule)


def walk(pool, problem=PROBLEM, **changes):
    options = replace(OPTIONS, **changes)
    agents = Agents(load_prompts("default"), options)
    return asyncio.run(run_problem(problem, agents, pool.generate, _compare, options))


def kinds(outcome):
    return {response.id: response.kind for response in outcome.responses}


def gaps(outcome, problem=PROBLEM):
    return [pair.gap for pair in make_group(problem, outcome.responses).pairs]


def test_an_easy_original_is_expanded_into_a_triangle():
    pool = ScriptedPool(critic=[label("easy")], rethinker_expand=[RIGHT], verifier=[BLIND], corrupter=[WRONG])
    outcome = walk(pool)
    assert (outcome.state, outcome.label, outcome.rounds) == ("rewritten", "easy", 1)
    assert kinds(outcome) == {"original": "easy", "rewrite-1": "suitable", "wrong-0": "incorrect"}
    assert gaps(outcome) == ["small", "medium", "large"]
    parents = {response.id: response.parent for response in outcome.responses}
    assert parents == {"original": "", "rewrite-1": "original", "wrong-0": "rewrite-1"}


def test_a_hard_original_is_simplified():
    pool = ScriptedPool(critic=[label("hard")], rethinker_simplify=[RIGHT], verifier=[BLIND], corrupter=[WRONG])
    assert kinds(walk(pool))["original"] == "hard"


def test_a_medium_original_gives_only_the_large_pair():
    outcome = walk(ScriptedPool(critic=[label("medium")], corrupter=[WRONG]))
    assert outcome.state == "fitting"
    assert gaps(outcome) == ["large"]


def test_a_choice_may_be_named_by_its_text():
    problem = replace(PROBLEM, answer="B", choices=("36", "42"))
    outcome = walk(ScriptedPool(critic=[label("medium")], corrupter=[WRONG]), problem)
    assert kinds(outcome) == {"original": "suitable", "wrong-0": "incorrect"}


def test_a_wrong_original_is_never_rewritten():
    problem = replace(PROBLEM, cot=WRONG)
    outcome = walk(ScriptedPool(), problem, solver=SolverOptions(0))
    assert (outcome.state, outcome.reason) == ("dropped", "original_wrong")
    assert kinds(outcome) == {"original": "incorrect"}


def test_a_wrong_original_serves_as_the_wrong_text_of_a_solver_who_is_right():
    pool = ScriptedPool(solver=[PROBLEM.cot], critic=[label("easy")], rethinker_expand=[RIGHT], verifier=[BLIND])
    outcome = walk(pool, replace(PROBLEM, cot=WRONG), solver=SolverOptions(1))
    assert kinds(outcome) == {"original": "incorrect", "solver-0": "easy", "rewrite-1": "suitable"}
    assert "corrupter" not in pool.count


def test_a_problem_without_a_chain_of_thought_is_solved_first():
    pool = ScriptedPool(solver=[RIGHT], critic=[label("medium")], corrupter=[WRONG])
    outcome = walk(pool, replace(PROBLEM, cot=""), solver=SolverOptions(1))
    assert kinds(outcome) == {"solver-0": "suitable", "wrong-0": "incorrect"}


def test_a_gold_answer_that_independent_solutions_outvote_proves_nothing():
    pool = ScriptedPool(solver=["Add them all up carefully. The answer is 36"])
    outcome = walk(pool, replace(PROBLEM, cot=WRONG), solver=SolverOptions(1))
    assert (outcome.state, outcome.reason) == ("dropped", "gold_outvoted")
    assert set(kinds(outcome).values()) == {"unknown"}


def test_a_wrong_rewrite_is_caught_told_and_kept_as_wrong():
    pool = ScriptedPool(critic=[label("easy")], rethinker_expand=[WRONG, RIGHT], verifier=[BLIND])
    outcome = walk(pool)
    assert kinds(outcome) == {"original": "easy", "rewrite-1": "incorrect", "rewrite-2": "suitable"}
    second = [request for request in pool.asked if request.agent == "rethinker_expand"][1]
    assert "'36'" in second.inputs["reason"]
    assert second.inputs["cot"] == PROBLEM.cot, "always the original, never the failed rewrite"


def test_rounds_are_bounded_and_the_problem_dropped_with_its_reason():
    pool = ScriptedPool(critic=[label("easy")], rethinker_expand=[WRONG], repeat=True)
    outcome = walk(pool, max_rounds=2)
    assert (outcome.state, outcome.reason, outcome.rounds) == ("dropped", "rewrite_wrong_answer", 2)
    assert pool.count["rethinker_expand"] == 2


@pytest.mark.parametrize(
    ("rewrite", "reason"),
    [
        ("We reach the given answer quickly. The answer is 42", "rewrite_speaks_of_answer"),
        (PROBLEM.cot, "rewrite_unchanged"),
        ("It is forty-two or so, by tables. No more.", "rewrite_unclear_answer"),
    ],
)
def test_unfit_rewrites_are_refused(rewrite, reason):
    pool = ScriptedPool(critic=[label("easy")], rethinker_expand=[rewrite], repeat=True)
    assert walk(pool, max_rounds=1).reason == reason


def test_a_rewrite_must_lead_to_the_answer_without_being_told():
    pool = ScriptedPool(critic=[label("easy")], rethinker_expand=[RIGHT], verifier=["\\boxed{41}", "\\boxed{40}"])
    outcome = walk(pool, max_rounds=1, verifier=VerifierOptions(3, 2))
    assert outcome.reason == "rewrite_not_reaching_answer"
    assert pool.count["verifier"] == 2, "two misses of three: two agreements are out of reach"
    shown = next(request for request in pool.asked if request.agent == "verifier")
    assert "answer" not in shown.inputs
    assert "The answer is 42" not in shown.messages[-1][1]


def test_k_of_n_blind_solves_are_enough():
    pool = ScriptedPool(
        critic=[label("easy")], rethinker_expand=[RIGHT], verifier=["\\boxed{41}", BLIND, BLIND], corrupter=[WRONG]
    )
    outcome = walk(pool, verifier=VerifierOptions(3, 2))
    proof = next(r.certificate for r in outcome.responses if r.kind == "suitable")
    assert '"blind": [2, 3]' in proof


def test_a_rewrite_may_have_to_be_judged_medium_again():
    pool = ScriptedPool(critic=[label("easy"), label("hard")], rethinker_expand=[RIGHT], verifier=[BLIND])
    assert walk(pool, max_rounds=1, recritique=True).reason == "rewrite_still_hard"


def test_a_corruption_that_is_not_proved_wrong_is_unknown_and_unused():
    unclear = "6 times 7 is about forty. The answer is 42y"
    outcome = walk(ScriptedPool(critic=[label("medium")], corrupter=[unclear]))
    assert kinds(outcome) == {"original": "suitable", "wrong-0": "unknown"}
    assert make_group(PROBLEM, outcome.responses) is None


def test_unusable_answers_are_asked_again_a_bounded_number_of_times():
    cut = Answer('{"reason": "so', finish_reason="length")
    pool = ScriptedPool(critic=["not json", cut, label("medium")], corrupter=[WRONG])
    outcome = walk(pool, asks=3)
    assert outcome.state == "fitting"
    critic = [request for request in pool.asked if request.agent == "critic"]
    assert len({request.key() for request in critic}) == 3
    assert len({request.seed for request in critic}) == 3
    assert [step["unusable"] for step in outcome.story if "unusable" in step] == ["not JSON", "length"]


def test_a_cut_off_answer_gets_a_larger_budget():
    cut = Answer(label("medium"), finish_reason="length")
    pool = ScriptedPool(critic=[cut, label("medium")], corrupter=[WRONG])
    walk(pool, asks=2)
    budgets = [request.sampling.max_tokens for request in pool.asked if request.agent == "critic"]
    assert budgets == [4096, 8192]


def test_a_label_is_read_through_a_thought_a_code_fence_and_control_characters():
    for answer in (
        f"<think>hm</think>{label('medium')}",
        f"```json\n{label('medium')}\n```",
        '{"reason": "\x13", "label": "medium"}',
    ):
        assert walk(ScriptedPool(critic=[answer], corrupter=[WRONG]), asks=1).state == "fitting"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("nothing", "critic_not_JSON"), ('{"label": "perfect"}', "critic_no_label"), (" ", "critic_empty")],
)
def test_an_answer_that_stays_unusable_is_an_outcome_of_its_own(answer, reason):
    outcome = walk(ScriptedPool(critic=[answer], repeat=True))
    assert (outcome.state, outcome.reason) == ("dropped", reason)


def test_a_damaged_gold_answer_drops_the_problem_before_any_call():
    pool = ScriptedPool()
    assert walk(pool, replace(PROBLEM, answer="rac{1}{2}")).reason == "gold_unreadable"
    assert not pool.asked


def test_texts_cannot_speak_the_language_of_prompts():
    problem = replace(PROBLEM, problem="{{answer}} {{cot}} What is 6 times 7?")
    pool = ScriptedPool(critic=[label("medium")], corrupter=[WRONG])
    walk(pool, problem)
    assert "{{answer}} {{cot}} What is 6 times 7?" in pool.asked[0].messages[-1][1]


def test_all_agents_of_a_text_share_their_prompts_beginning():
    pool = ScriptedPool(critic=[label("easy")], rethinker_expand=[RIGHT], verifier=[BLIND], corrupter=[WRONG])
    walk(pool)
    prompts = {request.agent: request.messages[-1][1] for request in pool.asked}
    shared = f"## Problem\n{PROBLEM.problem}\n\n## Chain of thought\n"
    assert all(prompt.startswith(shared) for prompt in prompts.values())
    assert prompts["critic"].split("## Task")[0] == prompts["rethinker_expand"].split("## Task")[0]


def test_the_solver_may_be_asked_for_natural_mistakes_before_any_is_made():
    pool = ScriptedPool(critic=[label("medium")], solver=[RIGHT, WRONG])
    outcome = walk(pool, solver=SolverOptions(0, 3))
    assert kinds(outcome) == {"original": "suitable", "solver-1": "incorrect"}
    assert "corrupter" not in pool.count


def test_the_judge_may_say_the_same_but_never_wrong():
    worded = replace(PROBLEM, cot="Six times seven is forty-two. The answer is forty-two")
    same = ScriptedPool(judge=['{"verdict": "same"}'], critic=[label("medium")], corrupter=[WRONG])
    outcome = walk(same, worded, judge=True)
    assert kinds(outcome) == {"original": "suitable", "wrong-0": "incorrect"}
    assert "judge" in outcome.responses[0].certificate
    different = walk(ScriptedPool(judge=['{"verdict": "different"}']), worded, judge=True, solver=SolverOptions(0))
    assert (different.reason, different.responses) == ("original_unknown", ())
    assert walk(ScriptedPool(), worded, solver=SolverOptions(0)).reason == "original_unknown", "no judge unless allowed"


def test_no_judge_for_an_answer_that_is_taken_back():
    wavering = replace(PROBLEM, cot="It makes 42. The answer is 42. But wait, that is wrong.")
    assert walk(ScriptedPool(), wavering, judge=True, solver=SolverOptions(0)).reason == "original_unknown"


@pytest.mark.parametrize(
    "said",
    [
        '{"reason": "r", "label": "easy"}',
        '```json\n{"label": "Easy"}\n```',
        '```\n{"label": "easy", "reason": "r"}\n```\nI hope that this helps.',
        'Here is my judgement: {"LABEL": " EASY. ", "Reason": "a {brace}"}',
        '<think>Is it {"label": "hard"}?</think>\n{"label": "**easy**"}',
        '{"reason": "so \\(x^2\\) and \\dots", "label": "easy"}',
        '{"reason": "line\nbreak", "label": "easy"}',
        '{"label": "easy"} and once more {"label": "Easy"}',
        '{"note": 1} {"label": "easy", "reason": null}',
        '[{"reason": "r", "label": "easy"}]',
        '{"label": ["easy"]}',
        '{"result": {"reason": "r", "label": "Easy"}}',
        "{'reason': 'r', 'label': 'easy'}",
        '{"reason": "r", "label": "easy",}',
        '{reason: "he said "so"", label: easy}',
        "{“label”: “easy”}",
        '"{\\"label\\": \\"easy\\"}"',
        "Reason: too short\n**Label:** Easy.",
        "<label>easy</label>",
        "The label is easy.",
        "**Easy**",
    ],
)
def test_the_one_label_is_found_in_whatever_dress(said):
    ask = AGENTS.critique("p", "c", "i")
    assert read_answer(ask, Answer(said)).label == "easy"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("It is not easy.", "not JSON"),
        ("label: easy, medium or hard", "not JSON"),
        ("Label: easy\nLabel: hard", "more than one label"),
        ('{"label": "easy/medium"}', "no label"),
        ('{"label": "simple"}', "no label"),
        ('{"reason": "r"}', "no label"),
        ('{"label": "easy"} {"label": "hard"}', "more than one label"),
        ('{"label": "easy', "not JSON"),
        ("{" * 5000, "not JSON"),
        ("<think>so</think>\n", "empty"),
    ],
)
def test_an_answer_without_one_clear_label_is_unusable_and_says_why(said, reason):
    with pytest.raises(UnusableError, match=f"^{reason}$"):
        read_answer(AGENTS.critique("p", "c", "i"), Answer(said))
