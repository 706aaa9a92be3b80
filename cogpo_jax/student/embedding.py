"""Token ids to rows of a table that is split over the mesh, without ever gathering the table.

A table of 152k x 3,584 gathered for a lookup would be 1.1 GB on every device. Instead the token ids of an fsdp group
(a few hundred KB) are gathered, each device looks them up in its own columns, and an all-to-all gives every device all
columns of its own tokens. The gradient takes the same way back: it is summed in float32 where the table's part lives.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from cogpo_jax.sharding import shard, spec


def embed(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: str, mesh: Mesh | None = None
) -> Float[Array, "B T D"]:
    """table[tokens] in `dtype`; ids outside the table are clipped. On a mesh, tokens and result are split by rows."""
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
