"""Metrics as (sum, weight), so that they survive accumulation over micro-batches and devices."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cogpo_jax.records.schema import GAPS

Metrics = dict[str, dict[str, tuple[Array, Array]]]


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


def add(a: Metrics, b: Metrics) -> Metrics:
    """Sums two metrics trees of the same structure."""
    return jax.tree.map(jnp.add, a, b)


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
