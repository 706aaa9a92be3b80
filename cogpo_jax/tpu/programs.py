"""The programs of a run (micro-step, apply, reference pass) for abstract arrays: no weights, no data, no TPU."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import config_dict

from cogpo_jax.data.packing import ROW_FIELDS
from cogpo_jax.objective.cogpo import PreferenceOptions
from cogpo_jax.sharding import (
    check_divides,
    describe,
    make_mesh,
    param_shardings,
    replicated,
    row_sharding,
    row_shards,
    stacked_shardings,
)
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import ForwardOptions, abstract_params
from cogpo_jax.student.splash import tile_size
from cogpo_jax.tpu.topology import Topology
from cogpo_jax.training.optimizer import make_optimizer
from cogpo_jax.training.step import StepSettings, make_programs, zero_metrics

# Responses and pairs of a micro-batch: from the plan in a run, a guess here. A slot is a few bytes.
SLOTS_PER_ROW = 32
_PAIR_FIELDS = {
    "chosen": jnp.int32,
    "rejected": jnp.int32,
    "gap": jnp.int32,
    "beta": jnp.float32,
    "weight": jnp.float32,
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function, its abstract arguments, and what stays in memory beside them while it runs."""

    name: str
    function: Any
    arguments: tuple[Any, ...]
    beside: Any
    tokens: int  # row tokens that one call works on, 0 where it works on none


def student_of(config: config_dict.ConfigDict) -> StudentConfig:
    """The architecture that the config trains: of `init_from` where it is given, else of `model`."""
    return StudentConfig.from_hf(config.init_from or config.model)


def programs(config: config_dict.ConfigDict, mesh: Mesh) -> list[Program]:
    """Micro-step, apply and reference pass (score) as `launch/train.py` compiles them for this config on this mesh.

    Raises UserError where the mesh does not divide the student.
    """
    student = student_of(config)
    check_divides(mesh, student)
    if config.attention in ("auto", "splash"):
        tile_size(config.rows.length)
    rows, length = config.rows.per_device * row_shards(mesh), config.rows.length
    settings = StepSettings(
        student=student,
        forward=ForwardOptions(
            config.compute_dtype, "splash" if config.attention == "auto" else config.attention, config.remat, mesh
        ),
        objective=config.objective,
        loss=PreferenceOptions(**config.loss.to_dict()),
        logits_chunk=config.logits_chunk,
        max_slots=SLOTS_PER_ROW * rows,
    )
    optimizer = make_optimizer(config.optimizer, total_steps=1000)
    params = abstract_params(student, config.param_dtype)
    opt_state = jax.eval_shape(optimizer.init, abstract_params(student, jnp.float32))
    made = make_programs(settings, optimizer, params, opt_state)

    params = _placed(params, param_shardings(mesh, params))
    opt_state = _placed(opt_state, param_shardings(mesh, opt_state))
    stacked = jax.tree.map(lambda p: jax.ShapeDtypeStruct((mesh.shape["replica"], *p.shape), jnp.float32), params)
    gradients = _placed(stacked, stacked_shardings(mesh, param_shardings(mesh, params)))
    whole, by_row = replicated(mesh), row_sharding(mesh)
    metrics = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), jax.eval_shape(lambda: zero_metrics(settings))
    )
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    batch = {name: jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=by_row) for name in ROW_FIELDS}
    pairs = {
        name: jax.ShapeDtypeStruct((settings.max_slots,), dtype, sharding=whole) for name, dtype in _PAIR_FIELDS.items()
    }
    pairs["reference_logps"] = jax.ShapeDtypeStruct((settings.max_slots,), jnp.float32, sharding=whole)
    full = batch if config.objective == "sft" else {**batch, **pairs}

    reference = params if config.objective != "sft" and config.reference == "live" else ()
    found = [
        Program(
            "micro-step",
            made.accumulate,
            (params, gradients, metrics, full, scalar),
            (opt_state, reference),
            rows * length,
        ),
        Program("apply", made.apply, (params, opt_state, gradients, step), reference, 0),
    ]
    if config.objective != "sft":
        # A cached reference is scored before training; a live one before each micro-step, gradients in memory.
        beside = (opt_state, params, gradients) if reference else opt_state
        found.append(Program("reference", made.score, (params, batch), beside, rows * length))
    return found


def describe_state(config: config_dict.ConfigDict, topology: Topology) -> str:
    """Where every parameter of the config lives on the topology (`--print_shardings`)."""
    mesh = make_mesh(config.mesh.to_dict(), topology.devices())
    student = student_of(config)
    check_divides(mesh, student)
    params = abstract_params(student, config.param_dtype)
    return describe(_placed(params, param_shardings(mesh, params)))


def device_bytes(tree: Any) -> int:
    """Bytes that a tree of placed abstract arrays takes on one device."""
    size = 0
    for leaf in jax.tree.leaves(tree):
        shard = leaf.sharding.shard_shape(leaf.shape)
        size += leaf.dtype.itemsize * math.prod(shard)
    return size


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
