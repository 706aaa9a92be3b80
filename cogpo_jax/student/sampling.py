"""From logits to the next token: greedy, or drawn with temperature, top-k and top-p; pure functions."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cogpo_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; hashable. Applied in transformers' order: temperature, top_k, top_p."""

    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0  # smallest set of likeliest tokens with at least this probability

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature: {self.temperature}: must be at least 0 (0: greedy)")
        if self.top_k < 0:
            raise UserError(f"top_k: {self.top_k}: must be at least 0 (0: all tokens)")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: {self.top_p}: must be above 0 and at most 1")


GREEDY = Sampling()


def check_seed(seed: int) -> None:
    """Raises UserError for a seed beyond 32 bits: jax would draw by its lower half."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed: {seed}: must be at least 0 and at most {2**32 - 1}")


def row_keys(seed: int, rows: Int[Array, " B"]) -> Array:
    """One random key per row, from the seed and the row's own number: whatever batch it is in, it draws the same."""
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(rows)


def next_tokens(
    logits: Float[Array, "B V"], keys: Array, steps: Int[Array, " B"], sampling: Sampling
) -> Int[Array, " B"]:
    """The token each row continues with; `keys` [B] from `row_keys`, `steps` how many tokens the row has before it."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = restrict(logits / sampling.temperature, sampling)
    draw = lambda key, step, row: jax.random.categorical(jax.random.fold_in(key, step), row)  # noqa: E731
    return jax.vmap(draw)(keys, steps, logits).astype(jnp.int32)


def restrict(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """Logits with -inf where top_k or top_p leave a token out; equal logits stay or go together."""
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = _keep_top(logits, jnp.ones_like(logits), sampling.top_k)
    if sampling.top_p < 1:
        logits = _keep_top(logits, jax.nn.softmax(logits, axis=-1), sampling.top_p)
    return logits


def _keep_top(logits: Float[Array, "B V"], weights: Float[Array, "B V"], needed: float) -> Float[Array, "B V"]:
    """Keeps the largest logits whose weights add up to `needed`.

    Bisects the threshold over the ordered bit patterns of float32: 32 sums, exact, where sorting 152k logits a row
    would take longer than the model.
    """
    order = _ordered_bits(logits)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # enough weight at `low`, too little at `high`
        middle = low // 2 + high // 2 + (low % 2 + high % 2) // 2
        enough = jnp.sum(jnp.where(order >= middle[:, None], weights, 0), axis=-1) >= needed
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    rows = logits.shape[0]
    low, _ = jax.lax.fori_loop(
        0, 32, halve, (jnp.zeros(rows, jnp.uint32), jnp.full(rows, jnp.iinfo(jnp.uint32).max, jnp.uint32))
    )
    return jnp.where(order >= low[:, None], logits, -jnp.inf)


def _ordered_bits(x: Float[Array, "B V"]) -> Int[Array, "B V"]:
    """Unsigned integers in the order of the floats."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
