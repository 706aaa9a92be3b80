"""One attention function over packed rows, with a back end per platform behind the same signature.

The back end for XLA (any platform, and the reference) is here, the GPU's is in flash.py and the TPU's in splash.py.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from cogpo_jax.errors import UserError
from cogpo_jax.progress import say
from cogpo_jax.sharding import shard, spec

BACKENDS = ("xla", "splash", "gpu")
# Queries and keys of a block. On a CPU the gradient of rows of 896 took 28 us of CPU time a token with segments of 300
# (blocks of 128: 46, 256: 60) and 25 with segments of 90 (38, 81); with one segment of 2,048 100 (128: 110).
BLOCK = 64
_MASKED = -1e30  # finite, so that a block in which a query sees nothing gives exp(...) = 0 and no NaN


def attention(
    q: Float[Array, "B T H dh"],
    k: Float[Array, "B T K dh"],
    v: Float[Array, "B T K dh"],
    segment_ids: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    *,
    backend: str = "xla",
    mesh: Mesh | None = None,
) -> Float[Array, "B T H dh"]:
    """softmax(q k^T / sqrt(dh)) v, causal by row index within equal segment ids; H is a multiple of K.

    Softmax in float32, result in q's dtype. Segment 0 is padding: finite and meaningless, in the gradient too. With a
    mesh, rows and heads stay where they are (each device attends to its own). Back ends: xla (exact, any platform),
    splash (TPU), gpu. Raises UserError for an unknown one.
    """
    kernel = _kernel(backend, q.dtype.name)
    if mesh is not None and mesh.size > 1:
        heads, kv_heads, rows = spec("rows", None, "heads", None), spec("rows", None, "kv_heads", None), spec("rows")
        kernel = shard(kernel, mesh, (heads, kv_heads, kv_heads, rows, rows), heads)
    with jax.named_scope("attention"):  # profiles and `training.log.model_flops` find it by this name
        return checkpoint_name(kernel(q, k, v, segment_ids, positions), "attention")


def tiles(backend: str, dtype: str, row_length: int, groups: int) -> tuple[int, bool]:
    """(tokens in a tile's side, whether tiles of other segments are skipped) of a back end: what it works on at a time.

    groups: query heads per key head. For the accounting of its work (`training.log.visited_pairs`).
    """
    if backend == "splash":
        from cogpo_jax.student.splash import tile_size

        return tile_size(row_length, groups), True
    if backend == "gpu" and dtype != "float32":
        from cogpo_jax.student.flash import BFLOAT16

        return BFLOAT16.forward.queries, True
    return min(BLOCK, row_length), True


def default_backend() -> str:
    """The back end for the platform that jax runs on."""
    return {"tpu": "splash", "gpu": "gpu"}.get(jax.default_backend(), "xla")


def _kernel(backend: str, dtype: str) -> Callable[..., Array]:
    # Kernels are imported when used: their library need not be there on another platform.
    if backend == "xla" or (backend == "gpu" and dtype == "float32"):  # exact products: no work for tensor cores
        return blockwise_attention
    if backend == "splash":
        from cogpo_jax.student.splash import splash_attention

        return splash_attention
    if backend == "gpu":
        try:
            from cogpo_jax.student.flash import flash_attention
        except ImportError as error:  # jax means to remove Pallas's Triton
            say(f"attention: xla instead of gpu: {error}")
            return blockwise_attention
        return flash_attention
    raise UserError(f"attention: {backend!r}: known are {', '.join(BACKENDS)}")


def blockwise_attention(
    q: Float[Array, "B T H dh"],
    k: Float[Array, "B T K dh"],
    v: Float[Array, "B T K dh"],
    segment_ids: Int[Array, "B T"],
    positions: Int[Array, "B T"],
) -> Float[Array, "B T H dh"]:
    """`attention` in plain XLA, block by block: scores of a whole row are never in memory.

    The online softmax of FlashAttention (arXiv 2205.14135, 2307.08691) with a loop over key blocks whose bounds come
    from the segment ids: blocks after the query (causal) and before the first key of its segment are never computed, so
    that a packed row costs what its segments cost. Gradients recompute the probabilities from the saved log-sum-exp.
    `positions` are not needed, the order of a row is.
    """
    del positions
    rows, length, heads, head_dim = q.shape
    block = min(BLOCK, length)
    padding = -length % block
    kv_heads = k.shape[2]
    q = q.reshape(rows, length, kv_heads, heads // kv_heads, head_dim)
    q, k, v = (jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)) for x in (q, k, v))
    segment_ids = jnp.pad(segment_ids, [(0, 0), (0, padding)])
    # [B, K, G, T, dh] and [B, K, T, dh]: a group of heads is a taller block of queries for its one key head.
    q, k, v = q.transpose(0, 2, 3, 1, 4), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    if length <= block:  # all rows at once: no bounds to differ
        out = _attend(q, k, v, segment_ids, block)
    else:
        one_row = lambda x: _attend(*(a[None] for a in x), block)[0]  # noqa: E731
        out = jax.lax.map(one_row, (q, k, v, segment_ids))
    return out[..., :length, :].transpose(0, 3, 1, 2, 4).reshape(rows, length, heads, head_dim)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: Array, k: Array, v: Array, segment_ids: Array, block: int) -> Array:
    return _forward(q, k, v, segment_ids, block)[0]


def _forward(q: Array, k: Array, v: Array, segment_ids: Array, block: int) -> tuple[Array, Array]:
    """Attention's result [B, K, G, T, dh] and the float32 log-sum-exp of the scores [B, K, G, T]."""
    first = _first_blocks(segment_ids, block)

    def query_block(i: Array) -> tuple[Array, Array]:
        q_i, s_i = _at(q, i, block, 3), _at(segment_ids, i, block, 1)
        shape = q_i.shape[:-1]

        def key_block(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top, total, acc = carry
            scores = _scores(q_i, _at(k, j, block, 2), _visible(s_i, _at(segment_ids, j, block, 1), i, j))
            new_top = jnp.maximum(top, scores.max(-1))
            probabilities = jnp.exp(scores - new_top[..., None])
            decay = jnp.exp(top - new_top)
            update = _dot("bkgqt,bktd->bkgqd", probabilities.astype(v.dtype), _at(v, j, block, 2))
            return new_top, total * decay + probabilities.sum(-1), acc * decay[..., None] + update

        start = (jnp.full(shape, _MASKED), jnp.zeros(shape), jnp.zeros(q_i.shape, jnp.float32))
        top, total, acc = jax.lax.fori_loop(first[i], i + 1, key_block, start)
        return (acc / total[..., None]).astype(q.dtype), top + jnp.log(total)

    out, lse = jax.lax.map(query_block, jnp.arange(segment_ids.shape[1] // block))
    return _join(out, 3), _join(lse, 3)


def _attend_fwd(q: Array, k: Array, v: Array, segment_ids: Array, block: int) -> tuple[Array, tuple[Array, ...]]:
    out, lse = _forward(q, k, v, segment_ids, block)
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (q, k, v, segment_ids, out, lse)


def _attend_bwd(block: int, saved: tuple[Array, ...], d_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, segment_ids, out, lse = saved
    first = _first_blocks(segment_ids, block)
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
    scale = 1 / math.sqrt(q.shape[-1])

    def query_block(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
        q_i, s_i, d_out_i = _at(q, i, block, 3), _at(segment_ids, i, block, 1), _at(d_out, i, block, 3)
        lse_i, delta_i = _at(lse, i, block, 3), _at(delta, i, block, 3)

        def key_block(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_q, d_k, d_v = carry
            k_j, v_j = _at(k, j, block, 2), _at(v, j, block, 2)
            scores = _scores(q_i, k_j, _visible(s_i, _at(segment_ids, j, block, 1), i, j))
            probabilities = jnp.exp(scores - lse_i[..., None])
            d_probabilities = _dot("bkgqd,bktd->bkgqt", d_out_i, v_j)
            d_scores = (probabilities * (d_probabilities - delta_i[..., None]) * scale).astype(q.dtype)
            d_v = _add_at(d_v, _dot("bkgqt,bkgqd->bktd", probabilities.astype(v.dtype), d_out_i), j, block)
            d_k = _add_at(d_k, _dot("bkgqt,bkgqd->bktd", d_scores, q_i), j, block)
            return d_q + _dot("bkgqt,bktd->bkgqd", d_scores, k_j), d_k, d_v

        start = (jnp.zeros(q_i.shape, jnp.float32), *carry)
        d_q, d_k, d_v = jax.lax.fori_loop(first[i], i + 1, key_block, start)
        return (d_k, d_v), d_q.astype(q.dtype)

    zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    (d_k, d_v), d_q = jax.lax.scan(query_block, zeros, jnp.arange(segment_ids.shape[1] // block))
    return _join(d_q, 3), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _first_blocks(segment_ids: Int[Array, "B T"], block: int) -> Int[Array, " blocks"]:
    """For each block of queries, the first block that holds a key of one of their segments."""
    length = segment_ids.shape[1]
    index = jnp.arange(length)

    def first_keys(ids: Array) -> Array:
        ids = jnp.clip(ids, 0, length)  # larger ids share a slot: a lower bound stays one
        first = jnp.full(length + 1, length).at[ids].min(index)
        return jnp.where(ids == 0, index, first[ids])  # padding sees only itself

    return jax.vmap(first_keys)(segment_ids).min(axis=0).reshape(-1, block).min(axis=1) // block


def _visible(q_ids: Int[Array, "B q"], k_ids: Int[Array, "B t"], i: Array, j: Array) -> Bool[Array, "B q t"]:
    """Which keys of block j each query of block i sees: earlier or its own, same segment; padding only itself."""
    block = q_ids.shape[1]
    distance = (i - j) * block + jnp.arange(block)[:, None] - jnp.arange(block)[None, :]
    same = (q_ids[:, :, None] == k_ids[:, None, :]) & (q_ids[:, :, None] != 0)
    return (same & (distance >= 0)) | (distance == 0)


def _scores(q: Array, k: Array, visible: Array) -> Float[Array, "B K G q t"]:
    scores = _dot("bkgqd,bktd->bkgqt", q, k) * (1 / math.sqrt(q.shape[-1]))
    return jnp.where(visible[:, None, None], scores, _MASKED)


def _dot(equation: str, a: Array, b: Array) -> Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(equation, a, b, precision=precision, preferred_element_type=jnp.float32)


def _at(x: Array, i: Array, block: int, axis: int) -> Array:
    """Block `i` of `x` along `axis`."""
    return jax.lax.dynamic_slice_in_dim(x, i * block, block, axis)


def _add_at(x: Float[Array, "B K T dh"], update: Array, j: Array, block: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, _at(x, j, block, 2) + update, j * block, 2)


def _join(blocks: Array, axis: int) -> Array:
    """[N, ..., block, ...] -> [..., N * block, ...], the blocks put one after the other along `axis`."""
    blocks = jnp.moveaxis(blocks, 0, axis)
    shape = blocks.shape
    return blocks.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
