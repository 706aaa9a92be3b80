"""The published sets that are known by their columns: what each column is. Plain data; recognise.py reads it.

A preset fits where all that it `needs` is there (paths as in `texts.find_path`) and, where `marks` are given, most of
the first rows hold such a text. Of those that fit the one that needs most is taken. A set whose columns have plain
names (problem, question, answer, solution, messages, ...) needs no preset: the general rule reads it. A preset is for
names that mean one thing here and another there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Preset:
    """`map`: role -> path, "A+B" a thought and a solution; `gold`: a gold rule ("" = the set has none apart from its
    chains); `skip`: (path, texts in lower case, reason): rows that are left out and counted; `absent`: columns with
    which it is another set."""

    name: str
    needs: tuple[str, ...]
    map: Mapping[str, str]
    gold: str = ""
    marks: Mapping[str, str] = field(default_factory=dict)
    skip: tuple[tuple[str, tuple[str, ...], str], ...] = ()
    absent: tuple[str, ...] = ()


def _preset(name: str, needs: str, mapped: str, gold: str = "", **more: object) -> Preset:
    roles = dict(pair.split("=", 1) for pair in mapped.split(", "))
    return Preset(name, tuple(needs.split()), roles, gold, **more)  # type: ignore[arg-type]


_UNSOLVED = (
    ("answer", ("proof",), "proof"),
    ("answer", ("notfound", "not found"), "answer_not_found"),
    ("question_type", ("proof",), "proof"),
    ("problem_is_valid", ("no", "incomplete", "problem not solved"), "problem_not_valid"),
    ("solution_is_valid", ("no", "incomplete", "problem not solved"), "solution_not_valid"),
)
_UNANSWERED = (
    ("problem_type", ("converted_proof",), "proof"),
    ("problem_type", ("no_answer_extracted",), "answer_not_found"),
    ("expected_answer", ("n/a", "none"), "answer_not_found"),
)
_CONVERSATION = "problem=conversations[user], cot=conversations[assistant]"

PROBLEMS = (
    _preset("crv", "problem answer cot", "problem=problem, cot=cot", "answer"),
    _preset("crv_parts", "problem answer thought solution", "problem=problem, cot=thought+solution", "answer"),
    _preset(
        "openr1_math",
        "problem answer generations",
        "problem=problem, cot=generations[verified], id=uuid",
        "answer",
        skip=_UNSOLVED[:3],
    ),
    _preset(
        "numinamath_1.5",
        "problem solution answer question_type",
        "problem=problem, cot=solution",
        "answer",
        skip=_UNSOLVED,
        absent=("generations",),
    ),
    _preset(
        "numinamath_cot",
        "problem solution messages source",
        "problem=problem, cot=solution",
        absent=("answer", "generations"),
    ),
    _preset(
        "math", "problem solution level type", "problem=problem, cot=solution", "box(solution)", absent=("answer",)
    ),
    _preset("gsm8k", "question answer", "problem=question, cot=answer", "hash(answer)", marks={"answer": "####"}),
    _preset("gsm8k", "problem answer", "problem=problem, cot=answer", "hash(answer)", marks={"answer": "####"}),
    _preset("metamathqa", "query response original_question", "problem=query, cot=response"),
    _preset("limo", "question solution answer", "problem=question, cot=solution", "answer"),
    _preset(
        "s1k_1.1",
        "question solution deepseek_thinking_trajectory deepseek_attempt",
        "problem=question, cot=deepseek_thinking_trajectory+deepseek_attempt",
        "solution",
    ),
    _preset(
        "s1k",
        "question solution attempt thinking_trajectories",
        "problem=question, cot=thinking_trajectories[0]+attempt",
        "solution",
    ),
    _preset(
        "omnithought",
        "question reasoning[0].thought",
        "problem=question, cot=reasoning[verified].thought+reasoning[verified].solution,"
        " model=reasoning[verified].teacher",
    ),
    _preset("deepmath", "question final_answer r1_solution_1", "problem=question, cot=r1_solution_1", "final_answer"),
    _preset(
        "am_deepseek_r1",
        "messages[user] messages[assistant] messages[user].info messages[assistant].info",
        "problem=messages[user], cot=messages[assistant], source=messages[user].info.source",
        "messages[assistant].info.reference_answer|messages[user].info.reference_answer",
    ),
    _preset(
        "openthoughts_metadata",
        "problem deepseek_reasoning deepseek_solution ground_truth_solution",
        "problem=problem, cot=deepseek_reasoning+deepseek_solution",
        "box(ground_truth_solution)",
        skip=(("domain", ("code",), "code"),),
    ),
    _preset(
        "openmathreasoning",
        "problem generated_solution expected_answer",
        "problem=problem, cot=generated_solution, model=generation_model",
        "expected_answer",
        skip=_UNANSWERED,
    ),
    _preset(
        "nemotron",
        "input output category generator",
        "problem=input[user]|input, cot=output, model=generator, source=category",
    ),
    _preset(
        "nemotron_v1",
        "messages metadata category generator",
        "problem=messages[user], cot=messages[assistant], id=uuid, model=generator",
        "metadata.expected_answer",
    ),
    _preset("acereason_sft", "input output category source", "problem=input, cot=output, source=source"),
    _preset(
        "dapo", "prompt reward_model.ground_truth", "problem=prompt, source=data_source", "reward_model.ground_truth"
    ),
    _preset(
        "orz",
        "conversations[user] conversations[assistant] conversations[assistant].ground_truth.value",
        "problem=conversations[user]",
        "conversations[assistant].ground_truth.value",
    ),
    _preset("orz_columns", "0.value 1.ground_truth.value", "problem=0", "1.ground_truth.value"),
    _preset(
        "synthetic_1",
        "prompt llm_response gold_standard_solution",
        "problem=prompt, cot=llm_response, id=problem_id",
        "gold_standard_solution",
    ),
    _preset("conversations", "conversations[user] conversations[assistant]", _CONVERSATION),
    _preset("messages", "messages[user] messages[assistant]", _CONVERSATION.replace("conversations", "messages")),
    _preset("alpaca", "instruction output", "problem=instruction+input, cot=output"),
    _preset("alpaca", "instruction response", "problem=instruction+input, cot=response"),
    _preset("query_response", "query response", "problem=query, cot=response"),
)

# Preference pairs: prompt, chosen, rejected; `start` stands before both responses, `system` before the prompt.
PAIRS = (
    _preset("cogpo", "prompt chosen rejected", "prompt=prompt, chosen=chosen, rejected=rejected"),
    _preset("implicit_prompt", "chosen rejected", "chosen=chosen, rejected=rejected"),
    _preset(
        "math_step_dpo",
        "prompt initial_reason_steps chosen rejected",
        "prompt=prompt, start=initial_reason_steps, chosen=chosen, rejected=rejected",
    ),
    _preset("orca", "question chosen rejected", "prompt=question, chosen=chosen, rejected=rejected"),
    _preset(
        "input", "input chosen rejected", "prompt=input, chosen=chosen, rejected=rejected", absent=("instruction",)
    ),
    _preset("problem_pairs", "problem chosen rejected", "prompt=problem, chosen=chosen, rejected=rejected"),
    _preset("query_pairs", "query chosen rejected", "prompt=query, chosen=chosen, rejected=rejected"),
    _preset(
        "alpaca_pairs", "instruction chosen rejected", "prompt=instruction+input, chosen=chosen, rejected=rejected"
    ),
    _preset(
        "argilla",
        "instruction chosen_response rejected_response",
        "prompt=instruction, chosen=chosen_response, rejected=rejected_response",
    ),
    _preset(
        "argilla_prompt",
        "prompt chosen_response rejected_response",
        "prompt=prompt, chosen=chosen_response, rejected=rejected_response",
    ),
    _preset(
        "alpaca_output_pair", "instruction output[1]", "prompt=instruction+input, chosen=output[0], rejected=output[1]"
    ),
    _preset(
        "sharegpt_pairs", "conversations chosen rejected", "prompt=conversations, chosen=chosen, rejected=rejected"
    ),
    _preset("chat_template", "messages chosen rejected", "prompt=messages, chosen=chosen, rejected=rejected"),
    _preset("ultrafeedback", "prompt messages chosen rejected", "prompt=prompt, chosen=chosen, rejected=rejected"),
    _preset("capybara", "prompt conversation chosen rejected", "chosen=chosen, rejected=rejected"),
    _preset("capybara", "conversation chosen rejected", "chosen=chosen, rejected=rejected"),
    _preset("trajectory", "trajectory chosen rejected", "prompt=trajectory, chosen=chosen, rejected=rejected"),
    _preset("context_pairs", "context chosen rejected", "prompt=context, chosen=chosen, rejected=rejected"),
    _preset("ms_swift", "messages rejected_response", "prompt=messages, rejected=rejected_response"),
    _preset("ms_swift_messages", "messages rejected_messages", "chosen=messages, rejected=rejected_messages"),
    _preset(
        "openai",
        "input.messages preferred_output non_preferred_output",
        "prompt=input.messages, chosen=preferred_output, rejected=non_preferred_output",
    ),
    _preset("nectar", "prompt answers[0].rank answers[0].answer", "prompt=prompt, ranked=answers"),
    _preset(
        "helpsteer2_preference",
        "prompt response_1 response_2 preference_strength",
        "prompt=prompt, first=response_1, second=response_2, preference=preference_strength",
    ),
    _preset(
        "helpsteer3_preference",
        "context response1 response2 overall_preference",
        "prompt=context, first=response1, second=response2, preference=overall_preference",
    ),
    _preset(
        "distilabel_ratings",
        "instruction generations[1] rating[1]",
        "prompt=instruction, responses=generations, ratings=rating",
    ),
    _preset(
        "distilabel_ratings",
        "instruction generations[1] ratings[1]",
        "prompt=instruction, responses=generations, ratings=ratings",
    ),
)

# Data of another kind: (what must be there, what it is, what to do with it).
NOT_PAIRS = (
    ("question.problem label.steps", "step-rated solutions (as PRM800K)", "they hold no pair of whole responses"),
    ("prompt completions labels", "step-rated completions", "they hold no pair of whole responses"),
    ("prompt completion label", "unpaired preferences (as TRL's for KTO)", "a pair needs chosen and rejected"),
    ("messages label", "unpaired preferences (as for KTO)", "a pair needs chosen and rejected"),
    ("conversations label", "unpaired preferences (as for KTO)", "a pair needs chosen and rejected"),
    ("messages kto_tag", "unpaired preferences (as for KTO)", "a pair needs chosen and rejected"),
    ("conversations kto_tag", "unpaired preferences (as for KTO)", "a pair needs chosen and rejected"),
    ("instruction kto_tag", "unpaired preferences (as for KTO)", "a pair needs chosen and rejected"),
    ("prompt response helpfulness", "rated single responses (as HelpSteer)", "a pair needs chosen and rejected"),
)

# Plain names, the likeliest first: the general rule takes the first that is there.
PROBLEM_NAMES = (
    "problem",
    "question",
    "query",
    "instruction",
    "prompt",
    "input",
    "problem_statement",
    "question_content",
)
GOLD_NAMES = (
    "final_answer", "expected_answer", "gold_answer", "ground_truth", "ground_truth_answer", "gold", "golden_answer",
    "reference_answer", "correct_answer", "answer", "gt_answer", "gt", "target", "label", "reward_model.ground_truth",
    "verification_info.answer.value", "metadata.expected_answer",
)  # fmt: skip
PLAIN_NAMES = {
    "id": ("problem_id", "id", "uuid"),
    "model": ("model", "generator", "teacher"),
    "source": ("source", "data_source", "dataset"),
    "difficulty": ("difficulty", "level"),
    "choices": ("choices", "options"),
}
