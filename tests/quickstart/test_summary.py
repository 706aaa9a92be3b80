"""The quickstart's verdict: each check passes at its bound and fails beyond it."""

import copy
import math

import pytest

from cogpo_jax.quickstart import checks

GOOD = {
    "problems": {"total": 100, "heldout": 40},
    "sft": {"heldout_nll": 4.0, "unigram_nll": 4.5},
    "heldout": {"small": {"balanced_accuracy": 0.60, "balanced_low": 0.51, "margin_nats": 0.11}},
    "hf_max_logit_diff": 2e-4,
}
FIRST = {"loss": math.log(2), "margin": {"small": 0.0, "large": 0.0}}


def failed(summary, first=FIRST, chat_template=True):
    return [i for i, check in enumerate(checks(summary, first, chat_template)) if check["passed"] is False]


def test_all_pass_at_their_bounds():
    assert failed(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value", "number"),
    [
        (("sft", "heldout_nll"), 4.01, 2),
        (("problems", "heldout"), 39, 3),
        (("heldout", "small", "balanced_accuracy"), 0.59, 4),
        (("heldout", "small", "balanced_low"), 0.5, 4),
        (("heldout", "small", "balanced_low"), None, 4),
        (("heldout", "small", "margin_nats"), 0.1, 5),
        (("hf_max_logit_diff",), 3e-4, 6),
    ],
)
def test_each_fails_beyond_its_bound(path, value, number):
    summary = copy.deepcopy(GOOD)
    place = summary
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    assert failed(summary) == [number]


def test_step_zero_is_checked():
    assert failed(GOOD, {**FIRST, "loss": math.log(2) + 2e-3}) == [0]
    assert failed(GOOD, {**FIRST, "margin": {"small": 1e-6}}) == [1]
    assert failed(GOOD, {"loss": math.log(2)}) == [1]


def test_without_torch_the_comparison_is_skipped_and_said():
    summary = {**GOOD, "hf_max_logit_diff": None}
    assert [c["value"] for c in checks(summary, FIRST, True) if c["passed"] is None] == [
        "skipped: torch is not installed"
    ]


def test_a_missing_chat_template_fails():
    assert failed(GOOD, chat_template=False) == [7]
