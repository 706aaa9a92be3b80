"""One attention function over packed rows, with a back end per platform behind the same signature."""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from cogpo_jax.errors import UserError
from cogpo_jax.sharding import shard, spec

BACKENDS = ("xla", "splash", "gpu")


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
    kernel = _kernel(backend)
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
    from cogpo_jax.student.blockwise import BLOCK

    return min(BLOCK, row_length), backend == "xla" or dtype == "float32"  # the GPU's kernel leaves float32 to xla


def default_backend() -> str:
    """The back end for the platform that jax runs on."""
    return {"tpu": "splash", "gpu": "gpu"}.get(jax.default_backend(), "xla")


def _kernel(backend: str) -> Callable[..., Array]:
    # Imported when used: a back end's kernel library need not be there on another platform.
    if backend == "xla":
        from cogpo_jax.student.blockwise import blockwise_attention

        return blockwise_attention
    if backend == "splash":
        from cogpo_jax.student.splash import splash_attention

        return splash_attention
    if backend == "gpu":
        from cogpo_jax.student.gpu import gpu_attention

        return gpu_attention
    raise UserError(f"attention: {backend!r}: known are {', '.join(BACKENDS)}")
