"""The programs of a run (micro-step, apply, reference pass) for abstract arrays: no weights, no data, no TPU."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import config_dict

from cogpo_jax.data.batches import PreferenceBatch, Rows, SftBatch
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
from cogpo_jax.student.model import abstract_params
from cogpo_jax.tpu.topology import Topology
from cogpo_jax.training.checkpoint import with_shardings
from cogpo_jax.training.setup import abstract_state, step_settings
from cogpo_jax.training.step import make_optimizer, make_programs, zero_metrics

# Responses and pairs of a micro-batch: from the plan in a run, a guess here. A slot is a few bytes.
SLOTS_PER_ROW = 32


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
    rows, length = config.rows.per_device * row_shards(mesh), config.rows.length
    settings = step_settings(config, student, mesh, SLOTS_PER_ROW * rows, platform="tpu")
    optimizer = make_optimizer(config.optimizer, total_steps=1000)
    state = abstract_state(config, student, mesh, optimizer)
    params, opt_state = state["params"], state["opt_state"]
    made = make_programs(settings, optimizer, params, opt_state)

    stacked = jax.tree.map(lambda p: jax.ShapeDtypeStruct((mesh.shape["replica"], *p.shape), jnp.float32), params)
    gradients = with_shardings(stacked, stacked_shardings(mesh, param_shardings(mesh, params)))
    whole, by_row = replicated(mesh), row_sharding(mesh)
    metrics = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), jax.eval_shape(lambda: zero_metrics(settings))
    )

    def scalar(dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), dtype, sharding=whole)

    row: Any = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=by_row)
    packed = Rows(*[row] * len(dataclasses.fields(Rows)))
    slots: list[Any] = [
        jax.ShapeDtypeStruct((settings.max_slots,), dtype, sharding=whole) for dtype in (jnp.int32, jnp.float32)
    ]
    with_pairs = PreferenceBatch(packed, *[slots[0]] * 3, *[slots[1]] * 3)
    batch = SftBatch(packed) if config.objective == "sft" else with_pairs

    reference = params if config.objective != "sft" and config.reference == "live" else ()
    found = [
        Program(
            "micro-step",
            made.accumulate,
            (params, gradients, metrics, batch, scalar(jnp.float32)),
            (opt_state, reference),
            rows * length,
        ),
        Program("apply", made.apply, (params, opt_state, gradients, scalar(jnp.int32)), reference, 0),
    ]
    if config.objective != "sft":
        # A cached reference is scored before training; a live one before each micro-step, gradients in memory.
        beside = (opt_state, params, gradients) if reference else opt_state
        found.append(Program("reference", made.score, (params, packed), beside, rows * length))
    return found


def describe_state(config: config_dict.ConfigDict, topology: Topology) -> str:
    """Where every parameter of the config lives on the topology (`--print_shardings`)."""
    mesh = make_mesh(config.mesh.to_dict(), topology.devices())
    student = student_of(config)
    check_divides(mesh, student)
    params = abstract_params(student, config.param_dtype)
    return describe(with_shardings(params, param_shardings(mesh, params)))


def device_bytes(tree: Any) -> int:
    """Bytes that a tree of placed abstract arrays takes on one device."""
    size = 0
    for leaf in jax.tree.leaves(tree):
        shard = leaf.sharding.shard_shape(leaf.shape)
        size += leaf.dtype.itemsize * math.prod(shard)
    return size
