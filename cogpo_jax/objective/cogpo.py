"""The losses and their metrics: CogPO (DPO with a beta per pair, set by the size of the pair's gap) and SFT.

CogPO: Cai et al., "Enhancing Reasoning Abilities of Small LLMs with Cognitive Alignment", EMNLP 2025, arXiv 2504.09802.
DPO: Rafailov et al., NeurIPS 2023, arXiv 2305.18290. The options and their sources stand at `PreferenceOptions`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cogpo_jax.records.schema import GAPS

# {name: {gap: (weighted sum, summed weight)}}: sums survive accumulation over micro-batches and devices.
Metrics = dict[str, dict[str, tuple[Array, Array]]]


@dataclasses.dataclass(frozen=True)
class PreferenceOptions:
    """Terms beside the plain loss; each is off at 0 / False.

    label_smoothing: probability that a label is flipped (cDPO: Mitchell 2023, "A note on DPO with noisy preferences").
    nll_weight: weight of the chosen response's mean NLL per token (RPO: Pang et al. 2024, arXiv 2404.19733).
    length_normalized: log-ratios divided by their token counts (SimPO's and DPO-norm's average: arXiv 2405.14734).
    length_penalty: alpha of R-DPO (Park et al. 2024, arXiv 2403.19159): alpha * (tokens chosen - tokens rejected) is
        added to the logit, so that a chosen response that is only longer has less left to teach.
    displacement_penalty: lambda of DPOP's max(0, -chosen log-ratio) (Pal et al. 2024, "Smaug", arXiv 2402.13228).
    """

    label_smoothing: float = 0.0
    nll_weight: float = 0.0
    length_normalized: bool = False
    length_penalty: float = 0.0
    displacement_penalty: float = 0.0


def cogpo_loss(
    policy_logps: Float[Array, " R"],
    reference_logps: Float[Array, " R"],
    chosen: Int[Array, " P"],
    rejected: Int[Array, " P"],
    beta: Float[Array, " P"] | float,
    weight: Float[Array, " P"] | None = None,
    *,
    gap: Int[Array, " P"] | None = None,
    tokens: Float[Array, " R"] | None = None,
    normalizer: Float[Array, ""] | float | None = None,
    options: PreferenceOptions = PreferenceOptions(),
) -> tuple[Float[Array, ""], Metrics]:
    """sum_i w_i * -log sigmoid(beta_i * margin_i) / sum_i w_i, margin_i = logratio(chosen_i) - logratio(rejected_i).

    policy_logps, reference_logps: summed log-probs (nats) of the R unique responses under policy and reference.
    chosen, rejected: indices into the responses; beta: > 0, per pair or one for all; weight: 0 for padding pairs.
    gap: index into `GAPS` per pair, for metrics; tokens: response lengths, needed by the options with length.
    normalizer: divides the weighted sum instead of sum(weight), so that micro-batches add up to one batch.
    Returns (loss, metrics), metrics as (sum, weight) per gap. A pair of weight 0 adds nothing, even where it is NaN.
    `margin` and the log-ratios are in nats per response without beta, the rewards with it. `kl` estimates
    KL(policy || reference), nats per response, as the mean of logratio^2 / 2 over both sides (k2 of Schulman 2020,
    "Approximating KL divergence"); the responses are the data's, not the policy's: it holds near the reference.
    """
    weight = jnp.ones(chosen.shape, jnp.float32) if weight is None else weight.astype(jnp.float32)
    beta = jnp.broadcast_to(jnp.asarray(beta, jnp.float32), chosen.shape)
    gap = jnp.full(chosen.shape, 3, jnp.int32) if gap is None else gap
    logratio = (policy_logps - reference_logps).astype(jnp.float32)
    counts = jnp.ones_like(logratio) if tokens is None else jnp.maximum(tokens, 1.0)

    def of(values: Array, side: Array) -> Array:
        # Masked before the arithmetic: a NaN that is masked only after it still has a NaN gradient.
        return jnp.where(weight > 0, values[side], 0.0)

    scored = logratio / counts if options.length_normalized else logratio
    margin = of(scored, chosen) - of(scored, rejected)
    longer = of(counts, chosen) - of(counts, rejected)
    shifted = margin - options.displacement_penalty * jax.nn.relu(-of(scored, chosen))
    logits = beta * shifted + options.length_penalty * longer
    eps = options.label_smoothing
    loss = -(1 - eps) * jax.nn.log_sigmoid(logits) - eps * jax.nn.log_sigmoid(-logits)
    loss = loss - options.nll_weight * of(policy_logps / counts, chosen)

    total = jnp.maximum(weight.sum(), 1e-9) if normalizer is None else normalizer
    value = (weight * loss).sum() / total
    chosen_logratio, rejected_logratio = of(logratio, chosen), of(logratio, rejected)
    raw_margin = chosen_logratio - rejected_logratio
    metrics = by_gap(
        {
            "loss": loss,
            "margin": raw_margin,
            "accuracy": jnp.where(raw_margin == 0, 0.5, (raw_margin > 0).astype(jnp.float32)),
            "reward_margin": beta * raw_margin,
            "chosen_reward": beta * chosen_logratio,
            "rejected_reward": beta * rejected_logratio,
            "chosen_logratio": chosen_logratio,
            "rejected_logratio": rejected_logratio,
            "kl": (jnp.square(chosen_logratio) + jnp.square(rejected_logratio)) / 4,
            **correlation_terms("reward_length", beta * raw_margin, longer),
        },
        gap,
        weight,
    )
    return value, metrics


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


def by_gap(values: Mapping[str, Float[Array, " P"]], gap: Int[Array, " P"], weight: Float[Array, " P"]) -> Metrics:
    """{name: {gap: (weighted sum, summed weight)}} for each gap of `GAPS` and `all`; weight 0 hides even a NaN."""
    members = {name: jnp.where(gap == i, weight, 0.0) for i, name in enumerate(GAPS)} | {"all": weight}
    return {
        name: {g: (jnp.where(w > 0, w * value, 0.0).sum(), w.sum()) for g, w in members.items()}
        for name, value in values.items()
    }


def correlation_terms(name: str, x: Array, y: Array) -> dict[str, Array]:
    """The moments from which `finish` computes Pearson's correlation of x and y as metric `{name}_corr`."""
    return {f"{name}_corr/{k}": v for k, v in (("x", x), ("y", y), ("xx", x * x), ("yy", y * y), ("xy", x * y))}


def finish(metrics: Mapping[str, Mapping[str, tuple[Any, Any]]]) -> dict[str, dict[str, float]]:
    """{name: {gap: mean}} as Python floats; gaps without weight are left out, correlations computed from moments."""
    means = {
        name: {g: float(total) / float(weight) for g, (total, weight) in gaps.items() if float(weight) > 0}
        for name, gaps in metrics.items()
    }
    out = {name: gaps for name, gaps in means.items() if "/" not in name}
    for name in {n.split("/")[0] for n in means if "/" in n}:
        moments = {k: means[f"{name}/{k}"] for k in ("x", "y", "xx", "yy", "xy")}
        out[name] = {}
        for g in moments["x"]:
            x, y, xx, yy, xy = (moments[k][g] for k in ("x", "y", "xx", "yy", "xy"))
            spread = max(xx - x * x, 0.0) * max(yy - y * y, 0.0)
            if spread > 0:  # a constant has no correlation
                out[name][g] = (xy - x * y) / spread**0.5
    return out
