"""Packed causal attention on TPU: jax's splash kernel, told per row which tiles hold anything.

Splash masks segments but visits every tile below the diagonal, which on packed rows of real long CoTs is 2.8 times the
work that is needed at 16k (benchmarks/attention_excess.py). Its list of tiles to visit (`MaskInfo`) is an input of the
kernel, so we compute it from the row's segment ids inside jit: a tile is visited only where a query and a key may share
a segment and the key is not after the query.

Query heads that share a key head are stacked into one tile ([groups * tile] queries against [tile] keys): keys and
values are never repeated, small tiles (little waste at segment borders) still feed the matrix unit with large products,
and the sum of the key gradients over the group happens in the kernel.

Relies on, in jax 0.10 (tests/student/test_splash.py holds it): `SplashAttentionKernel(fwd, dq, dkv mask infos, ...)`
accepting traced arrays as `MaskInfo`, with `q_sequence` giving each query's index for `mask_function`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info
from jaxtyping import Array, Bool, Float, Int

from cogpo_jax.errors import UserError

LANES = 128
_PADDING = 1 << 30  # above every segment id: padding sorts last, as it lies in a row


def tile_size(row_length: int, groups: int = 1) -> int:
    """Tokens in a tile's side, by row length and query heads per key head: 256, or 128 where the row or VMEM needs it.

    Visited over needed FLOPs on the real length mix at 16k: 1.05 with 128, 1.11 with 256, 1.21 with 512.
    Raises UserError where the row length is not a multiple of 128.
    """
    if row_length % LANES:
        raise UserError(f"rows.length: {row_length}: attention on TPU needs a multiple of {LANES}")
    return 256 if row_length % 256 == 0 and groups <= 8 else LANES


def splash_attention(
    q: Float[Array, "B T H dh"],
    k: Float[Array, "B T K dh"],
    v: Float[Array, "B T K dh"],
    segment_ids: Int[Array, "B T"],
    positions: Int[Array, "B T"],
) -> Float[Array, "B T H dh"]:
    """softmax(q k^T / sqrt(dh)) v within segments, causal by row index; padding (segment 0) gives unread numbers.

    For one device's rows and heads: `student.attention` puts it under shard_map. One kernel call a row, since each row
    has its own list of tiles (a scalar-prefetch input cannot be batched).
    """
    del positions  # within a segment they ascend with the row index, which is what causality goes by
    row = functools.partial(_row, tile=tile_size(q.shape[1], q.shape[2] // k.shape[2]))
    if q.shape[0] == 1:
        return row(q[0], k[0], v[0], segment_ids[0])[None]
    return jax.lax.map(lambda x: row(*x), (q, k, v, segment_ids))


def _row(
    q: Float[Array, "T H dh"],
    k: Float[Array, "T K dh"],
    v: Float[Array, "T K dh"],
    segment_ids: Int[Array, " T"],
    tile: int,
) -> Float[Array, "T H dh"]:
    length, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    groups = heads // kv_heads
    ids = _padding_apart(segment_ids, tile)
    stack = functools.partial(_stack_groups, tile=tile)

    q = (q.astype(jnp.float32) * head_dim**-0.5).astype(q.dtype)  # splash does not scale
    q = q.reshape(length // tile, tile, kv_heads, groups, head_dim).transpose(2, 0, 3, 1, 4)
    q = q.reshape(kv_heads, groups * length, head_dim)

    kernel = _kernel(visited_tiles(ids, tile), stack(jnp.arange(length, dtype=jnp.int32), groups), tile, groups)
    out = kernel(q, k.swapaxes(0, 1), v.swapaxes(0, 1), segment_ids=splash.SegmentIds(stack(ids, groups), ids))
    out = out.reshape(kv_heads, length // tile, groups, tile, head_dim).transpose(1, 3, 0, 2, 4)
    return out.reshape(length, heads, head_dim)


def _stack_groups(x: Int[Array, " T"], groups: int, tile: int) -> Int[Array, " GT"]:
    """Per-token values in the order of stacked queries: each tile once for every head of the group."""
    return jnp.broadcast_to(x.reshape(-1, 1, tile), (x.size // tile, groups, tile)).reshape(-1)


def _padding_apart(segment_ids: Int[Array, " T"], tile: int) -> Int[Array, " T"]:
    """Padding as segments of one tile each, after all others: a tile of padding then costs one visit, never none.

    (With no visit the softmax would divide by zero, and a NaN in padding reaches every gradient.)
    """
    own = _PADDING + jnp.arange(segment_ids.size, dtype=jnp.int32) // tile
    return jnp.where(segment_ids == 0, own, segment_ids.astype(jnp.int32))


def visited_tiles(segment_ids: Int[Array, " T"], tile: int) -> Bool[Array, "queries keys"]:
    """Which tiles [tile queries, tile keys] may hold a pair of one segment at or below the diagonal.

    Compares the range of ids on either side: exact where ids ascend along the row (as packed), never too few otherwise.
    """
    blocks = segment_ids.reshape(-1, tile)
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    index = jnp.arange(blocks.shape[0])
    return (low[:, None] <= high) & (low <= high[:, None]) & (index <= index[:, None])


def _kernel(visited: Bool[Array, "queries keys"], q_index: Int[Array, " GT"], tile: int, groups: int) -> Any:
    rows = groups * tile
    blocks = splash.BlockSizes(
        block_q=rows, block_kv=tile, block_q_dkv=rows, block_kv_dkv=tile, block_q_dq=rows, block_kv_dq=tile
    )  # the fused backward kernel would write a copy of dq for every key tile: 64 x 50 MB for 1.5B at 16k
    by_query = _mask_info(visited, _next_visited(visited, by_query=True), q_index)
    by_key = _mask_info(visited, _next_visited(visited, by_query=False), q_index)
    return splash.SplashAttentionKernel(
        by_query,
        by_query,
        by_key,
        block_sizes=blocks,
        is_mqa=False,
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name="attention",
        mask_function=_causal,
        interpret=False,
    )


def _causal(q_index: Array, k_index: Array) -> Array:
    return q_index >= k_index


def _mask_info(visited: Array, data_next: Array, q_index: Array) -> mask_info.MaskInfo:
    return mask_info.MaskInfo(
        data_next=data_next[None],
        mask_next=None,
        block_mask=visited.astype(jnp.int32)[None],
        partial_mask_blocks=None,
        q_sequence=q_index,  # type: ignore[arg-type]  # traced here: the kernel takes it, its annotation does not
    )


def _next_visited(visited: Bool[Array, "queries keys"], *, by_query: bool) -> Int[Array, "queries keys"]:
    """For each tile in the kernel's order, the block to have at hand: its own, or the next visited one's.

    The forward and dq kernels walk the keys of each query block and fetch keys; dkv walks the queries of each key block
    and fetches queries. A skipped tile that names the next visited block starts that fetch early, and repeats none.
    """
    walk = visited if by_query else visited.T
    rows, width = walk.shape
    line, column = jnp.arange(rows, dtype=jnp.int32), jnp.arange(width, dtype=jnp.int32)
    # By comparing all with all: a running minimum is one of XLA's longest programs on TPU.
    at_or_after = column >= column[:, None]
    here = jnp.where(walk[:, None] & at_or_after, column, width).min(axis=-1)
    first = here[:, 0]
    below = jnp.where((first < width) & (line > line[:, None]), line, rows).min(axis=-1)
    ahead = jnp.append(first, jnp.argmax(walk[0]).astype(jnp.int32))[below]  # after the last: the first line's again
    block = jnp.where(here < width, here, ahead[:, None])
    return block if by_query else block.T
