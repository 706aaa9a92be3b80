"""The intervals and tests of an evaluation against simulated ones: coverage and false alarms.

    python benchmarks/evaluate_statistics.py --simulations=2000

Each simulated evaluation draws problems from a population: a problem's chance to be solved is Beta distributed, its
samples are independent draws with that chance. An interval covers if the population's mean is in it. For the paired
figures two models have the same chances (`false alarms`: the test says p < 0.05), or chances that differ by problem and
on average (`coverage` of the difference's interval). Prints a Markdown table; a share of 2,000 has a 95% interval of
about one point.
"""

import argparse
import functools
from fractions import Fraction
from typing import Any

import numpy as np

from cogpo_jax.evaluation import statistics

# problems, samples, mean and sum of the Beta's parameters (small: most problems are always or never solved)
CASES = [
    (30, 1, 0.5, 1.0),
    (30, 16, 0.5, 1.0),
    (30, 64, 0.3, 0.8),
    (100, 4, 0.7, 1.0),
    (198, 8, 0.4, 2.0),
    (200, 1, 0.6, 1.0),
    (500, 1, 0.7, 1.0),
    (1319, 1, 0.85, 1.0),
]


def compared(first: np.ndarray, second: np.ndarray, samples: int) -> dict[str, Any]:
    """`statistics.paired` of two runs' correct samples by problem; of single ones only the counts of changes matter."""
    if samples == 1:
        return _of_counts(len(first), int((second > first).sum()), int((second < first).sum()))
    shares = [Fraction(c, samples) for c in range(samples + 1)]
    return statistics.paired([(shares[a], shares[b]) for a, b in zip(first, second, strict=True)], False)


@functools.cache
def _of_counts(problems: int, better: int, worse: int) -> dict[str, Any]:
    nothing, one = Fraction(0), Fraction(1)
    pairs = [(nothing, one)] * better + [(one, nothing)] * worse
    return statistics.paired(pairs + [(one, one)] * (problems - better - worse), True)


def false_alarm(first: np.ndarray, second: np.ndarray, samples: int) -> tuple[float, float]:
    """The p-values of a comparison, without its interval."""
    if samples == 1:
        result = compared(first, second, 1)
        return result["p"], result["mid_p"]
    return statistics.sign_flip_test([Fraction(int(d), samples) for d in second - first])


def simulate(problems: int, samples: int, mean: float, total: float, simulations: int) -> dict[str, float]:
    """Rates of one case."""
    random = np.random.default_rng([problems, samples])
    rates = dict.fromkeys(("covered", "paired", "alarms", "mid"), 0)
    for _ in range(simulations):
        chances = random.beta(mean * total, (1 - mean) * total, problems)
        # The other model solves a tenth of what is left, and loses a twentieth of what it had.
        other = chances + 0.1 * (1 - chances) - 0.05 * chances
        first, again, better = (random.binomial(samples, p) for p in (chances, chances, other))
        interval = statistics.mean_with_interval((first / samples).tolist(), samples == 1)
        rates["covered"] += interval["low"] <= mean <= interval["high"]
        p, mid_p = false_alarm(first, again, samples)
        rates["alarms"] += p < 0.05
        rates["mid"] += mid_p < 0.05
        result = compared(first, better, samples)
        rates["paired"] += result["low"] <= 0.1 * (1 - mean) - 0.05 * mean <= result["high"]
    return {name: count / simulations for name, count in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    simulations = parser.parse_args().simulations
    print(
        "| problems | samples | accuracy | interval covers | paired interval covers | false alarms, exact p | mid-p |"
    )
    print("|---|---|---|---|---|---|---|")
    for problems, samples, mean, total in CASES:
        r = simulate(problems, samples, mean, total, simulations)
        rates = " | ".join(f"{100 * r[name]:.1f}%" for name in ("covered", "paired", "alarms", "mid"))
        print(f"| {problems} | {samples} | {mean} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
