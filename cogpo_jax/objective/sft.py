"""Supervised fine-tuning: mean negative log-likelihood over response tokens."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from cogpo_jax.objective.metrics import Metrics


def sft_loss(
    logps: Float[Array, "..."],
    mask: Float[Array, "..."],
    *,
    normalizer: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """loss = -sum(mask * logps) / sum(mask), in nats per response token.

    logps: token (or response) log-probs; mask: 1 per token that counts (or the token count of each response, with
    `logps` already summed). normalizer: divides instead of sum(mask), so that micro-batches add up to one batch.
    """
    mask = mask.astype(jnp.float32)
    nll = -jnp.where(mask > 0, logps, 0.0).sum()
    tokens = mask.sum()
    loss = nll / (jnp.maximum(tokens, 1e-9) if normalizer is None else normalizer)
    return loss, {"nll": {"all": (nll, tokens)}}
