"""Log-probs of target tokens without ever holding [tokens, vocab]: chunks of tokens, float32 log-sum-exp.

Only tokens that count go through the head: they are gathered to the front, and the loop runs over as many chunks as
they fill. The trip count depends on the data, so the gradient is written by hand (reverse mode cannot cross a dynamic
loop); it recomputes each chunk's logits and accumulates the head's gradient in float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def token_logps(
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    targets: Int[Array, " N"],
    mask: Bool[Array, " N"] | None = None,
    *,
    chunk: int = 512,
) -> Float[Array, " N"]:
    """log softmax(hidden @ head.T)[targets] in float32, 0 where `mask` is False.

    At most [chunk, V] logits exist at a time. Differentiable in `hidden` and `head`.
    """
    mask = jnp.ones(targets.shape, bool) if mask is None else mask
    n = targets.shape[0]
    chunk = max(1, min(chunk, n))
    padded = -(-n // chunk) * chunk
    # A stable sort of the mask is the permutation that brings the counted tokens to the front, order kept.
    order = jnp.argsort(~mask, stable=True)
    order = jnp.pad(order, (0, padded - n), constant_values=0)
    count = mask.sum(dtype=jnp.int32)
    compact = _compact_logps(hidden[order], head, targets[order], count, chunk)[:n]
    return jnp.zeros(n, jnp.float32).at[order[:n]].set(compact)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _compact_logps(hidden: Array, head: Array, targets: Array, count: Array, chunk: int) -> Array:
    return _forward(hidden, head, targets, count, chunk)[0]


def _logits(hidden: Array, head: Array) -> Array:
    return jax.lax.dot_general(hidden, head, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _chunk_of(x: Array, i: Array, chunk: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk)


def _live(i: Array, chunk: int, count: Array) -> Array:
    return i * chunk + jnp.arange(chunk) < count


def _forward(hidden: Array, head: Array, targets: Array, count: Array, chunk: int) -> tuple[Array, Any]:
    n = targets.shape[0]

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        logps, lses = carry
        logits = _logits(_chunk_of(hidden, i, chunk), head)
        lse = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, _chunk_of(targets, i, chunk)[:, None], axis=1)[:, 0]
        logp = jnp.where(_live(i, chunk, count), chosen - lse, 0.0)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=i * chunk, axis=0)
        return put(logps, logp), put(lses, lse)

    zeros = jnp.zeros(n, jnp.float32)
    logps, lses = jax.lax.fori_loop(0, _chunks(count, chunk), body, (zeros, zeros))
    return logps, (hidden, head, targets, count, lses)


def _chunks(count: Array, chunk: int) -> Array:
    return (count + chunk - 1) // chunk


def _backward(chunk: int, residuals: Any, grads: Array) -> tuple[Array, Array, None, None]:
    hidden, head, targets, count, lses = residuals
    columns = jnp.arange(head.shape[0], dtype=targets.dtype)

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        d_hidden, d_head = carry
        h = _chunk_of(hidden, i, chunk)
        g = jnp.where(_live(i, chunk, count), _chunk_of(grads, i, chunk), 0.0)
        probs = jnp.exp(_logits(h, head) - _chunk_of(lses, i, chunk)[:, None])
        onehot = columns[None] == _chunk_of(targets, i, chunk)[:, None]
        d_logits = (g[:, None] * (onehot - probs)).astype(head.dtype)
        d_h = jax.lax.dot_general(d_logits, head, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        d_w = jax.lax.dot_general(d_logits, h, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        d_hidden = jax.lax.dynamic_update_slice_in_dim(d_hidden, d_h.astype(hidden.dtype), i * chunk, axis=0)
        return d_hidden, d_head + d_w

    start = jnp.zeros_like(hidden), jnp.zeros(head.shape, jnp.float32)
    d_hidden, d_head = jax.lax.fori_loop(0, _chunks(count, chunk), body, start)
    return d_hidden, d_head.astype(head.dtype), None, None


_compact_logps.defvjp(_forward, _backward)


def response_logps(
    logps: Float[Array, "..."], slots: Int[Array, "..."], num_slots: int
) -> tuple[Float[Array, " S"], Float[Array, " S"]]:
    """Sums token log-probs into their response's slot: (sum [S], token count [S]); a slot of -1 does not count."""
    flat, index = logps.reshape(-1), slots.reshape(-1)
    index = jnp.where(index < 0, num_slots, index)  # out of range: segment_sum drops it
    total = jax.ops.segment_sum(flat, index, num_segments=num_slots)
    count = jax.ops.segment_sum(jnp.ones_like(flat), index, num_segments=num_slots)
    return total, count
