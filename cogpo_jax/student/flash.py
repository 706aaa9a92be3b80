"""The GPU's attention over packed rows: Pallas (Triton) kernels that never visit the blocks of other segments.

FlashAttention-2 (arXiv 2307.08691), forward and both halves of the gradient. Every loop over blocks has its bounds from
the segment ids, so that a packed row costs what its segments cost. Grouped heads are read where they lie: a query head
reads its one key head. jax 0.10 to 0.12 have Pallas's Triton; jax means to remove it later (docs/student.md).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

_MASKED = -1e30  # finite, so that a block in which a query sees nothing gives exp2(...) = 0 and no NaN
_PADDED = 128  # rows are padded to a multiple: every block's side divides it


@dataclasses.dataclass(frozen=True)
class Tile:
    """Queries and keys of a block, warps of a program, and stages of its pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Blocks of the forward kernel, of the one for the queries' gradient, and of the one for keys and values."""

    forward: Tile
    queries: Tile
    keys: Tile


# The fastest of seven of each on an H200 with heads of 128 (benchmarks/gpu_attention.py --tune); most are within 10%.
BFLOAT16 = Tiles(Tile(128, 64, 8, 3), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2))


def flash_attention(
    q: Float[Array, "B T H dh"],
    k: Float[Array, "B T K dh"],
    v: Float[Array, "B T K dh"],
    segment_ids: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    *,
    tiles: Tiles = BFLOAT16,
    interpret: bool = False,
) -> Float[Array, "B T H dh"]:
    """`attention` on a GPU; interpret: on any platform, slowly. `positions` are not needed, the order of a row is.

    For bfloat16. In float32 its products are exact too, and slow: on an H200 323 ms where XLA took 214 in bfloat16.
    """
    del positions
    length, head_dim = q.shape[1], q.shape[3]
    more, wider = -length % _PADDED, max(16, pl.next_power_of_2(head_dim)) - head_dim
    scale = 1 / math.sqrt(head_dim)
    q, k, v = (jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, wider))) for x in (q, k, v))
    ids = jnp.pad(segment_ids, ((0, 0), (0, more)))
    ids = jnp.where(ids == 0, -1 - jnp.arange(length + more), ids)  # a token of padding is alone: it sees itself
    return _attend(q, k, v, ids, scale, tiles, interpret)[:, :length, :, :head_dim]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q: Array, k: Array, v: Array, ids: Array, scale: float, tiles: Tiles, interpret: bool) -> Array:
    return _forward(q, k, v, ids, scale, tiles, interpret)[0]


