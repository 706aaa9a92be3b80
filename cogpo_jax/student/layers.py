"""What a student's layers are made of: products, norms, the embedding of a split table, rotary positions."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from cogpo_jax.sharding import shard, spec
from cogpo_jax.student.config import Llama3Rope, StudentConfig, Yarn

# Up to so many tokens W x^T streams the weights faster than x W^T on a CPU (4,864 x 896 by 8: 0.75 against 2.4 ms).
FEW_TOKENS = 32


class Linear(nnx.Module):
    """y = x W^T + b, with W as HF stores it."""

    def __init__(self, weight: Array, bias: Array | None = None):
        self.weight = nnx.Param(weight)
        if bias is not None:
            self.bias = nnx.Param(bias)

    def __call__(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        y = checkpoint_name(project(x, self.weight[...]), "product")  # for remat: a custom gradient hides its products
        return y + self.bias[...].astype(y.dtype) if hasattr(self, "bias") else y


class RMSNorm(nnx.Module):
    """Root-mean-square norm in float32 (arXiv 1910.07467), given back in the input's dtype."""

    def __init__(self, weight: Array, eps: float):
        self.weight = nnx.Param(weight)
        self.eps = eps

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        x32 = x.astype(jnp.float32)
        # Mean and rsqrt each computed apart: XLA's CPU back end rounds them by what they are fused into, and a policy
        # in its gradient program would differ from itself as its own reference (94% of the hidden states, by ulps).
        # On a GPU they stay together, as one kernel: the products of its two programs differ anyway (performance.md).
        apart = (lambda y: y) if jax.default_backend() == "gpu" else jax.lax.optimization_barrier
        mean = apart(jnp.mean(jnp.square(x32), axis=-1, keepdims=True))
        x32 = x32 * apart(jax.lax.rsqrt(mean + self.eps))
        return (x32 * self.weight[...].astype(jnp.float32)).astype(x.dtype)


class Embedding(nnx.Module):
    """Token ids -> rows of the table (see `embed`)."""

    def __init__(self, weight: Array):
        self.weight = nnx.Param(weight)

    def __call__(self, tokens: Int[Array, "B T"], dtype: str, mesh: Mesh | None = None) -> Float[Array, "B T D"]:
        return embed(self.weight[...], tokens, dtype, mesh)


def project(x: Float[Array, "*n i"], weight: Float[Array, "o i"], out_dtype: Any = None) -> Float[Array, "*n o"]:
    """x W^T in x's dtype. Float32 asks for full precision: TPUs and GPUs would otherwise multiply in less."""
    return _project(x, weight.astype(x.dtype), out_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project(x: Array, weight: Array, out_dtype: Any) -> Array:
    if math.prod(x.shape[:-1]) > FEW_TOKENS or jax.default_backend() != "cpu":
        return _dot(x, weight, ((x.ndim - 1,), (1,)), out_dtype)
    columns = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)  # else XLA folds the transposes away
    y = jax.lax.optimization_barrier(_dot(weight, columns, ((1,), (0,)), out_dtype))
    return y.T.reshape(*x.shape[:-1], -1)


