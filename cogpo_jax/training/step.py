"""The three jitted programs: micro-step (gradients add up), apply (one AdamW update), score (log-probs only).

A step is any number of micro-steps and one apply. The normaliser (summed pair weight, or response tokens, of the whole
step) goes into every micro-step, so that their gradients just add: accumulated = one batch.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from cogpo_jax.data.batches import Batch, PreferenceBatch, Rows
from cogpo_jax.objective.cogpo import Metrics, PreferenceOptions, cogpo_loss, sft_loss
from cogpo_jax.objective.logps import response_logps, token_logps
from cogpo_jax.sharding import (
    array_path,
    param_shardings,
    per_replica,
    replicated,
    stacked_shardings,
    sum_over_replicas,
)
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import ForwardOptions, graphdef_of

Params = Any  # nested dict of arrays, see cogpo_jax.student.model

# All compiler options that we set for TPUs. They travel with the jitted programs, so that a run and compile_check
# compile the same thing. More can be tried without code: libtpu reads `LIBTPU_INIT_ARGS`.
TPU_OPTIONS = {
    # Without it XLA turns a product with an fsdp-split weight into a loop of as many small products as there are chips,
    # each adding to the whole result in HBM. Gathering the weight first lets the gather run beside the layer before,
    # and the 1.5B micro-step on v5e:4x4 has 6 loops, not 24.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
}


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """All that the programs are compiled for, beside array shapes; hashable."""

    student: StudentConfig
    forward: ForwardOptions
    objective: str  # sft | cogpo | dpo
    loss: PreferenceOptions
    logits_chunk: int
    max_slots: int  # responses of a micro-batch


def score(
    params: Params, rows: Rows, settings: StepSettings
) -> tuple[Float[Array, " max_slots"], Float[Array, " max_slots"]]:
    """Summed log-prob (nats) and token count of each response slot of a micro-batch's rows, float32."""
    student = nnx.merge(graphdef_of(settings.student), params)
    hidden = student(rows.tokens, rows.segment_ids, rows.positions, settings.forward)
    logps = token_logps(
        hidden,
        student.head_weight(),
        rows.targets,
        rows.slots >= 0,
        chunk=settings.logits_chunk,
        mesh=settings.forward.mesh,
    )
    return jax.tree.map(sum_over_replicas, response_logps(logps, rows.slots, settings.max_slots))


def loss(
    params: Params, batch: Batch, normalizer: Float[Array, ""], settings: StepSettings
) -> tuple[Float[Array, ""], Metrics]:
    """The micro-batch's share of the step's loss (nats), and its metrics. `batch.beta` reaches the loss as it is."""
    logps, tokens = score(params, batch.rows, settings)
    if not isinstance(batch, PreferenceBatch):
        return sft_loss(logps, tokens, normalizer=normalizer)
    return cogpo_loss(
        logps,
        batch.reference_logps,
        batch.chosen,
        batch.rejected,
        batch.beta,
        batch.weight,
        gap=batch.gap,
        tokens=tokens,
        normalizer=normalizer,
        options=settings.loss,
    )


def micro_step(
    params: Params,
    gradients: Params,
    metrics: Metrics,
    batch: Batch,
    normalizer: Float[Array, ""],
    *,
    settings: StepSettings,
) -> tuple[Params, Metrics]:
    """Adds a micro-batch's float32 gradients and metrics to what the step has gathered so far.

    gradients carry a leading axis [replica]: each replica's own, never sent between slices here (`apply_step` does).
    """

    def gradient(params: Params, rows: Rows, pairs: Batch) -> Any:
        whole = dataclasses.replace(pairs, rows=rows)
        return jax.value_and_grad(loss, has_aux=True)(params, whole, normalizer, settings)

    assert settings.forward.mesh is not None
    no_rows: Any = None
    pairs = dataclasses.replace(batch, rows=no_rows)  # every replica sees all pairs, and its own rows
    (value, new), grads = per_replica(gradient, settings.forward.mesh)(params, batch.rows, pairs)
    new = {**new, "objective": {"all": (value * normalizer, jnp.zeros_like(value))}}
    gradients = jax.tree.map(lambda a, g: a + g.astype(a.dtype), gradients, grads)
    # Losses and metrics are of all rows, so every replica has the same.
    return gradients, jax.tree.map(lambda total, x: total + x[0], metrics, new)


