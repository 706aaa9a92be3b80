"""Schedule, weight-decay mask, clipping, and bfloat16 weights that only stochastic rounding can train."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import config_dict

from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import abstract_params
from cogpo_jax.training.step import apply_step, decays, learning_rate_schedule, make_optimizer, stochastic_round


def section(**fields):
    defaults = {
        "learning_rate": 1.0,
        "schedule": "cosine",
        "schedule_steps": 0,
        "warmup_ratio": 0.1,
        "min_learning_rate_ratio": 0.0,
        "weight_decay": 0.0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "clip_norm": 0.0,
    }
    return config_dict.ConfigDict(defaults | fields)


@pytest.mark.parametrize(
    ("schedule", "at_55", "at_99"), [("cosine", 0.55, 0.1003), ("linear", 0.55, 0.11), ("constant", 1.0, 1.0)]
)
def test_warm_up_then_decay_to_the_floor(schedule, at_55, at_99):
    rate = learning_rate_schedule(section(schedule=schedule, min_learning_rate_ratio=0.1), 100)
    np.testing.assert_allclose(rate(0), 1 / 11, rtol=1e-5)  # the first step trains too
    np.testing.assert_allclose(rate(5), 6 / 11, rtol=1e-5)
    np.testing.assert_allclose(rate(10), 1.0)
    np.testing.assert_allclose(rate(55), at_55, rtol=1e-3)
    np.testing.assert_allclose(rate(99), at_99, rtol=1e-2)
    assert all(rate(k) <= rate(k + 1) for k in range(10))


def test_a_schedule_of_its_own_length():
    rate = learning_rate_schedule(section(schedule_steps=20, warmup_ratio=0.0), 100)
    assert rate(0) == 1
    assert rate(20) == rate(99) == 0


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_only_matrices_decay(model_type):
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "model_type": model_type}
    params = abstract_params(StudentConfig.from_hf(dict.fromkeys(sizes, 8) | heads))
    decayed = jax.tree_util.tree_leaves_with_path(decays(params))
    named = {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in decayed}
    for name, value in named.items():
        assert value == (name.endswith("weight") and "norm" not in name), name
    assert named["embed_tokens.weight"]
    assert not named["norm.weight"]
    assert not named["layers.self_attn.q_norm.weight" if model_type == "qwen3" else "layers.self_attn.q_proj.bias"]


def test_weight_decay_moves_matrices_without_a_gradient_and_nothing_else():
    optimizer = make_optimizer(section(weight_decay=0.5, schedule="constant", warmup_ratio=0.0), 10)
    params = {"up_proj": {"weight": jnp.ones((2, 2))}, "norm": {"weight": jnp.ones(2)}}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["up_proj"]["weight"], -0.5)
    np.testing.assert_array_equal(updates["norm"]["weight"], 0)


def test_gradients_are_clipped_by_their_global_norm():
    optimizer = make_optimizer(section(clip_norm=1.0, eps=1.0, schedule="constant", warmup_ratio=0.0), 10)
    plain = make_optimizer(section(eps=1.0, schedule="constant", warmup_ratio=0.0), 10)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    large = {"a": jnp.array([30.0, 0.0]), "b": jnp.array([0.0, 40.0])}
    clipped = jax.tree.map(lambda g: g / 50, large)
    found, _ = optimizer.update(large, optimizer.init(params), params)
    want, _ = plain.update(clipped, plain.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, want)


def test_bfloat16_weights_train_by_stochastic_rounding_where_rounding_to_nearest_would_not():
    """Published learning rate, 50 steps: each update is far below half of bfloat16's spacing at 1."""
    rate, steps = 5e-7, 50
    optimizer = optax.sgd(rate)
    params = {"w": jnp.ones((400, 250), jnp.bfloat16)}
    gradients = {"w": jnp.ones((1, 400, 250), jnp.float32)}
    apply = jax.jit(functools.partial(apply_step, optimizer=optimizer))
    state, nearest = optimizer.init(params), params["w"]
    for k in range(steps):
        params, state, _ = apply(params, state, gradients, jnp.int32(k))
        nearest = (nearest.astype(jnp.float32) - rate).astype(jnp.bfloat16)
    assert params["w"].dtype == jnp.bfloat16
    assert (nearest == 1).all()
    moved = 1 - params["w"].astype(jnp.float32).mean()
    np.testing.assert_allclose(moved, rate * steps, rtol=0.3)


def test_stochastic_rounding_is_unbiased_and_leaves_what_bfloat16_holds():
    key = jax.random.key(1)
    x = jnp.full(200_000, 1 + 0.3 / 128, jnp.float32)  # bfloat16's neighbours: 1 and 1 + 1/128
    rounded = stochastic_round(x, key).astype(jnp.float32)
    assert set(np.unique(rounded).tolist()) == {1.0, 1 + 1 / 128}
    np.testing.assert_allclose((rounded.mean() - 1) * 128, 0.3, atol=0.01)
    np.testing.assert_allclose((stochastic_round(-x, key).astype(jnp.float32).mean() + 1) * 128, -0.3, atol=0.01)
    exact = jnp.array([0.0, -2.5, 1.0, jnp.inf, jnp.nan], jnp.float32)
    np.testing.assert_array_equal(stochastic_round(exact, key).astype(jnp.float32), exact)
