"""Blockwise attention is plain attention, whatever the segments, and never makes a NaN."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.student import attention as attention_module
from cogpo_jax.student.attention import attention, blockwise_attention


def naive(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    groups = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, groups, axis=2), jnp.repeat(v, groups, axis=2)
    scores = jnp.einsum("bqhd,bthd->bhqt", q, k) / math.sqrt(q.shape[-1])
    index = jnp.arange(q.shape[1])
    visible = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (index[:, None] >= index[None, :])
    return jnp.einsum("bhqt,bthd->bqhd", jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf), axis=-1), v)


def inputs(rows: int, length: int, heads: int, kv_heads: int, head_dim: int = 16) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    shapes = [(rows, length, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def runs(*lengths: int) -> np.ndarray:
    return np.repeat(np.arange(1, len(lengths) + 1), lengths)


SEGMENTS = {
    "one short row": np.stack([runs(50), np.where(np.arange(50) < 30, 1, 0)]),
    "many segments, two blocks and a rest": np.stack([runs(40, 130, 100, 30), runs(299, 1)]),
    "padding between and behind": np.stack([np.where(np.arange(300) % 100 < 80, runs(100, 100, 100), 0)]),
    "one segment in two places": np.stack([np.repeat([7, 3, 7], [120, 60, 120])]),
}


@pytest.mark.parametrize("case", SEGMENTS)
def test_value_and_gradient_are_plain_attentions(case: str) -> None:
    segment_ids = jnp.asarray(SEGMENTS[case], jnp.int32)
    q, k, v, weights = inputs(*segment_ids.shape, heads=4, kv_heads=2)
    weights = weights * (segment_ids != 0)[..., None, None]

    def loss(attend, q, k, v):
        return jnp.sum(attend(q, k, v) * weights)

    ours, expected = (
        jax.jit(jax.value_and_grad(lambda q, k, v, f=f: loss(f, q, k, v), argnums=(0, 1, 2)))(q, k, v)
        for f in (
            lambda q, k, v: blockwise_attention(q, k, v, segment_ids, segment_ids),
            lambda q, k, v: naive(q, k, v, segment_ids),
        )
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_rows_of_nothing_but_padding_are_finite() -> None:
    q, k, v, _ = inputs(1, 200, 2, 1)
    nothing = jnp.zeros((1, 200), jnp.int32)
    out, pullback = jax.vjp(lambda *qkv: blockwise_attention(*qkv, nothing, nothing), q, k, v)
    assert all(np.isfinite(x).all() for x in (out, *pullback(jnp.ones_like(out))))


def test_blocks_of_other_segments_are_not_computed() -> None:
    segment_ids = jnp.asarray(runs(128, 128, 100, 28, 128), jnp.int32).reshape(4, 128)
    assert attention_module._first_blocks(segment_ids).tolist() == [0, 1, 2, 3]
    whole_row = jnp.ones((4, 128), jnp.int32)
    assert attention_module._first_blocks(whole_row).tolist() == [0, 0, 0, 0]
    assert attention_module._first_blocks(jnp.zeros((4, 128), jnp.int32)).tolist() == [0, 1, 2, 3]


def test_huge_scores_do_not_overflow() -> None:
    q, k, v, _ = inputs(1, 200, 2, 1)
    segment_ids = jnp.asarray([runs(90, 110)], jnp.int32)
    out = blockwise_attention(q * 1e4, k * 1e4, v, segment_ids, segment_ids)
    np.testing.assert_allclose(out, naive(q * 1e4, k * 1e4, v, segment_ids), rtol=1e-4, atol=1e-4)


def test_bfloat16_is_float32_rounded() -> None:
    q, k, v, _ = (x.astype(jnp.bfloat16) for x in inputs(1, 200, 4, 2))
    segment_ids = jnp.asarray([runs(90, 110)], jnp.int32)
    out = blockwise_attention(q, k, v, segment_ids, segment_ids)
    assert out.dtype == jnp.bfloat16
    expected = naive(*(x.astype(jnp.float32) for x in (q, k, v)), segment_ids)
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.03)


def test_an_unknown_backend_is_named() -> None:
    q, k, v, _ = inputs(1, 8, 2, 1)
    ids = jnp.ones((1, 8), jnp.int32)
    with pytest.raises(UserError, match="'cudnn'"):
        attention(q, k, v, ids, ids, backend="cudnn")
