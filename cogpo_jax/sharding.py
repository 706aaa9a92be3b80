"""The mesh, one table of logical-axis rules, and the NamedSharding of every array."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cogpo_jax.errors import UserError

MESH_AXES = ("replica", "data", "fsdp", "tensor")
ROW_AXES = ("replica", "data", "fsdp")

# Logical axis of an array -> mesh axes it is split over. An axis that is not here is a mistake, not a default.
RULES: dict[str, tuple[str, ...] | str | None] = {
    "rows": ROW_AXES,
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "embed": "fsdp",
    "layers": None,
    "norm": None,
}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of MESH_AXES; a missing axis is 1, and at most one may be -1 (what the other axes leave).

    Raises UserError where the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = {axis: int(sizes.get(axis, 1)) for axis in MESH_AXES}
    unknown = [axis for axis in sizes if axis not in MESH_AXES]
    if unknown:
        raise UserError(f"mesh.{unknown[0]}: no such axis; the axes are {', '.join(MESH_AXES)}")
    free = [axis for axis, size in shape.items() if size == -1]
    bad = [axis for axis, size in shape.items() if size < 1 and size != -1]
    if bad or len(free) > 1:
        raise UserError(f"mesh: {shape}: sizes must be positive (one may be -1: all remaining devices)")
    given = math.prod(size for size in shape.values() if size != -1)
    if free and len(devices) % given == 0:
        shape[free[0]] = len(devices) // given
    if math.prod(shape.values()) != len(devices):
        raise UserError(f"mesh: {shape}: must multiply to the number of devices, {len(devices)}")
    grid = np.asarray(devices).reshape(tuple(shape.values()))
    return Mesh(grid, MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES))


def spec(*logical_axes: str | None) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions are named by `logical_axes` (None: not split)."""
    return PartitionSpec(*(None if axis is None else RULES[axis] for axis in logical_axes))


def param_shardings(mesh: Mesh, params: Any) -> Any:
    """A NamedSharding per parameter: the tree of `params` (arrays or ShapeDtypeStructs), by LOGICAL_AXES."""
    from cogpo_jax.student.model import LOGICAL_AXES  # the model imports this module

    def sharding(path: tuple[Any, ...], _: Any) -> NamedSharding:
        return NamedSharding(mesh, spec(*LOGICAL_AXES[".".join(key.key for key in path)]))

    return jax.tree_util.tree_map_with_path(sharding, params)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch of rows [rows, ...]."""
    return NamedSharding(mesh, spec("rows"))


def constrain(x: jax.Array, mesh: Mesh | None, *logical_axes: str | None) -> jax.Array:
    """Pins the layout of `x` inside jit; returns it as it is where there is no mesh."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(*logical_axes)))