def _project_fwd(x: Array, weight: Array, out_dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return _project(x, weight, out_dtype), (x, weight)


def _project_bwd(out_dtype: Any, saved: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    # The weight's gradient as (x^T dy)^T, over one axis of tokens. Written as dy^T x, as autodiff does, XLA's CPU back
    # end fuses a transposition of dy into the activation's gradient: the MLP's backward pass took 1.7 times as long.
    # Over two axes, rows and tokens, it copies x transposed first, and the product took half as long again.
    x, weight = saved
    d_x = _dot(d_y, weight.astype(d_y.dtype), ((d_y.ndim - 1,), (0,)), x.dtype)
    x, d_y = x.reshape(-1, x.shape[-1]).astype(d_y.dtype), d_y.reshape(-1, d_y.shape[-1])
    return d_x, _dot(x, d_y, ((0,), (0,)), weight.dtype).T


_project.defvjp(_project_fwd, _project_bwd)


def _dot(a: Array, b: Array, contract: tuple[tuple[int, ...], tuple[int, ...]], out_dtype: Any) -> Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, (contract, ((), ())), precision=precision, preferred_element_type=out_dtype)


# --- embedding ----


def embed(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: str, mesh: Mesh | None = None
) -> Float[Array, "B T D"]:
    """table[tokens] in `dtype`; ids outside the table are clipped. On a mesh, tokens and result are split by rows.

    The table is never gathered: one of 152k x 3,584 would be 1.1 GB on every device. Instead the token ids of an fsdp
    group (a few hundred KB) are, each device looks them up in its own columns, and an all-to-all gives every device all
    columns of its own tokens. The gradient takes the same way back: summed in float32 where the table's part lives.
    """
    if mesh is None or mesh.size == 1:
        return _take(table, tokens, dtype)
    local = functools.partial(_local, dtype=dtype)
    return shard(local, mesh, (spec("vocab", "embed"), spec("rows")), spec("rows"))(table, tokens)


def _take(table: Array, tokens: Array, dtype: str) -> Array:
    # Cast after the lookup: the gradient of a token that occurs a thousand times is then summed in the table's dtype.
    return jnp.take(table, tokens, axis=0, mode="clip").astype(dtype)


def _local(table: Array, tokens: Array, dtype: str) -> Array:
    """table: this device's [V / tensor, D / fsdp]; tokens: its rows. The whole width of its rows comes back."""
    size = table.shape[0]
    everyone = jax.lax.all_gather(tokens.reshape(-1), "fsdp")
    everyone = jnp.clip(everyone, 0, size * jax.lax.axis_size("tensor") - 1)
    index = everyone - jax.lax.axis_index("tensor") * size
    own = (index >= 0) & (index < size)
    part = jnp.where(own[..., None], _take_by_device(table, index, dtype), 0)
    part = jax.lax.psum(part, "tensor")  # one term is not zero: exact in any dtype
    columns = jax.lax.all_to_all(part, "fsdp", split_axis=0, concat_axis=0)
    return jnp.moveaxis(columns, 0, 1).reshape(*tokens.shape, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _take_by_device(table: Array, tokens: Array, dtype: str) -> Array:
    """`_take` for tokens [devices, n]; its gradient adds up one device's tokens at a time.

    XLA sorts the indices of a sum on TPU, and unrolls the sort: short ones are less work than one over all tokens, for
    the chip and for the compiler.
    """
    return _take(table, tokens, dtype)


def _take_by_device_bwd(dtype: str, saved: tuple[Array, Array], d_part: Array) -> tuple[Array, None]:
    table, tokens = saved

    def add(total: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
        index, d_rows = one
        return total.at[index].add(d_rows.astype(total.dtype), mode="clip"), None

    return jax.lax.scan(add, jnp.zeros_like(table), (tokens, d_part))[0], None


_take_by_device.defvjp(lambda table, tokens, dtype: (_take(table, tokens, dtype), (table, tokens)), _take_by_device_bwd)


# --- rotary positions (arXiv 2104.09864) as transformers has them: plain, by YaRN (arXiv 2309.00071), by Llama 3.1 ---


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

    def tables(angles: Array) -> tuple[Array, Array]:
        return jnp.cos(angles) * factor, jnp.sin(angles) * factor * sign

    # Computed here, once: XLA would move sine and cosine, long programs on TPU, into the layers' forward and backward.
    # Its CPU back end drops barriers before it fuses, but fuses nothing into a branch.
    return jax.lax.platform_dependent(
        angles,
        cpu=lambda x: jax.lax.cond(positions.max() >= 0, tables, lambda x: (x, x), x),
        default=lambda x: jax.lax.optimization_barrier(tables(x)),
    )


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
