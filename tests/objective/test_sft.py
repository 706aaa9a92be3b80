"""The SFT loss is the mean NLL over counted tokens, and its micro-batches add up."""

import jax
import jax.numpy as jnp
import numpy as np

from cogpo_jax import sft_loss

LOGPS = jnp.array([-1.0, -2.0, -4.0, -8.0])


def test_mean_over_counted_tokens():
    loss, metrics = sft_loss(LOGPS, jnp.array([1, 0, 1, 1]))
    np.testing.assert_allclose(loss, 13 / 3)
    np.testing.assert_allclose(metrics["nll"]["all"], (13, 3))


def test_tokens_that_do_not_count_are_harmless_even_where_they_are_nan():
    logps = LOGPS.at[1].set(jnp.nan)
    value, gradient = jax.value_and_grad(lambda x: sft_loss(x, jnp.array([1, 0, 1, 1]))[0])(logps)
    np.testing.assert_allclose(value, 13 / 3)
    np.testing.assert_allclose(gradient, [-1 / 3, 0, -1 / 3, -1 / 3])


def test_micro_batches_add_up_to_one_batch():
    mask = jnp.array([1, 1, 0, 1])
    parts = [sft_loss(LOGPS[s], mask[s], normalizer=3.0)[0] for s in (slice(0, 1), slice(1, 4))]
    np.testing.assert_allclose(sum(parts), sft_loss(LOGPS, mask)[0])
