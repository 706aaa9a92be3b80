"""The projections' hand-written gradient is the one that autodiff writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogpo_jax.student.layers import project


def plain(x: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.einsum("bti,oi->bto", x, weight.astype(x.dtype), precision="highest")


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_gradients_are_those_of_the_plain_product(dtype: str, tolerance: float) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 8, 16)).astype(dtype)
    weight = jax.random.normal(keys[1], (24, 16))
    d_y = jax.random.normal(keys[2], (2, 8, 24)).astype(dtype)
    ours, pullback = jax.vjp(project, x, weight)
    theirs, plain_pullback = jax.vjp(plain, x, weight)
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), rtol=tolerance, atol=tolerance)
    for own, other in zip(pullback(d_y), plain_pullback(d_y), strict=True):
        assert own.dtype == other.dtype
        scale = float(jnp.abs(other.astype(jnp.float32)).max())
        np.testing.assert_allclose(
            own.astype(jnp.float32), other.astype(jnp.float32), rtol=tolerance, atol=tolerance * scale
        )


def test_float32_logits_of_bfloat16_hidden_states_have_a_gradient() -> None:
    x = jax.random.normal(jax.random.key(0), (4, 16)).astype(jnp.bfloat16)
    weight = jax.random.normal(jax.random.key(1), (24, 16))
    value, (d_x, d_weight) = jax.value_and_grad(
        lambda x, w: project(x, w, out_dtype=jnp.float32).sum(), argnums=(0, 1)
    )(x, weight)
    assert value.dtype == jnp.float32
    assert (d_x.dtype, d_weight.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(d_x.astype(jnp.float32), jnp.broadcast_to(weight.sum(0), x.shape), rtol=2e-2, atol=0.1)