def _forward(
    q: Array, k: Array, v: Array, ids: Array, scale: float, tiles: Tiles, interpret: bool
) -> tuple[Array, Array]:
    """(result [B, T, H, dh], log2 of the sum of exp2 of the scores [B, H, T])."""
    (rows, length, heads, _), tile = q.shape, tiles.forward
    own, every, own_lse, _ = _specs(q, k, tile.queries)
    return _call(
        functools.partial(_forward_kernel, scale=scale, tile=tile),
        tile,
        (length // tile.queries, rows, heads),
        [own, every["keys"], every["keys"], every["ids"], every["ids"]],
        [own, own_lse],
        [jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((rows, heads, length), jnp.float32)],
        interpret,
    )(q, k, v, ids, _first(ids, tile))


def _attend_fwd(
    q: Array, k: Array, v: Array, ids: Array, scale: float, tiles: Tiles, interpret: bool
) -> tuple[Array, tuple[Array, ...]]:
    out, lse = _forward(q, k, v, ids, scale, tiles, interpret)
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (q, k, v, ids, out, lse)


def _attend_bwd(
    scale: float, tiles: Tiles, interpret: bool, saved: tuple[Array, ...], d_out: Array
) -> tuple[Array, Array, Array, None]:
    q, k, v, ids, out, lse = saved
    rows, length, heads, head_dim = q.shape
    delta = jnp.einsum("bthd,bthd->bht", out, d_out, preferred_element_type=jnp.float32)
    tile = tiles.queries
    own, every, own_lse, _ = _specs(q, k, tile.queries)
    d_q = _call(
        functools.partial(_query_gradient, scale=scale, tile=tile),
        tile,
        (length // tile.queries, rows, heads),
        [own, every["keys"], every["keys"], every["ids"], every["ids"], own, own_lse, own_lse],
        own,
        jax.ShapeDtypeStruct(q.shape, q.dtype),
        interpret,
    )(q, k, v, ids, _first(ids, tile), d_out, lse, delta)
    tile = tiles.keys
    own, every, _, own_keys = _specs(q, k, tile.keys)
    # Each query head its own sum: more programs at a time than one for each key head; XLA adds them up.
    by_head = jax.ShapeDtypeStruct(q.shape, q.dtype)
    d_k, d_v = _call(
        functools.partial(_key_gradient, scale=scale, tile=tile),
        tile,
        (length // tile.keys, rows, heads),
        [every["queries"], own_keys, own_keys, every["ids"], every["ids"], every["queries"], *2 * [every["lse"]]],
        [own, own],
        [by_head, by_head],
        interpret,
    )(q, k, v, ids, _last(ids, tile), d_out, lse, delta)
    groups = (rows, length, k.shape[2], heads // k.shape[2], head_dim)
    d_k, d_v = (x.reshape(groups).sum(axis=3, dtype=jnp.float32).astype(k.dtype) for x in (d_k, d_v))
    return d_q, d_k, d_v, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _specs(q: Array, k: Array, block: int) -> tuple[Any, dict[str, Any], Any, Any]:
    """What a program of the grid (block, row, query head) gets.

    (its block of its query head, whole rows by name, its block of the log-sum-exp, its block of its key head).
    """
    length, head_dim, groups = q.shape[1], q.shape[3], q.shape[2] // k.shape[2]
    own = pl.BlockSpec((None, block, None, head_dim), lambda i, b, h: (b, i, h, 0))
    own_keys = pl.BlockSpec((None, block, None, head_dim), lambda i, b, h: (b, i, h // groups, 0))
    every = {
        "queries": pl.BlockSpec((None, length, None, head_dim), lambda _, b, h: (b, 0, h, 0)),
        "keys": pl.BlockSpec((None, length, None, head_dim), lambda _, b, h: (b, 0, h // groups, 0)),
        "ids": pl.BlockSpec((None, length), lambda _, b, h: (b, 0)),
        "lse": pl.BlockSpec((None, None, length), lambda _, b, h: (b, h, 0)),
    }
    return own, every, pl.BlockSpec((None, None, block), lambda i, b, h: (b, h, i)), own_keys


def _call(
    kernel: Any, tile: Tile, grid: tuple[int, ...], inputs: Any, outputs: Any, shapes: Any, interpret: bool
) -> Any:
    params = plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages)
    return pl.pallas_call(
        kernel, grid=grid, in_specs=inputs, out_specs=outputs, out_shape=shapes, compiler_params=params,
        interpret=interpret, name=kernel.func.__name__.strip("_"),
    )  # fmt: skip


def _ends(ids: Int[Array, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """For each token the index of the first and of the last token of its segment (segments lie in one piece)."""
    index = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    new = ids[:, 1:] != ids[:, :-1]
    edge = jnp.ones((ids.shape[0], 1), bool)
    begins, ends = jnp.concatenate([edge, new], 1), jnp.concatenate([new, edge], 1)
    first = jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
    last = jax.lax.cummin(jnp.where(ends, index, ids.shape[1]), axis=1, reverse=True)
    return first, last


def _spread(blocks: Int[Array, "B n"], length: int) -> Int[Array, "B T"]:
    """As long as a row, so that all of them have one block specification."""
    return jnp.pad(blocks, ((0, 0), (0, length - blocks.shape[1])))


def _first(ids: Int[Array, "B T"], tile: Tile) -> Int[Array, "B T"]:
    """Of each block of queries the first block with a key that one of them sees."""
    first = _ends(ids)[0].reshape(ids.shape[0], -1, tile.queries).min(axis=2)
    return _spread(first // tile.keys, ids.shape[1])


def _last(ids: Int[Array, "B T"], tile: Tile) -> Int[Array, "B T"]:
    """Of each block of keys the last block with a query that sees one of them."""
    last = _ends(ids)[1].reshape(ids.shape[0], -1, tile.keys).max(axis=2)
    return _spread(last // tile.queries, ids.shape[1])


def _dot(a: Array, b: Array) -> Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _weights(scores: Array, q_ids: Array, k_ids: Array, q_at: Array, k_at: Array, scale: float) -> Array:
    """The scores in powers of two; where a query does not see a key, next to minus infinity."""
    visible = (q_ids == k_ids) & (q_at >= k_at)
    return jnp.where(visible, scores * (scale * math.log2(math.e)), _MASKED)


def _forward_kernel(
    q: Any, k: Any, v: Any, ids: Any, first: Any, out: Any, lse: Any, *, scale: float, tile: Tile
) -> None:
    i = pl.program_id(0)
    q_at = i * tile.queries + jnp.arange(tile.queries)
    q_i, q_ids = q[...], ids[pl.ds(i * tile.queries, tile.queries)]

    def block(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        acc, top, total = carry
        at, k_at = pl.ds(j * tile.keys, tile.keys), j * tile.keys + jnp.arange(tile.keys)
        v_j = v[at, :]
        scores = _weights(_dot(q_i, k[at, :].T), q_ids[:, None], ids[at][None, :], q_at[:, None], k_at[None, :], scale)
        new_top = jnp.maximum(top, scores.max(axis=1))
        weights, decay = jnp.exp2(scores - new_top[:, None]), jnp.exp2(top - new_top)
        acc = acc * decay[:, None] + _dot(weights.astype(v_j.dtype), v_j)
        return acc, new_top, total * decay + weights.sum(axis=1)

    start = jnp.zeros(q_i.shape, jnp.float32), jnp.full(tile.queries, _MASKED), jnp.zeros(tile.queries)
    end = jax.lax.div((i + 1) * tile.queries + tile.keys - 1, tile.keys)
    acc, top, total = jax.lax.fori_loop(first[i], end, block, start)
    out[...] = (acc / total[:, None]).astype(out.dtype)
    lse[...] = top + jnp.log2(total)


def _query_gradient(
    q: Any,
    k: Any,
    v: Any,
    ids: Any,
    first: Any,
    d_out: Any,
    lse: Any,
    delta: Any,
    d_q: Any,
    *,
    scale: float,
    tile: Tile,
) -> None:
    i = pl.program_id(0)
    q_at = i * tile.queries + jnp.arange(tile.queries)
    q_i, q_ids, d_i = q[...], ids[pl.ds(i * tile.queries, tile.queries)], d_out[...]
    lse_i, delta_i = lse[...], delta[...]

    def block(j: Array, acc: Array) -> Array:
        at, k_at = pl.ds(j * tile.keys, tile.keys), j * tile.keys + jnp.arange(tile.keys)
        k_j = k[at, :]
        scores = _weights(_dot(q_i, k_j.T), q_ids[:, None], ids[at][None, :], q_at[:, None], k_at[None, :], scale)
        d_weights = _dot(d_i, v[at, :].T) - delta_i[:, None]
        d_scores = jnp.exp2(scores - lse_i[:, None]) * d_weights
        return acc + _dot(d_scores.astype(k_j.dtype), k_j)

    end = jax.lax.div((i + 1) * tile.queries + tile.keys - 1, tile.keys)
    acc = jax.lax.fori_loop(first[i], end, block, jnp.zeros(q_i.shape, jnp.float32))
    d_q[...] = (acc * scale).astype(d_q.dtype)


def _key_gradient(
    q: Any, k: Any, v: Any, ids: Any, last: Any, d_out: Any, lse: Any, delta: Any, d_k: Any, d_v: Any,
    *, scale: float, tile: Tile,
) -> None:  # fmt: skip
    j = pl.program_id(0)
    k_at = j * tile.keys + jnp.arange(tile.keys)
    k_j, v_j, k_ids = k[...], v[...], ids[pl.ds(j * tile.keys, tile.keys)]

    def block(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        at, q_at = pl.ds(i * tile.queries, tile.queries), i * tile.queries + jnp.arange(tile.queries)
        q_i, d_i = q[at, :], d_out[at, :]
        scores = _weights(_dot(k_j, q_i.T), ids[at][None, :], k_ids[:, None], q_at[None, :], k_at[:, None], scale)
        weights = jnp.exp2(scores - lse[at][None, :])
        d_scores = weights * (_dot(v_j, d_i.T) - delta[at][None, :])
        return carry[0] + _dot(d_scores.astype(q_i.dtype), q_i), carry[1] + _dot(weights.astype(d_i.dtype), d_i)

    zeros = jnp.zeros(k_j.shape, jnp.float32)
    sums = jax.lax.fori_loop(jax.lax.div(j * tile.keys, tile.queries), last[j] + 1, block, (zeros, zeros))
    d_k[...], d_v[...] = (sums[0] * scale).astype(d_k.dtype), sums[1].astype(d_v.dtype)
