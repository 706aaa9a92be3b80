"""Checksums of arrays that do not depend on mesh, order or process: wrapping integer sums of mixed words."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cogpo_jax.sharding import array_path

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit
def _mixed_sums(x: jax.Array) -> jax.Array:
    """Two uint32 sums over all elements, each mixed with its position: any flipped bit or swap changes them."""
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.zeros(x.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
        stride *= x.shape[axis]

    def mix(salt: int) -> jax.Array:  # MurmurHash3's finaliser over value and position
        h = words ^ (index * np.uint32(0x9E3779B1) + np.uint32(salt))
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            h = (h ^ (h >> shift)) * np.uint32(factor)
        return (h ^ (h >> 16)).sum(dtype=jnp.uint32)

    return jnp.stack([mix(0), mix(0x5BD1E995)])


def array_checksums(tree: Any) -> dict[str, str]:
    """{path: dtype, shape and 64-bit checksum} of every array, equal on any mesh; integer sums commute."""
    sums = {
        array_path(path): (f"{leaf.dtype}{list(leaf.shape)}", _mixed_sums(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return {path: f"{kind}:{int(s[0]):08x}{int(s[1]):08x}" for path, (kind, s) in sums.items()}


def tree_digest(tree: Any) -> str:
    """Hex SHA-256 over all arrays' checksums: names a set of weights."""
    return hashlib.sha256(json.dumps(array_checksums(tree), sort_keys=True).encode()).hexdigest()
