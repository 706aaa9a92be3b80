# ruff: noqa: E501
"""One row each in the columns of further sets, made for the tests."""

CHAIN = "Six sevens are forty-two.\n\nThe answer is $\\boxed{42}$."
TAGGED = "<think>\nSix sevens are forty-two.\n</think>\n\nThe answer is $\\boxed{42}$."
ASK = "What is 6 * 7?"
THOUGHT, SOLUTION = "Six sevens are forty-two.", "The answer is $\\boxed{42}$."


def say(role, content, **more):
    return {"role": role, "content": content, **more}


PROBLEMS = {
    "deepmath_103k": {"question": ASK, "final_answer": "42", "difficulty": 3.0, "topic": "x"}
    | {f"r1_solution_{i}": TAGGED for i in (1, 2, 3)},
    "am_deepseek_r1_distilled": {
        "messages": [
            say("user", ASK, info={"source": "s", "reference_answer": "42", "think_content": None}),
            say(
                "assistant",
                f"<think>{THOUGHT}</think>\n<answer>{SOLUTION}</answer>",
                info={"think_content": THOUGHT, "answer_content": SOLUTION},
            ),
        ]
    },
    "openthoughts_114k_metadata": {
        "problem": ASK, "deepseek_reasoning": THOUGHT, "deepseek_solution": SOLUTION,
        "ground_truth_solution": "Easy: \\boxed{42}", "domain": "math", "source": "s", "test_cases": None,
    },
    "s1k": {
        "solution": "42", "question": ASK, "cot_type": "math", "source_type": "s", "metadata": "{}",
        "thinking_trajectories": [THOUGHT], "attempt": SOLUTION,
    },
    "numinamath_cot": {"source": "s", "problem": ASK, "solution": CHAIN, "messages": [say("user", ASK), say("assistant", CHAIN)]},
    "light_r1_sft": {"conversations": [{"from": "user", "value": ASK}, {"from": "assistant", "value": TAGGED}]},
    "dapo_17k": {
        "data_source": "math_dapo", "prompt": [say("user", ASK)], "ability": "MATH",
        "reward_model": {"ground_truth": "42", "style": "rule"}, "extra_info": {"index": "a"},
    },
    "big_math": {"problem": ASK, "answer": "42", "source": "s", "domain": ["x"], "llama8b_solve_rate": 0.5},
    "orz_57k": [{"from": "human", "value": ASK}, {"from": "assistant", "ground_truth": {"value": "42"}}],
    "openmathreasoning": {
        "expected_answer": "42", "problem_type": "has_answer_extracted", "problem_source": "aops", "generation_model": "m",
        "pass_rate_72b_tir": "0.5", "problem": ASK, "generated_solution": TAGGED, "inference_mode": "cot",
    },
    "openmathinstruct_2": {"problem": ASK, "generated_solution": CHAIN, "expected_answer": "42", "problem_source": "math"},
    "acereason_sft": {"category": "math", "source": "s", "input": ASK, "output": TAGGED},
    "acereason_math": {"problem": ASK, "answer": "42"},
    "nemotron_post_training": {
        "input": [say("user", ASK)], "output": TAGGED, "category": "math", "license": "cc-by-4.0", "reasoning": "on",
        "generator": "R1", "used_in_training": "yes", "version": "v1", "system_prompt": "x",
    },
    "unseen_names": {"problem_statement": ASK, "reasoning_trace": THOUGHT, "final_response": SOLUTION, "gold_answer": "42"},
}  # fmt: skip

PAIRS = {
    "ms_swift": {"messages": [say("user", ASK), say("assistant", "42")], "rejected_response": "43"},
    "openai_preference": {
        "input": {"messages": [say("user", ASK)], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [say("assistant", "42")],
        "non_preferred_output": [say("assistant", "43")],
    },
    "hh_rlhf": {
        "chosen": f"\n\nHuman: {ASK}\n\nAssistant: 42",
        "rejected": f"\n\nHuman: {ASK}\n\nAssistant: 43",
    },
    "axolotl_nectar": {"prompt": ASK, "answers": [{"answer": "43", "rank": 2.0}, {"answer": "42", "rank": 1.0}]},
    "content_parts": {
        "prompt": [say("user", [{"type": "text", "text": ASK}])],
        "chosen": [say("assistant", [{"type": "text", "text": "42"}])],
        "rejected": [say("assistant", [{"type": "text", "text": "43"}])],
    },
    "helpsteer2_preference": {"prompt": ASK, "response_1": "42", "response_2": "43", "preference_strength": -2, "split": "t"},
    "helpsteer3": {"context": [say("user", ASK)], "response1": "43", "response2": "42", "overall_preference": 1},
    "capybara_dpo": {
        "source": "s", "conversation": [{"input": ASK, "output": "42"}], "prompt": "<chatml>", "original_response": "42",
        "chosen": [say("user", ASK), say("assistant", "42")], "rejected": [say("user", ASK), say("assistant", "43")],
    },
    "distilabel_math": {"metadata": "m", "instruction": ASK, "chosen_response": "42", "chosen_rating": 9.0, "rejected_response": "43"},
    "unseen_alias": {"query": ASK, "chosen": "42", "rejected": "43"},
}  # fmt: skip
