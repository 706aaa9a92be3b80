"""The CogPO loss equals torch references of TRL's sigmoid DPO and of each option's formula, value and gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogpo_jax import cogpo_loss
from cogpo_jax.objective.cogpo import PreferenceOptions, finish
from cogpo_jax.records.schema import GAPS

try:
    import torch
    from torch.nn import functional as F
except ImportError:  # the tests that compare with it are skipped, the others are not
    pass

R, P = 7, 9
RNG = np.random.default_rng(0)
POLICY = RNG.normal(-40, 4, R).astype(np.float32)
REFERENCE = RNG.normal(-40, 4, R).astype(np.float32)
TOKENS = RNG.integers(5, 60, R).astype(np.float32)
CHOSEN = np.array([0, 1, 2, 3, 4, 5, 6, 0, 2])
REJECTED = np.array([1, 2, 3, 4, 5, 6, 0, 3, 6])
GAP = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0])
BETAS = np.array([0.1, 0.2, 0.5, 0.1, 0.1, 0.2, 0.5, 0.3, 0.1], np.float32)
WEIGHTS = np.array([1, 2, 0.5, 1, 1, 3, 1, 1, 0.25], np.float32)


PLAIN = PreferenceOptions()


def ours(options=PLAIN, beta=0.1, weight=None):
    def loss(policy, reference):
        return cogpo_loss(policy, reference, CHOSEN, REJECTED, beta, weight, tokens=TOKENS, options=options)[0]

    return jax.jit(jax.value_and_grad(loss))(jnp.asarray(POLICY), jnp.asarray(REFERENCE))


def torch_reference(per_pair, weight=None):
    """(value, gradient) of the weighted mean of per_pair(policy chosen, rejected, reference chosen, rejected)."""
    policy, reference = torch.tensor(POLICY, requires_grad=True), torch.tensor(REFERENCE)
    losses = per_pair(policy[CHOSEN], policy[REJECTED], reference[CHOSEN], reference[REJECTED])
    w = torch.ones(P) if weight is None else torch.tensor(weight)
    value = (w * losses).sum() / w.sum()
    value.backward()
    return value.item(), policy.grad.numpy()


def trl_sigmoid(beta, label_smoothing=0.0):
    """TRL's DPOTrainer with loss_type sigmoid; beta a number, or one per pair."""
    beta = torch.as_tensor(beta)

    def per_pair(chosen, rejected, ref_chosen, ref_rejected):
        logits = (chosen - rejected) - (ref_chosen - ref_rejected)
        return -F.logsigmoid(beta * logits) * (1 - label_smoothing) - F.logsigmoid(-beta * logits) * label_smoothing

    return per_pair


def n(side):
    return torch.tensor(TOKENS)[side]


