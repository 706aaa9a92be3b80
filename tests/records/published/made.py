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
    "synthetic_1": {
        "problem_id": "p", "prompt": ASK, "gold_standard_solution": CHAIN, "llm_response": TAGGED, "score": 1.0,
        "verification_info": "{'ground_truth': '42'}", "metadata": "{}", "task_type": "verifiable_math",
    },
    "synthetic_2": {"problem_id": "p", "prompt": ASK, "verification_info": '{"ground_truth": "42"}', "task_type": "math"},
    "dolphin_r1": {"messages": [say("system", "s"), say("user", ASK)], "reasoning": THOUGHT, "answer": SOLUTION, "model": "r1"},
    "acemath_instruct": {"messages": [say("user", ASK)], "answer": CHAIN},
    "am_thinking_v1": {
        "conversations": [
            {"from": "human", "value": ASK},
            {"from": "assistant", "value": f"<think>{THOUGHT}</think><answer>{SOLUTION}</answer>", "info": {"ground_truth": "42"}},
        ],
        "system": "s",
    },
    "query_with_gold": {"query": ASK, "response": CHAIN, "answer": "42"},
    "math23k": {"id": "1", "original_text": ASK, "segmented_text": "What is 6 * 7 ?", "equation": "x=6*7", "ans": "42"},
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
    "aime_2024_upper": {"ID": "2024-I-1", "Problem": ASK, "Solution": CHAIN, "Answer": 42},
    "natural_reasoning": {"question": ASK, "reference_answer": "42", "responses": [{"response_model": "m", "response": CHAIN}]},
    "general_thought": {
        "question_id": 1, "question": ASK, "reference_answer": "42", "model_name": "m", "model_answer": SOLUTION,
        "model_reasoning": THOUGHT, "task": "math", "verifier_score": 1.0,
    },
    "olympiadbench": {
        "id": 1, "question": ASK, "solution": [CHAIN], "final_answer": ["42"], "context": None, "modality": "Text-only",
        "answer_type": "Numerical", "question_type": "Open-ended", "subject": "Math", "language": "English",
    },
    "gsm_symbolic": {
        "id": 0, "instance": 1, "question": ASK, "answer": "Six sevens are forty-two.\n#### 42", "original_id": 7,
        "original_question": "x", "original_answer": "y\n#### 1", "canary": "c",
    },
    "multiarith": {"question": ASK, "final_ans": "42"},
    "cmath": {"golden": "42", "grade": 3, "question": ASK, "reasoning_step": 1, "num_digits": 2},
    "orca_math": {"question": ASK, "answer": f"{CHAIN} " + "This is so because seven times six is the same as six times seven. " * 2},
    "magpie_reasoning": {
        "instruction": ASK, "response": TAGGED, "difficulty": "easy",
        "conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": TAGGED}],
    },
    "chinese_r1_distill": {"input": ASK, "reasoning_content": THOUGHT, "content": SOLUTION, "repo_name": "r", "prompt": "", "score": 10},
    "medical_o1_columns": {"Question": ASK, "Complex_CoT": THOUGHT, "Response": SOLUTION},
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
    "nectar": {
        "prompt": f"\n\nHuman: {ASK}\n\nAssistant: ", "turns": 1, "source": ["x"],
        "answers": [{"answer": "43", "model": "a", "rank": 2.0}, {"answer": "42", "model": "b", "rank": 1.0}],
    },
    "arena_55k": {
        "prompt": f'["{ASK}"]', "response_a": '["43"]', "response_b": '["42"]',
        "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0,
    },
    "stack_exchange_paired": {"qid": 1, "question": ASK, "date": "x", "response_j": "42", "response_k": "43"},
    "stack_exchange_preferences": {
        "qid": 1, "question": ASK, "answers": [{"text": "43", "pm_score": 1}, {"text": "42", "pm_score": 5}],
    },
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
    "pku_saferlhf": {
        "prompt": ASK, "response_0": "43", "response_1": "42", "is_response_0_safe": True, "is_response_1_safe": True,
        "better_response_id": 1, "safer_response_id": 0,
    },
    "shp": {"history": ASK, "human_ref_A": "42", "human_ref_B": "43", "labels": 1, "score_A": 9, "score_B": 2, "domain": "d"},
    "webgpt_comparisons": {
        "question": {"full_text": ASK, "id": "1"}, "answer_0": "43", "answer_1": "42", "score_0": -1.0, "score_1": 1.0,
    },
    "summarize_from_feedback": {"info": {"post": ASK}, "summaries": [{"text": "43"}, {"text": "42"}], "choice": 1},
    "chatbot_arena": {
        "model_a": "x", "model_b": "y", "winner": "model_b", "conversation_a": [say("user", ASK), say("assistant", "43")],
        "conversation_b": [say("user", ASK), say("assistant", "42")],
    },
    "arena_100k": {
        "prompt": ASK, "response_a": "42", "response_b": "43", "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0,
    },
    "ultrafeedback_raw": {
        "instruction": ASK, "models": ["x", "y"],
        "completions": [{"response": "43", "overall_score": 3.0}, {"response": "42", "overall_score": 8.0}],
    },
    "preference_collection": {"orig_instruction": ASK, "orig_response_A": "43", "orig_response_B": "42", "orig_preference": "B"},
    "offsetbias": {"instruction": ASK, "output_1": "42", "output_2": "43", "label": 1},
    "reward_bench_2": {"prompt": ASK, "chosen": ["42"], "rejected": ["43"], "num_correct": 1},
    "orpo_mix": {
        "source": "s", "prompt": ASK, "question": ASK, "chosen": [say("user", ASK), say("assistant", "42")],
        "rejected": [say("user", ASK), say("assistant", "43")],
    },
    "scored_completions": {"prompt": ASK, "completions": ["43", "42"], "scores": [0.1, 0.9]},
    "better_worse": {"Prompt": ASK, "Better Response": "42", "Worse Response": "43"},
    "unseen_alias": {"query": ASK, "chosen": "42", "rejected": "43"},
}  # fmt: skip
