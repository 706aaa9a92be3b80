"""The three jitted programs: micro-step (gradients add up), apply (one update), score (log-probs only).

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

from cogpo_jax.data.packing import ROW_FIELDS
from cogpo_jax.objective.cogpo import PreferenceOptions, cogpo_loss
from cogpo_jax.objective.logps import response_logps, token_logps
from cogpo_jax.objective.metrics import Metrics
from cogpo_jax.objective.sft import sft_loss
from cogpo_jax.sharding import param_shardings, per_replica, replicated, stacked_shardings, sum_over_replicas
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import ForwardOptions, graphdef_of
from cogpo_jax.tpu.xla_flags import compiler_options
from cogpo_jax.training.optimizer import stochastic_round

Params = Any
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """All that the programs are compiled for, beside array shapes; hashable."""

    student: StudentConfig
    forward: ForwardOptions
    objective: str  # sft | cogpo | dpo
    loss: PreferenceOptions
    logits_chunk: int
    max_slots: int  # responses of a micro-batch


def score(params: Params, batch: Batch, settings: StepSettings) -> tuple[jax.Array, jax.Array]:
    """Summed log-prob and token count of each response slot of a micro-batch, [max_slots] float32 each."""
    student = nnx.merge(graphdef_of(settings.student), params)
    hidden = student(batch["tokens"], batch["segment_ids"], batch["positions"], settings.forward)
    logps = token_logps(
        hidden,
        student.head_weight(),
        batch["targets"],
        batch["slots"] >= 0,
        chunk=settings.logits_chunk,
        mesh=settings.forward.mesh,
    )
    return jax.tree.map(sum_over_replicas, response_logps(logps, batch["slots"], settings.max_slots))


def loss(params: Params, batch: Batch, normalizer: jax.Array, settings: StepSettings) -> tuple[jax.Array, Metrics]:
    """The micro-batch's share of the step's loss, and its metrics."""
    logps, tokens = score(params, batch, settings)
    if settings.objective == "sft":
        return sft_loss(logps, tokens, normalizer=normalizer)
    return cogpo_loss(
        logps,
        batch["reference_logps"],
        batch["chosen"],
        batch["rejected"],
        batch["beta"],
        batch["weight"],
        gap=batch["gap"],
        tokens=tokens,
        normalizer=normalizer,
        options=settings.loss,
    )


def micro_step(
    params: Params, gradients: Params, metrics: Metrics, batch: Batch, normalizer: jax.Array, *, settings: StepSettings
) -> tuple[Params, Metrics]:
    """Adds a micro-batch's float32 gradients and metrics to what the step has gathered so far.

    gradients carry a leading axis [replica]: each replica's own, never sent between slices here (`apply_step` does).
    """
    rows = {name: x for name, x in batch.items() if name in ROW_FIELDS}
    shared = {name: x for name, x in batch.items() if name not in ROW_FIELDS}

    def gradient(params: Params, rows: Batch, shared: Batch) -> Any:
        return jax.value_and_grad(loss, has_aux=True)(params, {**rows, **shared}, normalizer, settings)

    assert settings.forward.mesh is not None
    (value, new), grads = per_replica(gradient, settings.forward.mesh)(params, rows, shared)
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
    score: Any  # (params, batch) -> (logps [S], tokens [S])
    start: Any  # params -> (zero gradients, zero metrics)


def make_programs(
    settings: StepSettings, optimizer: optax.GradientTransformation, params: Params, opt_state: Any
) -> Programs:
    """Compiles lazily for the mesh of `settings.forward`; params and opt_state may be abstract."""
    mesh = settings.forward.mesh
    assert mesh is not None
    p, o, r = param_shardings(mesh, params), param_shardings(mesh, opt_state), replicated(mesh)
    g, replicas = stacked_shardings(mesh, p), mesh.shape["replica"]
    jit = functools.partial(jax.jit, compiler_options=compiler_options(mesh))
    return Programs(
        accumulate=jit(functools.partial(micro_step, settings=settings), donate_argnums=(1, 2), out_shardings=(g, r)),
        apply=jit(functools.partial(apply_step, optimizer=optimizer), donate_argnums=(0, 1), out_shardings=(p, o, r)),
        score=jit(functools.partial(score, settings=settings), out_shardings=r),
        start=jit(lambda params: (zero_gradients(params, replicas), zero_metrics(settings)), out_shardings=(g, r)),
    )
