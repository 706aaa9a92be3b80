"""Rotary positions (arXiv 2104.09864) as transformers has them: plain, by YaRN (arXiv 2309.00071), by Llama 3.1."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cogpo_jax.student.config import Llama3Rope, StudentConfig, Yarn


def inverse_frequencies(config: StudentConfig) -> tuple[np.ndarray, float]:
    """Float32 [dh / 2] radians per position, and the factor on cos and sin (1 without YaRN)."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    # float32 from the first step, like transformers: at position 32k a more exact power would be a different angle.
    frequencies = np.float32(1.0) / np.power(np.float32(config.rope_theta), exponents)
    if config.llama3 is not None:
        return _llama3(frequencies, config.llama3), 1.0
    if config.yarn is None:
        return frequencies, 1.0
    keep = _extrapolated_share(config.yarn, config.head_dim, config.rope_theta)
    stretched = frequencies / np.float32(config.yarn.factor)
    return stretched * (1 - keep) + frequencies * keep, _attention_factor(config.yarn)


def rope_tables(config: StudentConfig, positions: Int[Array, "B T"]) -> tuple[Array, Array]:
    """Factors of a head's dimensions and of its swapped halves, float32 [B, T, 1, dh], ready to broadcast over heads.

    cos, and sin with the sign of the half that it goes to.
    """
    frequencies, factor = inverse_frequencies(config)
    angles = positions[..., None, None].astype(jnp.float32) * np.tile(frequencies, 2)
    sign = np.repeat(np.array([-1, 1], np.float32), config.head_dim // 2)
    # Computed here, once: XLA would move sine and cosine, long programs on TPU, into the layers' forward and backward.
    return jax.lax.optimization_barrier((jnp.cos(angles) * factor, jnp.sin(angles) * factor * sign))


def apply_rope(x: Float[Array, "B T H dh"], cos: Array, sin: Array) -> Float[Array, "B T H dh"]:
    """Rotates the pairs (i, i + dh / 2) of each head in float32; the result has x's dtype."""
    x32 = x.astype(jnp.float32)
    return (x32 * cos + _swap_halves(x32) * sin).astype(x.dtype)


@jax.custom_vjp
def _swap_halves(x: Array) -> Array:
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([second, first], axis=-1)


# Its own transpose. Derived, it would pad both halves to whole width and add them, which TPUs do slowly.
_swap_halves.defvjp(lambda x: (_swap_halves(x), None), lambda _, d_y: (_swap_halves(d_y),))


def _llama3(frequencies: np.ndarray, rope: Llama3Rope) -> np.ndarray:
    """Kept where they turn often within the original context, else divided by the factor, a ramp between."""
    turns = np.float32(rope.original_max_position_embeddings) * frequencies / np.float32(2 * math.pi)
    low, high = np.float32(rope.low_freq_factor), np.float32(rope.high_freq_factor)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return (np.float32(1) - keep) * frequencies / np.float32(rope.factor) + keep * frequencies


def _extrapolated_share(yarn: Yarn, dim: int, theta: float) -> np.ndarray:
    """1 where a frequency is kept as it is (fast), 0 where it is divided by the factor (slow), a ramp between."""

    def dimension_of(rotations: float) -> float:
        return dim * math.log(yarn.original_max_position_embeddings / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(yarn.beta_fast), dimension_of(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if low == high else 0
    ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    return np.float32(1) - np.clip(ramp, 0, 1)


def _attention_factor(yarn: Yarn) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if yarn.factor <= 1 else 0.1 * weight * math.log(yarn.factor) + 1.0

    if yarn.attention_factor is not None:
        return yarn.attention_factor
    if yarn.mscale and yarn.mscale_all_dim:
        return mscale(yarn.mscale) / mscale(yarn.mscale_all_dim)
    return mscale(1.0)
