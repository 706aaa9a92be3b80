"""Log-probs of target tokens without ever holding [tokens, vocab]: chunks of tokens, float32 log-sum-exp.

Only tokens that count go through the head: they are gathered to the front, and the loop runs over as many chunks as
they fill. The trip count depends on the data, so the gradient is written by hand (reverse mode cannot cross a dynamic
loop); it recomputes each chunk's logits and accumulates the head's gradient in float32. On a mesh each device takes its
own rows and its own part of the vocabulary; what crosses devices is written out, in the gradient too.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from cogpo_jax.sharding import row_axes, shard, spec

_VOCAB_AXIS = "tensor"


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

    The products are computed in hidden's dtype, accumulated in float32; at most [chunk, V] logits exist at a time on a
    device. head keeps its own (master) dtype, and its gradient is accumulated in float32.
    """
    return _logps(hidden, head, targets, mask, chunk, mesh if mesh is not None and mesh.size > 1 else None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _logps(hidden: Array, head: Array, targets: Array, mask: Array, chunk: int, mesh: Mesh | None) -> Array:
    return _forward(hidden, head, targets, mask, chunk, mesh)[0]


def _forward(
    hidden: Array, head: Array, targets: Array, mask: Array, chunk: int, mesh: Mesh | None
) -> tuple[Array, Any]:
    rows, table = spec("rows"), PartitionSpec(_VOCAB_AXIS)
    local = functools.partial(_local_forward, chunk=chunk, axes=_axes(mesh))
    logps, lses = _on_mesh(local, mesh, (rows, table, rows, rows), (rows, rows))(
        hidden, head.astype(hidden.dtype), targets, mask
    )
    return logps, (hidden, head, targets, mask, lses)


def _backward(chunk: int, mesh: Mesh | None, residuals: Any, grads: Array) -> tuple[Array, Array, None, None]:
    hidden, head, targets, mask, lses = residuals
    rows, table = spec("rows"), PartitionSpec(_VOCAB_AXIS)
    local = functools.partial(_local_backward, chunk=chunk, axes=_axes(mesh))
    in_specs, out_specs = (rows, table, rows, rows, rows, rows), (rows, spec("vocab", "embed"))
    d_hidden, d_head = _on_mesh(local, mesh, in_specs, out_specs)(
        hidden, head.astype(hidden.dtype), targets, mask, lses, grads
    )
    return d_hidden, d_head.astype(head.dtype), None, None


_logps.defvjp(_forward, _backward)


def _on_mesh(f: Callable[..., Any], mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    return shard(f, mesh, in_specs, out_specs) if mesh else f


def _local_forward(
    hidden: Array, head: Array, targets: Array, mask: Array, *, chunk: int, axes: "_Axes"
) -> tuple[Array, Array]:
    """(logps, log-sum-exps), both [b, T], of this device's rows; head is its [V / tensor, D]."""
    flat = _Compact(mask, chunk, axes)
    h, t = flat.gather(hidden), flat.gather(targets) - _first_column(head, axes.vocab)

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = _logits(flat.chunk(h, i), head)
        target = flat.chunk(t, i)
        inside = (target >= 0) & (target < head.shape[0])
        column = jnp.clip(target, 0, head.shape[0] - 1)
        peak = _over(jax.lax.pmax, logits.max(axis=-1), axes.vocab)
        total = _over(jax.lax.psum, jnp.exp(logits - peak[:, None]).sum(axis=-1), axes.vocab)
        chosen = jnp.where(inside, jnp.take_along_axis(logits, column[:, None], axis=1)[:, 0], 0.0)
        lse = peak + jnp.log(total)
        logp = _over(jax.lax.psum, chosen, axes.vocab) - lse
        return flat.put(carry[0], logp, i), flat.put(carry[1], lse, i)

    zeros = jnp.zeros(flat.size, jnp.float32)
    logps, lses = jax.lax.fori_loop(0, flat.chunks, body, (zeros, zeros))
    return flat.scatter(logps), flat.scatter(lses)


def _local_backward(
    hidden: Array, head: Array, targets: Array, mask: Array, lses: Array, grads: Array, *, chunk: int, axes: "_Axes"
) -> tuple[Array, Array]:
    """(d_hidden [b, T, D], d_head [V / tensor, D / fsdp] float32 summed over all rows)."""
    flat = _Compact(mask, chunk, axes)
    h, t = flat.gather(hidden), flat.gather(targets) - _first_column(head, axes.vocab)
    # Infinite where nothing counts: the probabilities there are 0, not an overflow that 0 would not cancel.
    lse, g = jnp.where(flat.live, flat.gather(lses), jnp.inf), jnp.where(flat.live, flat.gather(grads), 0.0)
    columns = jnp.arange(head.shape[0], dtype=t.dtype)

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        h_i = flat.chunk(h, i)
        probs = jnp.exp(_logits(h_i, head) - flat.chunk(lse, i)[:, None])
        onehot = columns[None] == flat.chunk(t, i)[:, None]
        d_logits = (flat.chunk(g, i)[:, None] * (onehot - probs)).astype(head.dtype)
        d_h = _dot(d_logits, head, (1, 0))
        return flat.put(carry[0], d_h.astype(hidden.dtype), i), carry[1] + _dot(d_logits, h_i, (0, 0))

    start = jnp.zeros_like(h), jnp.zeros(head.shape, jnp.float32)
    d_hidden, d_head = jax.lax.fori_loop(0, flat.chunks, body, start)
    if axes.vocab:
        d_hidden = jax.lax.psum(d_hidden, axes.vocab)
        d_head = jax.lax.psum_scatter(d_head, "fsdp", scatter_dimension=1, tiled=True)
        d_head = jax.lax.psum(d_head, tuple(axis for axis in axes.rows if axis != "fsdp"))
    return flat.scatter(d_hidden), d_head


class _Axes(NamedTuple):
    """The mesh axes that split the vocabulary and the rows; None without a mesh."""

    vocab: str | None
    rows: tuple[str, ...] | None


def _axes(mesh: Mesh | None) -> _Axes:
    return _Axes(_VOCAB_AXIS, row_axes()) if mesh else _Axes(None, None)


class _Compact:
    """Moves the tokens that count to the front of a flat axis that is a multiple of the chunk."""

    def __init__(self, mask: Array, chunk: int, axes: "_Axes"):
        self._shape = mask.shape
        n = mask.size
        self._chunk = max(1, min(chunk, n))
        self.size = -(-n // self._chunk) * self._chunk
        # A stable sort of the mask is the permutation that brings the counted tokens to the front, order kept.
        self._order = jnp.argsort(~mask.reshape(-1), stable=True)
        count = mask.sum(dtype=jnp.int32)
        self.live = jnp.arange(self.size) < count
        # With a split vocabulary the loop's body speaks to other devices: all must make the same number of rounds.
        count = _over(jax.lax.pmax, count, axes.rows)
        self.chunks = (count + self._chunk - 1) // self._chunk

    def gather(self, x: Array) -> Array:
        flat = x.reshape(-1, *x.shape[2:])[self._order]
        return jnp.pad(flat, ((0, self.size - flat.shape[0]), *((0, 0),) * (flat.ndim - 1)))

    def scatter(self, x: Array) -> Array:
        """Back to [b, T, ...], zero where nothing counts."""
        n = self._order.shape[0]
        live = self.live.reshape(-1, *(1,) * (x.ndim - 1))
        flat = jnp.zeros((n, *x.shape[1:]), x.dtype).at[self._order].set(jnp.where(live, x, 0)[:n])
        return flat.reshape(*self._shape, *x.shape[1:])

    def chunk(self, x: Array, i: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, i * self._chunk, self._chunk)

    def put(self, x: Array, part: Array, i: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, part, i * self._chunk, axis=0)


def _first_column(head: Array, vocab_axis: str | None) -> Array | int:
    return jax.lax.axis_index(vocab_axis) * head.shape[0] if vocab_axis else 0


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
