"""The loss and every metric against plain numpy, written from the papers' formulas: no torch is needed."""

import jax.numpy as jnp
import numpy as np
import pytest

from cogpo_jax.objective.cogpo import PreferenceOptions, cogpo_loss, finish
from cogpo_jax.records.schema import GAPS

RNG = np.random.default_rng(0)
R, P = 9, 12
POLICY, REFERENCE = RNG.normal(-40, 4, R), RNG.normal(-40, 4, R)
TOKENS = RNG.integers(20, 90, R).astype(float)
CHOSEN, REJECTED = RNG.integers(0, 4, P), RNG.integers(4, R, P)
GAP, BETA = RNG.integers(0, 4, P), RNG.uniform(0.05, 0.6, P)
WEIGHT = RNG.uniform(0.2, 2, P)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(o):
    """(loss per pair, what each metric averages)."""
    ratio = POLICY - REFERENCE
    scored = ratio / TOKENS if o.length_normalized else ratio
    margin = scored[CHOSEN] - scored[REJECTED] - o.displacement_penalty * np.maximum(0, -scored[CHOSEN])
    z = BETA * margin + o.length_penalty * (TOKENS[CHOSEN] - TOKENS[REJECTED])
    loss = -(1 - o.label_smoothing) * np.log(sigmoid(z)) - o.label_smoothing * np.log(sigmoid(-z))
    loss = loss - o.nll_weight * POLICY[CHOSEN] / TOKENS[CHOSEN]
    won, lost = ratio[CHOSEN], ratio[REJECTED]
    return loss, {
        "loss": loss,
        "margin": won - lost,
        "accuracy": (won > lost).astype(float),
        "reward_margin": BETA * (won - lost),
        "chosen_reward": BETA * won,
        "rejected_reward": BETA * lost,
        "chosen_logratio": won,
        "rejected_logratio": lost,
        "kl": (won**2 + lost**2) / 4,
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.1},
        {"nll_weight": 0.3},
        {"length_normalized": True},
        {"length_penalty": 0.01},
        {"displacement_penalty": 0.5},
        {"label_smoothing": 0.2, "nll_weight": 0.1, "length_normalized": True, "displacement_penalty": 2.0},
    ],
    ids=str,
)
def test_loss_and_metrics_are_those_of_numpy(options):
    o = PreferenceOptions(**options)
    as_jax = [jnp.asarray(x, jnp.float32) for x in (POLICY, REFERENCE)]
    indices = [jnp.asarray(x, jnp.int32) for x in (CHOSEN, REJECTED)]
    value, metrics = cogpo_loss(
        *as_jax, *indices, jnp.asarray(BETA), jnp.asarray(WEIGHT), gap=jnp.asarray(GAP), tokens=jnp.asarray(TOKENS),
        options=o,
    )  # fmt: skip
    loss, averaged = reference(o)
    np.testing.assert_allclose(value, (WEIGHT * loss).sum() / WEIGHT.sum(), rtol=2e-5)
    found = finish(metrics)
    for name, values in averaged.items():
        for i, gap in enumerate((*GAPS, "all")):
            mine = WEIGHT * ((i == GAP) | (gap == "all"))
            np.testing.assert_allclose(
                found[name][gap], (mine * values).sum() / mine.sum(), rtol=2e-4, atol=1e-5, err_msg=f"{name} {gap}"
            )


def test_the_length_correlation_is_pearsons():
    as_jax = [jnp.asarray(x, jnp.float32) for x in (POLICY, REFERENCE)]
    indices = [jnp.asarray(x, jnp.int32) for x in (CHOSEN, REJECTED)]
    _, metrics = cogpo_loss(*as_jax, *indices, jnp.asarray(BETA), tokens=jnp.asarray(TOKENS))
    ratio = POLICY - REFERENCE
    x, y = BETA * (ratio[CHOSEN] - ratio[REJECTED]), TOKENS[CHOSEN] - TOKENS[REJECTED]
    np.testing.assert_allclose(finish(metrics)["reward_length_corr"]["all"], np.corrcoef(x, y)[0, 1], rtol=1e-3)