CASES = {
    "trl_equal_betas": lambda: (ours(), torch_reference(trl_sigmoid(0.1))),
    "trl_betas_per_pair": lambda: (ours(beta=BETAS), torch_reference(trl_sigmoid(BETAS))),
    "weights": lambda: (ours(beta=BETAS, weight=WEIGHTS), torch_reference(trl_sigmoid(BETAS), WEIGHTS)),
    "label_smoothing": lambda: (
        ours(PreferenceOptions(label_smoothing=0.2), BETAS),
        torch_reference(trl_sigmoid(BETAS, 0.2)),
    ),
    "nll_weight": lambda: (
        ours(PreferenceOptions(nll_weight=0.7)),
        torch_reference(lambda c, r, rc, rr: trl_sigmoid(0.1)(c, r, rc, rr) - 0.7 * c / n(CHOSEN)),
    ),
    "length_normalized": lambda: (
        ours(PreferenceOptions(length_normalized=True), 2.0),
        torch_reference(lambda c, r, rc, rr: -F.logsigmoid(2.0 * ((c - rc) / n(CHOSEN) - (r - rr) / n(REJECTED)))),
    ),
    "length_penalty": lambda: (
        ours(PreferenceOptions(length_penalty=0.03)),
        torch_reference(
            lambda c, r, rc, rr: -F.logsigmoid(0.1 * ((c - rc) - (r - rr)) + 0.03 * (n(CHOSEN) - n(REJECTED)))
        ),
    ),
    "displacement_penalty": lambda: (
        ours(PreferenceOptions(displacement_penalty=5.0)),
        torch_reference(
            lambda c, r, rc, rr: -F.logsigmoid(0.1 * ((c - rc) - (r - rr) - 5.0 * torch.clamp(rc - c, min=0)))
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_torch_reference_in_value_and_gradient(case):
    pytest.importorskip("torch")
    (value, gradient), (want_value, want_gradient) = CASES[case]()
    np.testing.assert_allclose(value, want_value, rtol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-5, atol=1e-7)


def test_a_longer_chosen_response_teaches_less_under_the_length_penalty():
    def push(tokens):  # how strongly the loss pushes the chosen response up
        options = PreferenceOptions(length_penalty=0.05)
        pair = np.array([0]), np.array([1])
        loss = lambda x: cogpo_loss(x, jnp.zeros(2), *pair, 0.1, tokens=tokens, options=options)[0]  # noqa: E731
        return -jax.grad(loss)(jnp.zeros(2))[0]

    assert push(jnp.array([30.0, 10.0])) < push(jnp.array([10.0, 10.0])) < push(jnp.array([10.0, 30.0]))


def test_policy_equal_to_reference_gives_ln_2_and_margins_of_zero():
    loss, metrics = cogpo_loss(jnp.asarray(POLICY), jnp.asarray(POLICY), CHOSEN, REJECTED, BETAS, gap=jnp.asarray(GAP))
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-7)
    found = finish(metrics)
    assert set(found["margin"]) == {*GAPS, "all"}
    assert all(value == 0 for value in found["margin"].values())
    assert all(value == 0.5 for value in found["accuracy"].values())
    assert all(value == 0 for value in found["kl"].values())


def test_the_gradient_is_proportional_to_beta_at_the_start():
    def gradient(beta):
        loss = lambda x: cogpo_loss(x, jnp.zeros(2), np.array([0]), np.array([1]), beta)[0]  # noqa: E731
        return jax.grad(loss)(jnp.zeros(2))

    np.testing.assert_allclose(gradient(0.5), 5 * gradient(0.1), rtol=1e-6)


@pytest.mark.parametrize("options", [PreferenceOptions(), PreferenceOptions(0.1, 0.5, True, 0.1, 3.0)], ids=str)
def test_padding_pairs_are_harmless_even_where_they_are_nan(options):
    policy, reference = jnp.append(POLICY, jnp.nan), jnp.append(REFERENCE, jnp.inf)
    tokens = jnp.append(TOKENS, 0.0)  # as in a slot without a response

    def loss(policy):
        value, metrics = cogpo_loss(
            policy,
            reference,
            np.append(CHOSEN, [R, 0]),
            np.append(REJECTED, [R, R]),
            np.append(BETAS, [np.float32(1), np.float32(1)]),
            np.append(WEIGHTS, [np.float32(0), np.float32(0)]),
            gap=jnp.append(GAP, jnp.array([3, 3])),
            tokens=tokens,
            options=options,
        )
        return value, metrics

    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(policy)
    want_value, want_gradient = ours(options, BETAS, WEIGHTS)
    np.testing.assert_allclose(value, want_value, rtol=1e-6)
    np.testing.assert_allclose(gradient[:R], want_gradient, rtol=1e-6)
    assert gradient[R] == 0
    assert all(np.isfinite(list(gaps.values())).all() for gaps in finish(metrics).values())


def test_micro_batches_add_up_to_one_batch_in_loss_gradient_and_metrics():
    def part(policy, pairs, normalizer):
        return cogpo_loss(
            policy,
            REFERENCE,
            *(jnp.asarray(x)[pairs] for x in (CHOSEN, REJECTED, BETAS, WEIGHTS)),
            gap=jnp.asarray(GAP)[pairs],
            tokens=TOKENS,
            normalizer=normalizer,
        )

    f = jax.jit(jax.value_and_grad(part, has_aux=True), static_argnums=2)
    (whole, metrics), gradient = f(jnp.asarray(POLICY), np.arange(P), None)
    parts = [f(jnp.asarray(POLICY), pairs, float(WEIGHTS.sum())) for pairs in (np.arange(2), np.arange(2, P))]
    np.testing.assert_allclose(parts[0][0][0] + parts[1][0][0], whole, rtol=1e-6)
    np.testing.assert_allclose(parts[0][1] + parts[1][1], gradient, rtol=1e-5, atol=1e-8)
    added, want = finish(jax.tree.map(jnp.add, parts[0][0][1], parts[1][0][1])), finish(metrics)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), added, want)


def test_metrics_are_weighted_means_of_their_gap():
    _, metrics = cogpo_loss(
        jnp.asarray(POLICY), jnp.asarray(REFERENCE), CHOSEN, REJECTED, BETAS, WEIGHTS, gap=jnp.asarray(GAP),
        tokens=jnp.asarray(TOKENS),
    )  # fmt: skip
    found = finish(metrics)
    ratio = POLICY.astype(np.float64) - REFERENCE
    margin, longer = ratio[CHOSEN] - ratio[REJECTED], TOKENS[CHOSEN] - TOKENS[REJECTED]
    small = GAP == 0
    for gap, members in (("small", small), ("all", np.ones(P, bool))):
        mean = lambda x: np.average(x[members], weights=WEIGHTS[members])  # noqa: B023, E731
        np.testing.assert_allclose(found["margin"][gap], mean(margin), rtol=1e-5)
        np.testing.assert_allclose(found["accuracy"][gap], mean(margin > 0), rtol=1e-6)
        np.testing.assert_allclose(found["chosen_reward"][gap], mean(BETAS * ratio[CHOSEN]), rtol=1e-5)
        np.testing.assert_allclose(found["rejected_logratio"][gap], mean(ratio[REJECTED]), rtol=1e-5)
        np.testing.assert_allclose(found["kl"][gap], mean((ratio[CHOSEN] ** 2 + ratio[REJECTED] ** 2) / 4), rtol=1e-5)
    covariance = np.cov(BETAS * margin, longer, aweights=WEIGHTS)
    correlation = covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
    np.testing.assert_allclose(found["reward_length_corr"]["all"], correlation, atol=1e-4)


def test_a_gap_without_pairs_has_no_metrics():
    _, metrics = cogpo_loss(jnp.asarray(POLICY), jnp.asarray(REFERENCE), CHOSEN, REJECTED, BETAS, gap=jnp.zeros(P, int))
    assert set(finish(metrics)["margin"]) == {"small", "all"}
