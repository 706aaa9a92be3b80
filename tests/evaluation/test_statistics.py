"""The formulas of an evaluation against brute force, known figures and simulation."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from cogpo_jax.evaluation import statistics


def test_wilson_gives_the_textbook_interval_and_stays_within_zero_and_one() -> None:
    assert statistics.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert statistics.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert statistics.wilson(20, 20)[1] == 1.0


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 1, 2), (6, 0, 3), (6, 6, 1), (5, 2, 4), (8, 3, 8)])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n: int, correct: int, k: int) -> None:
    subsets = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
    assert statistics.pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


MAJORITIES = [
    (3, (2, 1), 1, 4),
    (2, (2, 2, 1), 2, 3),
    (1, (1, 1, 1), 0, 2),
    (4, (3, 3), 0, 7),
    (0, (2,), 1, 2),
    (3, (), 0, 3),
    (5, (4, 1, 1), 1, 6),
]


@pytest.mark.parametrize(("correct", "others", "silent", "k"), MAJORITIES)
def test_majority_at_k_is_the_mean_vote_over_all_subsets(
    correct: int, others: tuple[int, ...], silent: int, k: int
) -> None:
    wrong = [f"wrong {i}" for i, size in enumerate(others) for _ in range(size)]
    won = []
    for subset in itertools.combinations(["right"] * correct + wrong + [None] * silent, k):
        votes = Counter(answer for answer in subset if answer is not None)
        winners = [answer for answer in votes if votes[answer] == max(votes.values())]
        won.append(1 / len(winners) if "right" in winners else 0.0)
    assert statistics.majority_at_k(correct, others, silent, k) == pytest.approx(sum(won) / len(won))


def test_with_one_sample_the_sign_flip_test_is_mcnemars_exact_test() -> None:
    differences = [Fraction(1)] * 8 + [Fraction(-1)] * 2 + [Fraction(0)] * 30
    binomial = 2 * sum(math.comb(10, i) for i in range(3)) / 2**10
    at = 2 * math.comb(10, 2) / 2**10
    assert statistics.sign_flip_test(differences) == pytest.approx((binomial, binomial - at / 2))


def test_the_sign_flip_test_counts_every_flip() -> None:
    differences = [Fraction(3, 4), Fraction(1, 2), Fraction(-1, 4), Fraction(1, 1), Fraction(1, 3)]
    observed = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(f, differences, strict=True))) for f in itertools.product((1, -1), repeat=5)]
    assert statistics.sign_flip_test(differences)[0] == pytest.approx(sum(s >= observed for s in sums) / len(sums))


def test_equal_runs_have_no_difference_and_p_one() -> None:
    result = statistics.paired([(Fraction(1), Fraction(1)), (Fraction(0), Fraction(0))], single=True)
    assert (result["difference"], result["p"], result["problems_needed"]) == (0, 1.0, None)
    assert result["low"] < 0 < result["high"]


def test_problems_needed_is_the_power_formula_on_the_pairs_seen() -> None:
    pairs = [(Fraction(0), Fraction(1))] * 30 + [(Fraction(1), Fraction(0))] * 10 + [(Fraction(1), Fraction(1))] * 60
    variance = 0.4 - 0.2**2
    assert statistics.paired(pairs, single=True)["problems_needed"] == math.ceil(2.8016**2 * variance / 0.2**2)


def test_more_problems_and_more_samples_let_smaller_differences_be_seen() -> None:
    few, many, sampled = (statistics.detectable(*size) for size in ((100, 1), (400, 1), (100, 8)))
    for name in ("interval", "unpaired", "paired"):
        assert many[name] == pytest.approx(few[name] / 2)
        assert sampled[name] < few[name]


def test_intervals_by_problem_cover_the_truth_and_ones_by_sample_would_not() -> None:
    """300 simulated evaluations of 30 problems, 16 samples each; benchmarks/evaluate_statistics.py does 2,000."""
    random = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(300):
        shares = random.binomial(16, random.beta(0.5, 0.5, 30)) / 16
        low, high = statistics.bootstrap(shares, seed=1)
        covered += low <= 0.5 <= high
        low, high = statistics.wilson(shares.sum() * 16, 480)
        naive += low <= 0.5 <= high
    assert 0.92 <= covered / 300 <= 0.98
    assert naive / 300 < 0.6


def test_students_t_is_that_of_the_tables() -> None:
    for freedom, quantile in ((9, 2.2622), (29, 2.0452), (199, 1.9720)):
        assert statistics._t975(freedom) == pytest.approx(quantile, abs=1e-3)
