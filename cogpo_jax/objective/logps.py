"""Log-probs of target tokens without ever holding [tokens, vocab]: chunks of tokens by blocks of the vocabulary.

Only tokens that count go through the head: they are gathered to the front, and the loop runs over as many chunks as
they fill. The trip count depends on the data, so the gradient is written by hand (reverse mode cannot cross a dynamic
loop); it recomputes the logits from the saved log-sum-exp and accumulates in float32.

The outer loop goes over blocks of the vocabulary, with a running log-sum-exp (arXiv 2205.14135's, here over a softmax's
columns): the float32 gradient of the head is finished, and on a mesh summed and split again, block by block. Whole it
would be 0.9 GB for a 1.5B student on every device, and 2.2 GB for 7B; the gathered head half of that.
On a mesh each device takes its own rows and its own part of the vocabulary; what crosses devices is written out.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from cogpo_jax.sharding import row_axes, shard, spec

_BLOCK = 20_000  # columns of the logits at a time, about: Qwen's 151,936 and 152,064 are cut into 8
_LOWEST = -1e30  # finite: a maximum over nothing that exp() takes to 0 without a NaN


def token_logps(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    chunk: int = 512,
    mesh: Mesh | None = None,
) -> Float[Array, "B T"]:
    """log softmax(hidden head^T)[targets] in float32, 0 where `mask` is False; differentiable in hidden and head.

    The products are computed in hidden's dtype, accumulated in float32; at most [chunk, 20,000] logits exist at a time
    on a device. head keeps its own (master) dtype, and its gradient is accumulated in float32.
    """
    with jax.named_scope("head"):  # profiles and `training.log.model_flops` find it by this name
        return _logps(hidden, head, targets, mask, chunk, mesh if mesh is not None and mesh.size > 1 else None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _logps(hidden: Array, head: Array, targets: Array, mask: Array, chunk: int, mesh: Mesh | None) -> Array:
    return _forward(hidden, head, targets, mask, chunk, mesh)[0]


def _forward(
    hidden: Array, head: Array, targets: Array, mask: Array, chunk: int, mesh: Mesh | None
) -> tuple[Array, Any]:
    rows, table = spec("rows"), spec("vocab", "embed")
    local = functools.partial(_local_forward, chunk=chunk, axes=_axes(mesh))
    logps, lses = _on_mesh(local, mesh, (rows, table, rows, rows), (rows, rows))(hidden, head, targets, mask)
    return logps, (hidden, head, targets, mask, lses)


def _backward(chunk: int, mesh: Mesh | None, residuals: Any, grads: Array) -> tuple[Array, Array, None, None]:
    hidden, head, targets, mask, lses = residuals
    rows, table = spec("rows"), spec("vocab", "embed")
    local = functools.partial(_local_backward, chunk=chunk, axes=_axes(mesh))
    on_mesh = _on_mesh(local, mesh, (rows, table, rows, rows, rows, rows), (rows, table))
    d_hidden, d_head = on_mesh(hidden, head, targets, mask, lses, grads)
    return d_hidden, d_head.astype(head.dtype), None, None


_logps.defvjp(_forward, _backward)


def _on_mesh(f: Callable[..., Any], mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    return shard(f, mesh, in_specs, out_specs) if mesh else f


def _local_forward(
    hidden: Array, head: Array, targets: Array, mask: Array, *, chunk: int, axes: "_Axes"
) -> tuple[Array, Array]:
    """(logps, log-sum-exps), both [b, T], of this device's rows; head is its [V / tensor, D / fsdp]."""
    flat, blocks = _Compact(mask, chunk), _Blocks(head, hidden.dtype, axes)
    h, t = flat.gather(hidden), flat.gather(targets)

    def block(carry: tuple[Array, Array, Array], b: Array) -> tuple[Any, None]:
        weight, first = blocks.gather(b), blocks.first_column(b)

        def body(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            top, total, chosen = (flat.chunk(x, i) for x in carry)
            logits = _logits(flat.chunk(h, i), weight)
            column = flat.chunk(t, i) - first
            inside = (column >= 0) & (column < blocks.size)
            target = jnp.take_along_axis(logits, jnp.clip(column, 0, blocks.size - 1)[:, None], axis=1)[:, 0]
            peak = jnp.maximum(top, logits.max(axis=-1))
            total = total * jnp.exp(top - peak) + jnp.exp(logits - peak[:, None]).sum(axis=-1)
            new = peak, total, jnp.where(inside, target, chosen)
            return tuple(flat.put(old, x, i) for old, x in zip(carry, new, strict=True))

        return jax.lax.fori_loop(0, flat.chunks, body, carry), None

    zeros = jnp.zeros(flat.size, jnp.float32)
    (top, total, chosen), _ = jax.lax.scan(block, (zeros + _LOWEST, zeros, zeros), jnp.arange(blocks.count))
    if axes.vocab:
        peak = jax.lax.pmax(top, axes.vocab)
        total = jax.lax.psum(total * jnp.exp(top - peak), axes.vocab)
        top, chosen = peak, jax.lax.psum(chosen, axes.vocab)
    lse = top + jnp.log(total)
    return flat.scatter(chosen - lse), flat.scatter(lse)


def _local_backward(
    hidden: Array, head: Array, targets: Array, mask: Array, lses: Array, grads: Array, *, chunk: int, axes: "_Axes"
) -> tuple[Array, Array]:
    """(d_hidden [b, T, D], d_head [V / tensor, D / fsdp] float32 summed over all rows)."""
    flat, blocks = _Compact(mask, chunk), _Blocks(head, hidden.dtype, axes)
    h, t = flat.gather(hidden), flat.gather(targets)
    # Infinite where nothing counts: the probabilities there are 0, not an overflow that 0 would not cancel.
    lse, g = jnp.where(flat.live, flat.gather(lses), jnp.inf), jnp.where(flat.live, flat.gather(grads), 0.0)

    def block(d_hidden: Array, b: Array) -> tuple[Array, Array]:
        weight = blocks.gather(b)
        columns = blocks.first_column(b) + jnp.arange(blocks.size, dtype=t.dtype)

        def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            d_hidden, d_weight = carry
            h_i = flat.chunk(h, i)
            probs = jnp.exp(_logits(h_i, weight) - flat.chunk(lse, i)[:, None])
            onehot = columns[None] == flat.chunk(t, i)[:, None]
            d_logits = (flat.chunk(g, i)[:, None] * (onehot - probs)).astype(weight.dtype)
            d_h = flat.chunk(d_hidden, i) + _dot(d_logits, weight, (1, 0))
            return flat.put(d_hidden, d_h, i), d_weight + _dot(d_logits, h_i, (0, 0))

        d_weight = jnp.zeros(weight.shape, jnp.float32)
        d_hidden, d_weight = jax.lax.fori_loop(0, flat.chunks, body, (d_hidden, d_weight))
        return d_hidden, blocks.sum_gradient(d_weight)

    d_hidden, d_head = jax.lax.scan(block, jnp.zeros(h.shape, jnp.float32), jnp.arange(blocks.count))
    d_hidden = _over(jax.lax.psum, d_hidden, axes.vocab).astype(hidden.dtype)
    return flat.scatter(d_hidden), d_head.reshape(head.shape)


class _Axes(NamedTuple):
    """The mesh axes that split the vocabulary and the rows; None without a mesh."""

    vocab: str | None
    rows: tuple[str, ...] | None


def _axes(mesh: Mesh | None) -> _Axes:
    return _Axes("tensor", row_axes()) if mesh else _Axes(None, None)


class _Blocks:
    """The head [V / tensor, D / fsdp] of this device as blocks of columns of the logits, whole in width when in use."""

    def __init__(self, head: Array, dtype: Any, axes: _Axes):
        self._head, self._dtype, self._axes = head, dtype, axes
        self.count = block_count(head.shape[0])
        self.size = head.shape[0] // self.count

    def gather(self, b: Array) -> Array:
        """Block b [size, D] in the compute dtype."""
        own = jax.lax.dynamic_slice_in_dim(self._head, b * self.size, self.size).astype(self._dtype)
        return jax.lax.all_gather(own, "fsdp", axis=1, tiled=True) if self._axes.rows else own

    def first_column(self, b: Array) -> Array:
        """Token id of the block's first row."""
        start = jax.lax.axis_index(self._axes.vocab) * self._head.shape[0] if self._axes.vocab else 0
        return start + b * self.size

    def sum_gradient(self, d_weight: Array) -> Array:
        """This device's columns [size, D / fsdp] of a block's gradient [size, D], summed over all rows."""
        if not self._axes.rows:
            return d_weight
        d_weight = jax.lax.psum_scatter(d_weight, "fsdp", scatter_dimension=1, tiled=True)
        return jax.lax.psum(d_weight, tuple(axis for axis in self._axes.rows if axis != "fsdp"))


def block_count(vocab: int) -> int:
    """Into how many equal blocks a vocabulary (or a device's part of it) is cut; 1 where no small number divides it."""
    least = -(-vocab // _BLOCK)
    return next((n for n in range(least, 4 * least) if vocab % n == 0), 1)


class _Compact:
    """Moves the tokens that count to the front of a flat axis that is a multiple of the chunk."""

    def __init__(self, mask: Array, chunk: int):
        self._shape = mask.shape
        n = mask.size
        self._chunk = max(1, min(chunk, n))
        self.size = -(-n // self._chunk) * self._chunk
        # Where each token goes: those that count first, order kept. Counting beats sorting the mask, as a
        # sort is a long program on TPU.
        counts, index = mask.reshape(-1), jnp.arange(n, dtype=jnp.int32)
        ahead = _cumulative_sum(counts)
        count = ahead[-1]
        self._place = jnp.where(counts, ahead - 1, count + index - ahead)
        self._order = jnp.zeros(n, jnp.int32).at[self._place].set(index, unique_indices=True)
        self.live = jnp.arange(self.size) < count
        self.chunks = (count + self._chunk - 1) // self._chunk

    def gather(self, x: Array) -> Array:
        flat = x.reshape(-1, *x.shape[2:])[self._order]
        return jnp.pad(flat, ((0, self.size - flat.shape[0]), *((0, 0),) * (flat.ndim - 1)))

    def scatter(self, x: Array) -> Array:
        """Back to [b, T, ...], zero where nothing counts."""
        live = self.live.reshape(-1, *(1,) * (x.ndim - 1))
        flat = jnp.where(live, x, 0)[self._place]
        return flat.reshape(*self._shape, *x.shape[1:])

    def chunk(self, x: Array, i: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, i * self._chunk, self._chunk)

    def put(self, x: Array, part: Array, i: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, part, i * self._chunk, axis=0)


def _cumulative_sum(x: Bool[Array, " n"]) -> Int[Array, " n"]:
    """jnp.cumsum, in lines of 128 and then over lines, adding all that is before: XLA's is a long program on TPU."""
    width = 128
    lines = jnp.pad(x, (0, -x.size % width)).reshape(-1, width)
    place, line = jnp.arange(width), jnp.arange(len(lines))
    along = jnp.where(place <= place[:, None], lines[:, None], False).sum(axis=-1, dtype=jnp.int32)
    above = jnp.where(line < line[:, None], along[:, -1], 0).sum(axis=-1, dtype=jnp.int32)
    return (along + above[:, None]).reshape(-1)[: x.size]


def _over(reduce: Callable[..., Array], x: Array, axis: Any) -> Array:
    return reduce(x, axis) if axis else x


def _logits(hidden: Array, head: Array) -> Array:
    return _dot(hidden, head, (1, 1))


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    # Float32 means float32: TPUs and GPUs would multiply in less by default.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def response_logps(
    logps: Float[Array, "B T"], slots: Int[Array, "B T"], num_slots: int
) -> tuple[Float[Array, " S"], Float[Array, " S"]]:
    """Sums token log-probs into their response's slot: (sum [S], token count [S]); slot -1 counts for none."""
    flat, index = logps.reshape(-1), slots.reshape(-1)
    index = jnp.where(index < 0, num_slots, index)  # out of range: segment_sum drops it
    total = jax.ops.segment_sum(flat, index, num_segments=num_slots)
    count = jax.ops.segment_sum(jnp.ones_like(flat), index, num_segments=num_slots)
    return total, count
