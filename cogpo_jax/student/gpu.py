"""Packed causal attention on GPUs: jax's Pallas (Triton) flash kernel, which masks by segment ids.

cuDNN's flash attention takes lengths, not segment ids, through public APIs. The kernel visits every block below the
diagonal, so that blocks of other segments are masked, not skipped, and it wants one key head per query head. Not
measured yet: no GPU was at hand; checked in interpret mode and by lowering for CUDA (tests/student/test_gpu.py).
"""

import math

import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu.attention import mha
from jaxtyping import Array, Float, Int

from cogpo_jax.student.blockwise import blockwise_attention

_BLOCK = 128  # the kernel's forward block: row lengths must be multiples of it


def gpu_attention(
    q: Float[Array, "B T H dh"],
    k: Float[Array, "B T K dh"],
    v: Float[Array, "B T K dh"],
    segment_ids: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    *,
    interpret: bool = False,
) -> Float[Array, "B T H dh"]:
    """See `attention.attention`; `positions` are not needed, the order of a row is.

    Float32 goes through XLA: it asks for exact products, and the kernel's tensor cores would round them to TF32.
    """
    if q.dtype == jnp.float32 and not interpret:
        return blockwise_attention(q, k, v, segment_ids, positions)
    length, groups = q.shape[1], q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, groups, axis=2), jnp.repeat(v, groups, axis=2)
    padding = -length % _BLOCK
    q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q, k, v))
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, padding)))
    scale = 1 / math.sqrt(q.shape[-1])
    return mha(q, k, v, segment_ids, sm_scale=scale, causal=True, interpret=interpret)[:, :length]
