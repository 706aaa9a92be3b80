"""The published sets that are known by their columns (presets.toml), and what plain column names usually mean.

A preset fits where all that it `needs` is there and, where `marks` are given, most of the first rows hold such a text.
Of those that fit the one that needs most is taken. A set whose columns have plain names (problem, question, answer,
solution, messages, ...) needs no preset: general.py reads it. A preset is for names that mean one thing here and
another there.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any


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


def _preset(entry: Mapping[str, Any]) -> Preset:
    skip = tuple((path, tuple(texts), reason) for path, texts, reason in entry.get("skip", ()))
    lists = {"needs": tuple(entry["needs"].split()), "absent": tuple(entry.get("absent", ())), "skip": skip}
    return Preset(**{**entry, **lists})


_TABLE = tomllib.loads(resources.files(__package__).joinpath("presets.toml").read_text(encoding="utf-8"))
PROBLEMS = tuple(map(_preset, _TABLE["problems"]))
PAIRS = tuple(map(_preset, _TABLE["pairs"]))
# Data of another kind: what must be there, what it is, what to do with it; `mark`: a text that its last column holds.
OTHERS: tuple[Mapping[str, str], ...] = tuple(_TABLE["others"])

# Plain names, the likeliest first: the general rule takes the first that is there.
PROBLEM_NAMES = (
    "problem", "question_concat", "question", "query", "orig_instruction", "instruction", "prompt", "input",
    "problem_statement", "question_content", "original_text", "question_stem", "question_text", "problem_text",
    "history", "user",
)  # fmt: skip
# What a question may need before it, in a column of its own.
CONTEXT_NAMES = ("context", "passage", "body", "premise", "story")
GOLD_NAMES = (
    "final_answer", "expected_answer", "gold_answer", "ground_truth", "ground_truth_answer", "ground_true_answer",
    "gold", "golden_answer", "golden", "reference_answer", "correct_answer", "answer", "gt_answer", "gt", "final_ans",
    "numeric_answer", "numerical_answer", "answer_value", "target", "label", "reward_model.ground_truth",
    "verification_info.answer.value", "verification_info.ground_truth", "metadata.expected_answer",
    "conversations[assistant].info.ground_truth", "ans", "result",
)  # fmt: skip
# The key of a question with choices: a letter, a place or a label.
KEY_NAMES = ("answer_key", "answerkey", "correct_option", "correct_choice", "correct", "answer_index", "answer_idx")
PLAIN_NAMES = {
    "id": ("problem_id", "id", "uuid"),
    "model": ("model", "generator", "teacher"),
    "source": ("source", "data_source", "dataset"),
    "difficulty": ("difficulty", "level"),
    "choices": ("choices", "options"),
}
