"""AdamW with warm-up, decay and clipping, from the config's `optimizer` section."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from cogpo_jax.sharding import array_path


def learning_rate_schedule(settings: Any, total_steps: int) -> optax.Schedule:
    """Learning rate of 0-based step k: linear warm-up that ends at the peak, then cosine, linear or constant."""
    total = settings.schedule_steps or total_steps
    warmup = round(settings.warmup_ratio * total)
    peak, low = settings.learning_rate, settings.learning_rate * settings.min_learning_rate_ratio
    rest = max(1, total - warmup)
    decay = {
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=settings.min_learning_rate_ratio),
        "linear": optax.linear_schedule(peak, low, rest),
        "constant": optax.constant_schedule(peak),
    }[settings.schedule]
    # The first step trains too: a warm-up from zero would waste it.
    ramp = optax.linear_schedule(peak / (warmup + 1), peak, max(1, warmup))
    return optax.join_schedules([ramp, decay], [warmup])


def decays(params: Any) -> Any:
    """Tree of bools: weight decay acts on matrices, not on norms and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not (array_path(path).endswith("bias") or "norm" in array_path(path)), params
    )


def make_optimizer(settings: Any, total_steps: int) -> optax.GradientTransformation:
    """Clipping by global norm (where asked for), then AdamW (Loshchilov & Hutter, arXiv 1711.05101)."""
    adamw = optax.adamw(
        learning_rate_schedule(settings, total_steps),
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        mask=decays,
        mu_dtype=jnp.float32,
    )
    clip = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    return optax.chain(*clip, adamw)


def stochastic_round(x: Float[Array, "..."], key: PRNGKeyArray) -> Float[Array, "..."]:
    """Float32 to bfloat16, up or down with probability by distance, so that small updates survive on average.

    Adds 16 random bits below bfloat16's mantissa and truncates (as in Zamirai et al., arXiv 2010.06192).
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
