"""One attention function over packed rows, with a back end per platform behind the same signature.

The back end for XLA (any platform, and the reference) is here, the GPU's is in flash.py and the TPU's in splash.py.
"""

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
    The rows are one long row to it, in which no segment is another row's. `positions` are not needed, the order is.
    """
    del positions
    rows, length, heads, head_dim = q.shape
    block, kv_heads = min(BLOCK, length), k.shape[2]
    other_row = (segment_ids.max() + 1) * jnp.arange(rows)[:, None]
    segment_ids = jnp.where(segment_ids == 0, 0, segment_ids + other_row)

    def blocks(x: Array, *shape: int) -> Array:
        """[B, T, ...] -> [N, block, *shape], each row padded to whole blocks."""
        x = jnp.pad(x, [(0, 0), (0, -length % block)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(-1, block, *shape)

    q, k, v = blocks(q, kv_heads, heads // kv_heads, head_dim), blocks(k, *k.shape[2:]), blocks(v, *v.shape[2:])
    out = _attend(q, k, v, blocks(segment_ids))
    return out.reshape(rows, -1, heads, head_dim)[:, :length]


# Shapes in here: q [N, block, K, G, dh], k and v [N, block, K, dh], ids [N, block]; a block's products are by key head.


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, ids: Array) -> Array:
    return _forward(q, k, v, ids)[0]


def _forward(q: Array, k: Array, v: Array, ids: Array) -> tuple[Array, Array]:
    """Attention's result, shaped as q, and the float32 log-sum-exp of the scores [N, K, G, block]."""

    def query_block(x: tuple[Array, ...]) -> tuple[Array, Array]:
        i, first, q_i, ids_i = x

        def key_block(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top, total, acc = carry
            scores = _scores(q_i, _at(k, j), _visible(ids_i, _at(ids, j), i, j))
            new_top = jnp.maximum(top, scores.max(-1))
            probabilities = jnp.exp(scores - new_top[..., None])
            decay = jnp.exp(top - new_top)
            update = _dot("kgqt,tkd->kgqd", probabilities.astype(v.dtype), _at(v, j))
            return new_top, total * decay + probabilities.sum(-1), acc * decay[..., None] + update

        shape = (*q.shape[2:4], q.shape[1])
        start = (jnp.full(shape, _MASKED), jnp.zeros(shape), jnp.zeros((*shape, q.shape[-1]), jnp.float32))
        top, total, acc = jax.lax.fori_loop(first, i + 1, key_block, start)
        out = (acc / total[..., None]).astype(q.dtype)
        return out.transpose(2, 0, 1, 3), top + jnp.log(total)

    return jax.lax.map(query_block, (jnp.arange(len(ids)), _first_blocks(ids), q, ids))


def _attend_fwd(q: Array, k: Array, v: Array, ids: Array) -> tuple[Array, tuple[Array, ...]]:
    out, lse = _forward(q, k, v, ids)
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (q, k, v, ids, out, lse)


def _attend_bwd(saved: tuple[Array, ...], d_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, ids, out, lse = saved
    scale = 1 / math.sqrt(q.shape[-1])

    def query_block(carry: tuple[Array, Array], x: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        i, first, q_i, ids_i, out_i, lse_i, d_out_i = x
        delta = jnp.sum(out_i.astype(jnp.float32) * d_out_i.astype(jnp.float32), axis=-1).transpose(1, 2, 0)

        def key_block(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_q, d_k, d_v = carry
            k_j, v_j = _at(k, j), _at(v, j)
            scores = _scores(q_i, k_j, _visible(ids_i, _at(ids, j), i, j))
            probabilities = jnp.exp(scores - lse_i[..., None])
            d_probabilities = _dot("qkgd,tkd->kgqt", d_out_i, v_j)
            d_scores = (probabilities * (d_probabilities - delta[..., None]) * scale).astype(q.dtype)
            d_v = _add_at(d_v, _dot("kgqt,qkgd->tkd", probabilities.astype(v.dtype), d_out_i), j)
            d_k = _add_at(d_k, _dot("kgqt,qkgd->tkd", d_scores, q_i), j)
            return d_q + _dot("kgqt,tkd->qkgd", d_scores, k_j), d_k, d_v

        start = (jnp.zeros(q_i.shape, jnp.float32), *carry)
        d_q, d_k, d_v = jax.lax.fori_loop(first, i + 1, key_block, start)
        return (d_k, d_v), d_q.astype(q.dtype)

    zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    index = jnp.arange(len(ids))
    (d_k, d_v), d_q = jax.lax.scan(query_block, zeros, (index, _first_blocks(ids), q, ids, out, lse, d_out))
    return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _first_blocks(ids: Int[Array, "N block"]) -> Int[Array, " N"]:
    """For each block of queries, the first block that holds a key of one of their segments."""
    flat, index = ids.reshape(-1), jnp.arange(ids.size)
    slots = jnp.clip(flat, 0, ids.size)  # larger ids share a slot: a lower bound stays one
    first = jnp.full(ids.size + 1, ids.size).at[slots].min(index)
    first_keys = jnp.where(flat == 0, index, first[slots])  # padding sees only itself
    return first_keys.reshape(ids.shape).min(axis=1) // ids.shape[1]


def _visible(q_ids: Int[Array, " q"], k_ids: Int[Array, " t"], i: Array, j: Array) -> Bool[Array, "q t"]:
    """Which keys of block j each query of block i sees: earlier or its own, same segment; padding only itself."""
    block = len(q_ids)
    distance = (i - j) * block + jnp.arange(block)[:, None] - jnp.arange(block)[None, :]
    same = (q_ids[:, None] == k_ids[None, :]) & (q_ids[:, None] != 0)
    return (same & (distance >= 0)) | (distance == 0)


def _scores(q: Array, k: Array, visible: Array) -> Float[Array, "K G q t"]:
    scores = _dot("qkgd,tkd->kgqt", q, k) * (1 / math.sqrt(q.shape[-1]))
    return jnp.where(visible, scores, _MASKED)


def _dot(equation: str, a: Array, b: Array) -> Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(equation, a, b, precision=precision, preferred_element_type=jnp.float32)


def _at(x: Array, i: Array) -> Array:
    """Block `i` of `x`."""
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def _add_at(x: Float[Array, "N block K dh"], update: Array, j: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(x, _at(x, j) + update, j, 0)
