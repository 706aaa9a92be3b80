"""The held-out table against cases small enough to work out by hand."""

import math

import numpy as np
import pytest

from cogpo_jax.evaluation.statistics import wilson
from cogpo_jax.report.run_files import heldout_table, mean_interval


def pair(problem="p", gap="small", tokens=(20, 10), margin=1.0, sft=(-20.0, -20.0)):
    """A pair whose chosen log-ratio is +margin and whose rejected one is 0."""
    return {
        "problem_id": problem,
        "pair": 0,
        "gap": gap,
        "chosen_tokens": tokens[0],
        "rejected_tokens": tokens[1],
        "chosen_ref_logp": sft[0],
        "rejected_ref_logp": sft[1],
        "chosen_logp": sft[0] + margin,
        "rejected_logp": sft[1],
    }


def test_before_training_every_margin_is_zero_and_accuracy_is_one_half():
    columns = heldout_table([pair(str(i), margin=0.0) for i in range(8)])["small"]
    assert columns["accuracy"] == 0.5
    assert columns["margin_nats"] == 0.0


def test_accuracy_is_taken_apart_by_which_side_is_longer():
    rows = [
        pair("a", tokens=(30, 10), margin=2.0),
        pair("b", tokens=(30, 10), margin=1.0),
        pair("c", tokens=(30, 10), margin=-1.0),
        pair("d", tokens=(10, 30), margin=-3.0),
        pair("e", tokens=(20, 20), margin=4.0),
    ]
    columns = heldout_table(rows)["small"]
    assert columns["n"] == 5
    assert columns["accuracy"] == pytest.approx(3 / 5)
    assert (columns["n_chosen_longer"], columns["n_chosen_shorter"]) == (3, 1)
    assert columns["accuracy_chosen_longer"] == pytest.approx(2 / 3)
    assert columns["accuracy_chosen_shorter"] == 0.0
    assert columns["balanced_accuracy"] == pytest.approx(1 / 3)
    assert columns["shorter_wins"] == pytest.approx((1 + 0.5) / 5)
    assert columns["longer_wins"] == pytest.approx((3 + 0.5) / 5)
    assert columns["margin_nats"] == pytest.approx(3 / 5)
    assert columns["chosen_logratio"] == pytest.approx(3 / 5)
    assert columns["rejected_logratio"] == 0.0


def test_a_student_that_learned_only_length_scores_one_half_when_balanced():
    rows = [pair(str(i), tokens=(10, 20), margin=1.0) for i in range(9)] + [pair("x", tokens=(20, 10), margin=-1.0)]
    columns = heldout_table(rows)["small"]
    assert columns["accuracy"] == 0.9
    assert columns["balanced_accuracy"] == 0.5
    assert columns["reward_length_corr"] == pytest.approx(-1.0)


def test_the_sft_models_own_ranking_is_by_log_prob_per_token():
    # -30/30 = -1 beats -20/10 = -2 though its sum is lower; -20/20 ties with -10/10.
    rows = [pair("a", tokens=(30, 10), sft=(-30.0, -20.0)), pair("b", tokens=(20, 10), sft=(-20.0, -10.0))]
    assert heldout_table(rows)["small"]["sft_mean_logp_accuracy"] == 0.75


def test_gaps_are_apart_and_in_order():
    table = heldout_table([pair(gap="large", margin=-1.0), pair(gap="small"), pair(gap="medium")])
    assert list(table) == ["small", "medium", "large"]
    assert [c["accuracy"] for c in table.values()] == [1.0, 1.0, 0.0]


def test_a_stratum_without_pairs_gives_none_and_not_a_number_made_up():
    columns = heldout_table([pair("a"), pair("b")])["small"]
    assert columns["accuracy_chosen_shorter"] is None
    assert columns["balanced_accuracy"] is None
    assert columns["balanced_low"] is None
    assert columns["reward_length_corr"] is None


def test_single_pair_problems_give_about_the_plain_wilson_interval():
    right = np.array([1.0, 0.0, 1.0, 1.0] * 50)
    low, high = mean_interval(right, [str(i) for i in range(200)], [np.ones(200, bool)])
    assert (low, high) == pytest.approx(wilson(0.75 * 199, 199), abs=1e-6)


def test_copies_of_a_pair_add_no_information():
    right = np.array([1.0, 0.0, 1.0, 1.0] * 10)
    names = [str(i) for i in range(40)]
    once = mean_interval(right, names, [np.ones(40, bool)])
    copied = mean_interval(np.tile(right, 5), names * 5, [np.ones(200, bool)])
    assert copied == pytest.approx(once)
    # Taken for independent, the same pairs would give a much narrower interval.
    alone = mean_interval(np.tile(right, 5), [str(i) for i in range(200)], [np.ones(200, bool)])
    assert alone[1] - alone[0] < 0.6 * (copied[1] - copied[0])


def test_all_right_counts_problems_not_pairs():
    interval = mean_interval(np.ones(30), [str(i // 3) for i in range(30)], [np.ones(30, bool)])
    assert interval == pytest.approx(wilson(10, 10))


def test_balanced_interval_of_independent_strata_adds_their_variances():
    right = np.array([1.0, 0.0] * 75 + [1.0, 1.0, 1.0, 0.0] * 12)
    strata = [np.arange(198) < 150, np.arange(198) >= 150]
    low, high = mean_interval(right, [str(i) for i in range(198)], strata)
    share, variance = 0.625, (0.25 / 150 + 0.1875 / 48) / 4 * 198 / 197
    assert (low, high) == pytest.approx(
        wilson(share * share * (1 - share) / variance, share * (1 - share) / variance), abs=1e-9
    )
    assert math.isclose(high - low, 2 * 1.96 * math.sqrt(variance), rel_tol=0.05)
