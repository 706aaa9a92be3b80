"""Accuracies with intervals, pass@k, majority@k, paired tests and what they can see; numpy and math only.

The unit is the problem: samples of one problem are alike, so every interval and test here treats a problem's samples
as one cluster. `benchmarks/evaluate_statistics.py` holds the intervals and tests against simulated evaluations.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import numpy as np

_NORMAL = NormalDist()
Z95, Z80 = _NORMAL.inv_cdf(0.975), _NORMAL.inv_cdf(0.8)
_RESAMPLES = 4000
_EXACT_COST = 4e9  # additions; above it (tens of thousands of changed problems) the test is the normal one
# Of two models sampled once, so many problems get different verdicts; half of it is chance in drawing. An assumption
# for planning only: a comparison of two runs uses what they show.
DISAGREEMENT = 0.3

Interval = tuple[float, float]


def wilson(correct: float, n: float) -> Interval:
    """Wilson's 95% interval for a share, `correct` of `n` independent problems (Wilson 1927)."""
    p, z2 = correct / n, Z95**2
    middle, half = p + z2 / (2 * n), Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
    return (0.0 if correct == 0 else low), (1.0 if correct == n else high)


def bootstrap(values: np.ndarray, seed: int = 0) -> Interval:
    """95% interval of the mean of `values` [problems], problems drawn again with replacement.

    The percentiles are widened as Hesterberg (2015, arXiv 1411.5279, section 5.3) has it: plain ones are too narrow by
    the factor of a t quantile, which matters for AIME's 30 problems. Needs at least two problems.
    """
    n = len(values)
    tail = 100 * _NORMAL.cdf(-math.sqrt(n / (n - 1)) * _t975(n - 1))
    random, means = np.random.default_rng(seed), []
    for rows in np.array_split(np.arange(_RESAMPLES), max(1, _RESAMPLES * n // 4_000_000)):
        means.append(values[random.integers(0, n, (len(rows), n), dtype=np.int32)].mean(1))
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)


def _t975(freedom: int) -> float:
    """Student's t quantile at 0.975 (Abramowitz and Stegun 26.7.5; within 0.1% from 5 degrees of freedom on)."""
    z, v = Z95, max(freedom, 1)
    terms = (
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
    )
    return z + sum(terms)


def mean_with_interval(values: Sequence[float], single: bool) -> dict[str, Any]:
    """{value, low, high, method} of a mean of per-problem shares in [0, 1].

    Wilson where each is one sample (`single`); else the bootstrap over problems. A bootstrap cannot see past values
    that are all equal, so Wilson (on the number of problems) stands in there.
    """
    shares = np.asarray(values, float)
    value = float(shares.mean())
    if single or len(shares) < 2 or np.ptp(shares) == 0:
        (low, high), method = wilson(float(shares.sum()), len(shares)), "wilson"
    else:
        (low, high), method = bootstrap(shares), "bootstrap over problems"
    return {"value": value, "low": low, "high": high, "method": method}


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that k of the n samples, drawn without replacement, hold a correct one (Chen et al. 2021, eq. 1)."""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def majority_at_k(correct: int, others: Sequence[int], silent: int, k: int) -> float:
    """Probability that the correct answer wins the vote among k samples drawn without replacement: exact.

    `correct` samples give the right answer, `others` are the counts of each wrong one, `silent` samples give none and
    do not vote. A tie of t answers counts 1 / t.
    """
    ways = 0.0
    for votes in range(1, min(correct, k) + 1):
        # Answers with fewer samples than `votes` can neither win nor tie: with the silent they are one pool.
        rivals = [size for size in others if size >= votes]
        pool, rest = silent + sum(others) - sum(rivals), k - votes
        picks = np.zeros((rest // votes + 1, rest + 1))  # [answers tied with the correct one, samples picked]
        picks[0] = [math.comb(pool, i) for i in range(rest + 1)]
        for size in rivals:
            fewer = [math.comb(size, i) for i in range(min(votes, rest + 1))]
            tied = np.zeros_like(picks)
            if rest >= votes:
                tied[1:, votes:] = math.comb(size, votes) * picks[:-1, : rest + 1 - votes]
            picks = np.stack([np.convolve(row, fewer)[: rest + 1] for row in picks]) + tied
        ways += math.comb(correct, votes) * float((picks[:, rest] / np.arange(1, len(picks) + 1)).sum())
    return ways / math.comb(correct + sum(others) + silent, k)


def sign_flip_test(differences: Sequence[Fraction]) -> tuple[float, float]:
    """(exact two-sided p, mid-p) that per-problem differences are as likely with the other sign.

    With one sample per problem this is McNemar's exact test. All 2^n flips are counted, by convolution. The exact p is
    cautious (false alarms below 5% when few problems changed); the mid-p comes closer to 5%.
    """
    changed = [d for d in differences if d]
    if not changed:
        return 1.0, 1.0
    scale = math.lcm(*(d.denominator for d in changed))
    steps = [int(d * scale) for d in changed]
    divisor = math.gcd(*steps)
    steps = [step // divisor for step in steps]
    total, observed = sum(map(abs, steps)), abs(sum(steps))
    if total * len(steps) > _EXACT_COST:
        p = 2 * _NORMAL.cdf(-observed / math.sqrt(sum(step * step for step in steps)))
        return p, p
    chances = np.zeros(total + 1)  # of the sum of the steps with a plus
    chances[0], reach = 1.0, 0
    for step in map(abs, steps):
        chances[step : reach + step + 1] += chances[: reach + 1].copy()
        chances *= 0.5
        reach += step
    sums = np.abs(2 * np.arange(total + 1) - total)
    beyond, at = float(chances[sums > observed].sum()), float(chances[sums == observed].sum())
    return min(1.0, beyond + at), min(1.0, beyond + at / 2)


def paired(pairs: Sequence[tuple[Fraction, Fraction]], single: bool) -> dict[str, Any]:
    """B minus A over the same problems: difference with a 95% interval, test, and the problems it takes to see it.

    `pairs`: (A's, B's) share of correct samples by problem. single: one sample each; then the interval is that of
    Bonett and Price (2012), else the bootstrap over problems.
    """
    differences = [b - a for a, b in pairs]
    values, n = np.asarray(differences, float), len(differences)
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    if single or n < 2 or np.ptp(values) == 0:
        up, down = (better + 1) / (n + 2), (worse + 1) / (n + 2)
        half = Z95 * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
        low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
    else:
        low, high = bootstrap(values)
    exact, middle = sign_flip_test(differences)
    mean = float(values.mean())
    needed = math.ceil((Z95 + Z80) ** 2 * float(values.var()) / mean**2) if mean else None
    return {
        "problems": n,
        "a": float(sum(a for a, _ in pairs) / n),
        "b": float(sum(b for _, b in pairs) / n),
        "difference": mean,
        "low": low,
        "high": high,
        "better_with_b": better,
        "worse_with_b": worse,
        "test": "exact McNemar" if single else "exact sign-flip test over problems",
        "p": exact,
        "mid_p": middle,
        "problems_needed": max(needed, 1) if needed is not None else None,  # at 5%, with 80% power, this difference
    }


def detectable(problems: int, samples: int) -> dict[str, float]:
    """What an evaluation of this size can see, in points, before it runs.

    interval: half the width of the 95% interval at an accuracy of one half. unpaired: the smallest difference to a run
    on other problems that is seen with 80% power at 5%. paired: the same to a run on the same problems, if two models
    sampled once disagree on DISAGREEMENT of them, half of that by chance.
    """
    between = DISAGREEMENT / 2
    variance = between + (DISAGREEMENT - between) / samples
    unpaired = 0.25 * (1 + 1 / samples) / 2  # of a problem's share: half of it stays however many samples
    power = 100 * (Z95 + Z80)
    return {
        "interval": 100 * Z95 * math.sqrt(unpaired / problems),
        "unpaired": power * math.sqrt(2 * unpaired / problems),
        "paired": power * math.sqrt(variance / problems),
    }


def lengths(tokens: Sequence[int]) -> dict[str, float] | None:
    """Mean, median and 90th percentile of token counts; None for none."""
    if not tokens:
        return None
    median, p90 = np.percentile(tokens, [50, 90])
    return {"count": len(tokens), "mean": float(np.mean(tokens)), "median": float(median), "p90": float(p90)}
