"""The TPU attention, in Pallas's TPU interpret mode, against the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from cogpo_jax import sharding
from cogpo_jax.errors import UserError
from cogpo_jax.student import splash
from cogpo_jax.student.attention import attention

LENGTHS = [[100, 130, 3, 100], [40, 344]]  # of the segments of two rows of 384; the rest of the first is padding


def packed(lengths, row_length):
    segment_ids = np.zeros((len(lengths), row_length), np.int32)
    positions = np.zeros_like(segment_ids)
    for row, parts in enumerate(lengths):
        start = 0
        for i, n in enumerate(parts):
            segment_ids[row, start : start + n] = i + 1
            positions[row, start : start + n] = np.arange(n)
            start += n
    return jnp.asarray(segment_ids), jnp.asarray(positions)


def arrays(heads, kv_heads, head_dim, length=384, rows=2):
    rng = np.random.default_rng(0)
    shapes = [(rows, length, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def plain(q, k, v, segment_ids):
    groups, index = q.shape[2] // k.shape[2], jnp.arange(q.shape[1])
    k, v = jnp.repeat(k, groups, 2), jnp.repeat(v, groups, 2)
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest") * q.shape[-1] ** -0.5
    seen = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (index[:, None] >= index)
    return jnp.einsum(
        "bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(seen[:, None], logits, -1e30)), v, precision="highest"
    )


def value_and_grads(function, q, k, v, weight, segment_ids):
    real = (segment_ids > 0)[..., None, None]

    def loss(q, k, v):
        out = jnp.where(real, function(q, k, v), 0)
        return (out * weight).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *grads


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 64), (6, 1, 128), (2, 2, 128)])
def test_equals_the_formula_forward_and_backward_on_packed_rows(heads, kv_heads, head_dim):
    q, k, v, weight = arrays(heads, kv_heads, head_dim)
    ids, positions = packed(LENGTHS, 384)
    want = value_and_grads(lambda q, k, v: plain(q, k, v, ids), q, k, v, weight, ids)
    with pltpu.force_tpu_interpret_mode():
        got = value_and_grads(lambda q, k, v: splash.splash_attention(q, k, v, ids, positions), q, k, v, weight, ids)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_rows_and_heads_split_over_a_mesh_give_the_same():
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    q, k, v, weight = arrays(4, 2, 64, length=128)
    ids, positions = packed([[60, 68], [128]], 128)
    run = lambda q, k, v: attention(q, k, v, ids, positions, backend="splash", mesh=mesh)  # noqa: E731
    with pltpu.force_tpu_interpret_mode():
        got = value_and_grads(run, q, k, v, weight, ids)
    for a, b in zip(got, value_and_grads(lambda *x: plain(*x, ids), q, k, v, weight, ids), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_only_tiles_that_hold_a_pair_are_visited():
    """Against the whole mask, on a row whose segments are not aligned to anything."""
    ids = splash._padding_apart(packed([[100, 300, 250, 9, 200]], 1024)[0][0], 128)
    index = np.arange(1024)
    mask = (np.asarray(ids)[:, None] == np.asarray(ids)) & (index[:, None] >= index)
    needed = mask.reshape(8, 128, 8, 128).any(axis=(1, 3))
    np.testing.assert_array_equal(splash.visited_tiles(ids, 128), needed)
    assert needed.sum() == 18  # plain causal visits 36


def test_ids_in_any_order_lose_no_pair():
    ids = jnp.asarray(np.random.default_rng(1).integers(1, 5, 1024), jnp.int32)
    ids = jnp.sort(ids.reshape(-1, 64), axis=0).T.reshape(-1)
    index = np.arange(1024)
    mask = (np.asarray(ids)[:, None] == np.asarray(ids)) & (index[:, None] >= index)
    needed = mask.reshape(8, 128, 8, 128).any(axis=(1, 3))
    assert not np.any(needed & ~np.asarray(splash.visited_tiles(ids, 128)))


def test_a_skipped_tile_names_the_next_visited_block():
    visited = jnp.array([[1, 0, 0], [0, 1, 0], [1, 0, 1]], bool)
    np.testing.assert_array_equal(splash._next_visited(visited, by_query=True), [[0, 1, 1], [1, 1, 0], [0, 2, 2]])
    np.testing.assert_array_equal(splash._next_visited(visited, by_query=False).T, [[0, 2, 2], [1, 1, 2], [2, 2, 2]])


def test_a_row_length_that_no_tile_divides_is_refused():
    with pytest.raises(UserError, match=r"rows.length: 1000: .*multiple of 128"):
        splash.tile_size(1000)
