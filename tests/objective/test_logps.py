"""Chunked log-probs equal the naive ones, value and gradient, alone and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogpo_jax.objective import logps
from cogpo_jax.objective.logps import response_logps, token_logps
from cogpo_jax.sharding import make_mesh

B, T, D, V = 8, 13, 16, 40


def inputs(seed=0):
    k = jax.random.split(jax.random.key(seed), 4)
    hidden, head = jax.random.normal(k[0], (B, T, D)), jax.random.normal(k[1], (V, D))
    return hidden, head, jax.random.randint(k[2], (B, T), 0, V), jax.random.bernoulli(k[3], 0.6, (B, T))


def naive(hidden, head, targets, mask):
    every = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, head))
    return jnp.where(mask, jnp.take_along_axis(every, targets[..., None], 2)[..., 0], 0.0)


def value_and_grads(f, hidden, head):
    cotangent = jnp.linspace(-1.0, 2.0, B * T).reshape(B, T)
    return jax.jit(jax.value_and_grad(lambda h, w: (f(h, w) * cotangent).sum(), argnums=(0, 1)))(hidden, head)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunked_equals_naive_in_value_and_gradient(chunk):
    hidden, head, targets, mask = inputs()
    ours = value_and_grads(lambda h, w: token_logps(h, w, targets, mask, chunk=chunk), hidden, head)
    theirs = value_and_grads(lambda h, w: naive(h, w, targets, mask), hidden, head)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), ours, theirs)


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"replica": 2, "fsdp": 4}]
)
def test_mesh_equals_one_device(sizes):
    hidden, head, targets, mask = inputs()
    mesh = make_mesh(sizes) if sizes else None
    ours = value_and_grads(lambda h, w: token_logps(h, w, targets, mask, chunk=16, mesh=mesh), hidden, head)
    theirs = value_and_grads(lambda h, w: naive(h, w, targets, mask), hidden, head)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), ours, theirs)


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_blocks_of_the_vocabulary_change_nothing(monkeypatch, sizes):
    monkeypatch.setattr(logps, "_BLOCK", 7)
    assert logps.block_count(V) == 8
    assert logps.block_count(V // 2) == 4
    test_mesh_equals_one_device(sizes)


@pytest.mark.parametrize(("vocab", "count"), [(151936, 8), (152064, 8), (151936 // 4, 2), (2048, 1), (104729, 1)])
def test_qwen_vocabularies_are_cut_evenly_and_a_prime_one_not_at_all(vocab, count):
    assert logps.block_count(vocab) == count


def test_head_gradient_is_accumulated_in_float32():
    hidden, head, targets, mask = inputs()
    hidden16 = hidden.astype(jnp.bfloat16)
    _, (_, d_head) = value_and_grads(lambda h, w: token_logps(h, w, targets, mask, chunk=1), hidden16, head)
    _, (_, exact) = value_and_grads(lambda h, w: naive(h, w, targets, mask), hidden16.astype(jnp.float32), head)
    assert d_head.dtype == jnp.float32
    # One chunk per token: a bfloat16 accumulator would lose about 8 bits of the sum.
    np.testing.assert_allclose(d_head, exact, atol=0.05)


def test_nothing_counts():
    hidden, head, targets, _ = inputs()
    none = jnp.zeros((B, T), bool)
    value, grads = value_and_grads(lambda h, w: token_logps(h, w, targets, none), hidden, head)
    assert value == 0
    assert all((g == 0).all() for g in grads)


def test_large_logits_at_tokens_that_do_not_count_are_harmless():
    hidden, head, targets, mask = inputs()
    hidden = jnp.where(mask[..., None], hidden, 100.0 * hidden)
    value, grads = value_and_grads(lambda h, w: token_logps(h, w, targets, mask, chunk=7), hidden, head)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(g).all() for g in grads)


def test_response_logps_sums_by_slot_and_ignores_minus_one():
    values = jnp.array([[-1.0, -2.0, -4.0, -8.0]])
    total, count = response_logps(values, jnp.array([[1, -1, 1, 0]]), 3)
    np.testing.assert_array_equal(total, [-8.0, -5.0, 0.0])
    np.testing.assert_array_equal(count, [1.0, 2.0, 0.0])


@pytest.mark.parametrize("n", [1, 127, 128, 129, 3072])
def test_cumulative_sum_counts_what_is_at_or_before(n):
    x = np.random.default_rng(n).random(n) < 0.3
    np.testing.assert_array_equal(logps._cumulative_sum(jnp.asarray(x)), np.cumsum(x))
