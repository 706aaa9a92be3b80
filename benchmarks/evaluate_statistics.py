"""The intervals and tests of an evaluation against simulated ones: coverage and false alarms.

    python benchmarks/evaluate_statistics.py --simulations=2000

Each simulated evaluation draws problems from a population: a problem's chance to be solved is Beta distributed, its
samples are independent draws with that chance. An interval covers if the population's mean is in it. For the paired
figures two models have the same chances (`false alarms`: the test says p < 0.05), or chances that differ by problem and
on average (`coverage` of the difference's interval). Prints a Markdown table; a share of 2,000 has a 95% interval of
about one point.
"""

import argparse
from fractions import Fraction

import numpy as np

from cogpo_jax.evaluation import statistics

# problems, samples, mean and sum of the Beta's parameters (small: most problems are always or never solved)
CASES = [
    (30, 1, 0.5, 1.0),
    (30, 16, 0.5, 1.0),
    (30, 64, 0.3, 0.8),
    (198, 8, 0.4, 2.0),
    (200, 1, 0.6, 1.0),
    (500, 1, 0.7, 1.0),
    (500, 4, 0.7, 1.0),
    (1319, 1, 0.85, 1.0),
]


def shares(random: np.random.Generator, chances: np.ndarray, samples: int) -> list[Fraction]:
    """The share of correct samples of each problem."""
    return [Fraction(int(c), samples) for c in random.binomial(samples, chances)]


def simulate(problems: int, samples: int, mean: float, total: float, simulations: int) -> dict[str, float]:
    """Rates of one case."""
    random = np.random.default_rng([problems, samples])
    a, b = mean * total, (1 - mean) * total
    covered = alarms = middle = paired_covered = 0
    single = samples == 1
    for _ in range(simulations):
        chances = random.beta(a, b, problems)
        first = shares(random, chances, samples)
        interval = statistics.mean_with_interval([float(s) for s in first], single)
        covered += interval["low"] <= mean <= interval["high"]
        again = shares(random, chances, samples)
        p, mid_p = statistics.sign_flip_test([y - x for x, y in zip(first, again, strict=True)])
        alarms += p < 0.05
        middle += mid_p < 0.05
        # The other model solves a tenth of what is left, and loses a twentieth of what it had.
        better = chances + 0.1 * (1 - chances) - 0.05 * chances
        truth = 0.1 * (1 - mean) - 0.05 * mean
        result = statistics.paired(list(zip(first, shares(random, better, samples), strict=True)), single)
        paired_covered += result["low"] <= truth <= result["high"]
    rates = {"covered": covered, "paired": paired_covered, "alarms": alarms, "mid": middle}
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