def apply_step(
    params: Params, opt_state: Any, gradients: Params, step: jax.Array, *, optimizer: optax.GradientTransformation
) -> tuple[Params, Any, jax.Array]:
    """One optimizer update: (params, opt_state, global gradient norm). Gradients are summed over their [replica] axis.

    bfloat16 parameters are updated in float32 and rounded stochastically: to nearest, an update of 5e-7 would vanish.
    """
    gradients = jax.tree.map(lambda g: g.sum(axis=0), gradients)
    norm = optax.tree.norm(gradients)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    updates, opt_state = optimizer.update(gradients, opt_state, wide)
    wide = optax.apply_updates(wide, updates)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step), len(leaves))
    rounded = [
        stochastic_round(w, key) if p.dtype == jnp.bfloat16 else w.astype(p.dtype)
        for p, w, key in zip(leaves, jax.tree.leaves(wide), keys, strict=True)
    ]
    return jax.tree.unflatten(structure, rounded), opt_state, norm


def zero_gradients(params: Params, replicas: int) -> Params:
    """Float32 zeros [replicas, *shape] for each parameter."""
    return jax.tree.map(lambda p: jnp.zeros((replicas, *p.shape), jnp.float32), params)


def zero_metrics(settings: StepSettings) -> Metrics:
    """Zeros of the structure that `micro_step` adds to, without tracing the model."""
    one, index = jax.ShapeDtypeStruct((1,), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    if settings.objective == "sft":
        _, metrics = jax.eval_shape(sft_loss, one, one)
    else:
        _, metrics = jax.eval_shape(lambda x, i: cogpo_loss(x, x, i, i, x, x, gap=i, tokens=x), one, index)
    metrics = {**metrics, "objective": {"all": (one, one)}}
    return jax.tree.map(lambda _: jnp.zeros(()), metrics)


@dataclasses.dataclass(frozen=True)
class Programs:
    """The jitted programs of a run on a mesh. `accumulate` and `apply` donate what they replace; nothing that `apply`
    returns is shaped like the stacked gradients."""

    accumulate: Any  # (params, gradients, metrics, batch, normalizer) -> (gradients, metrics)
    apply: Any  # (params, opt_state, gradients, step) -> (params, opt_state, norm)
    score: Any  # (params, rows) -> (logps [max_slots], tokens [max_slots])
    start: Any  # params -> (zero gradients, zero metrics)


def make_score(settings: StepSettings) -> Any:
    """The jitted `score` for these settings: (params, rows) -> (logps, tokens). A call compiles once per row shape."""
    assert settings.forward.mesh is not None
    return _jit(settings.forward.mesh)(
        functools.partial(score, settings=settings), out_shardings=replicated(settings.forward.mesh)
    )


def _jit(mesh: Mesh) -> Any:
    on_tpu = mesh.devices.flat[0].platform == "tpu"  # other platforms don't know the options
    return functools.partial(jax.jit, compiler_options=TPU_OPTIONS if on_tpu else None)


def make_programs(
    settings: StepSettings, optimizer: optax.GradientTransformation, params: Params, opt_state: Any
) -> Programs:
    """Compiles lazily for the mesh of `settings.forward`; params and opt_state may be abstract."""
    mesh = settings.forward.mesh
    assert mesh is not None
    p, o, r = param_shardings(mesh, params), param_shardings(mesh, opt_state), replicated(mesh)
    g, replicas = stacked_shardings(mesh, p), mesh.shape["replica"]
    jit = _jit(mesh)
    return Programs(
        accumulate=jit(functools.partial(micro_step, settings=settings), donate_argnums=(1, 2), out_shardings=(g, r)),
        apply=jit(functools.partial(apply_step, optimizer=optimizer), donate_argnums=(0, 1), out_shardings=(p, o, r)),
        score=make_score(settings),
        start=jit(lambda params: (zero_gradients(params, replicas), zero_metrics(settings)), out_shardings=(g, r)),
    )


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
