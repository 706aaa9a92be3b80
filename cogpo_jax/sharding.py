"""Where every array lives: one mesh, one table from logical axes to mesh axes, and the shardings that follow.

The mesh has four axes, slowest network first:

    replica   between TPU slices (data-centre network, DCN): a full copy of the parameters on each slice
    data      inside a slice: a full copy again, rows split
    fsdp      parameters, gradients and Adam moments split; rows split as well
    tensor    heads, MLP width and vocabulary split; rows repeated

An array names its axes logically ("rows", "heads", ...); `RULES` says which mesh axes each is split over.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cogpo_jax.errors import UserError
from cogpo_jax.student.config import LOGICAL_AXES

MESH_AXES = ("replica", "data", "fsdp", "tensor")
ROW_AXES = ("replica", "data", "fsdp")

RULES: dict[str, str | tuple[str, ...] | None] = {
    "rows": ROW_AXES,
    "embed": "fsdp",  # of parameters; activations [rows, tokens, width] are split by rows alone
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "norm": None,  # vectors of the model's or a head's width: too small to be worth an exchange
    "layers": None,  # scanned over
}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh for `config.mesh` = {replica, data, fsdp, tensor}; one size may be -1 (whatever is left).

    On several TPU slices `replica` follows the slice boundaries, so that only what it carries crosses the DCN.
    Raises UserError where the sizes do not multiply to the number of devices, or `replica` cuts through a slice.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _mesh_shape(sizes, len(devices))
    slices = {getattr(d, "slice_index", 0) for d in devices}
    if len(slices) > 1:
        if shape[0] % len(slices):
            raise UserError(
                f"mesh.replica: {shape[0]}: {len(devices)} devices lie on {len(slices)} slices; "
                f"replica must be a multiple of {len(slices)}, so that no other axis crosses the network between them"
            )
        ici = (shape[0] // len(slices), *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            ici, (len(slices), 1, 1, 1), devices, allow_split_physical_axes=True
        )
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices).reshape(shape)
    return Mesh(grid, MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES))


def _mesh_shape(sizes: Mapping[str, int], count: int) -> tuple[int, ...]:
    unknown = sorted(set(sizes) - set(MESH_AXES))
    if unknown:
        raise UserError(f"mesh.{unknown[0]}: no such mesh axis; the axes are {', '.join(MESH_AXES)}")
    shape = [int(sizes.get(axis, 1)) for axis in MESH_AXES]
    for axis, size in zip(MESH_AXES, shape, strict=True):
        if size < 1 and size != -1:
            raise UserError(f"mesh.{axis}: {size}: a positive number of devices, or -1 for whatever is left")
    if shape.count(-1) > 1:
        raise UserError(f"mesh: {dict(sizes)}: only one axis may be -1")
    if -1 in shape:
        known = math.prod(s for s in shape if s != -1)
        if count % known:
            raise UserError(f"mesh: {_show(shape)}: {known} does not divide the {count} devices")
        shape[shape.index(-1)] = count // known
    if math.prod(shape) != count:
        raise UserError(
            f"mesh: {_show(shape)}: needs {math.prod(shape)} devices and there are {count}; "
            "set one axis to -1 to use whatever is left"
        )
    return tuple(shape)


def _show(shape: Sequence[int]) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, shape, strict=True))


def check_divides(mesh: Mesh, student: Any) -> None:
    """Raises UserError where `tensor` or `fsdp` does not divide the student's heads, MLP, vocabulary or width.

    `student` is a StudentConfig (num_attention_heads, num_key_value_heads, intermediate_size, vocab_size, hidden_size).
    """
    for axis, field in (
        ("tensor", "num_attention_heads"),
        ("tensor", "num_key_value_heads"),
        ("tensor", "intermediate_size"),
        ("tensor", "vocab_size"),
        ("fsdp", "hidden_size"),
    ):
        size, value = mesh.shape[axis], getattr(student, field)
        if value % size:
            good = [n for n in range(1, 513) if value % n == 0][:12]
            raise UserError(
                f"mesh.{axis}: {size}: does not divide the student's {field} ({value}); "
                f"these do: {', '.join(map(str, good))}"
            )


def spec(*logical_axes: str | None) -> PartitionSpec:
    """The PartitionSpec of an array whose axes have these logical names (None: not split).

    Inside `per_replica` an array is one replica's, and `replica` is left out.
    """
    return PartitionSpec(*(None if name is None else _mesh_axes(RULES[name]) for name in logical_axes))


def _mesh_axes(axes: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(axis for axis in axes if axis not in manual) if isinstance(axes, tuple) else axes


def row_axes() -> tuple[str, ...]:
    """The mesh axes that rows are split over here: without `replica` inside `per_replica`."""
    axes = _mesh_axes(ROW_AXES)
    assert isinstance(axes, tuple)  # ROW_AXES is one
    return axes


def shard(function: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`shard_map` of a function over all axes of the mesh that are not already mapped (by `per_replica`).

    Without the check of varying axes: Pallas kernels, and loops whose carries start as constants, don't pass it.
    """
    mesh = _ambient(mesh)
    free = frozenset(mesh.axis_names) - frozenset(jax.sharding.get_abstract_mesh().manual_axes)
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=free, check_vma=False)


def per_replica(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """f(params, rows, shared) -> tree, run by each replica on its own rows with nothing sent between replicas.

    `rows` is a tree of arrays [rows, ...]; the results gain a leading axis [replica], split over it: gradients stay
    where they are until someone sums that axis, once a step, over the slow network between slices. What all replicas
    must know inside goes through `sum_over_replicas`.
    """

    def own(*arguments: Any) -> Any:
        return jax.tree.map(lambda x: x[None], function(*arguments))

    if mesh.shape["replica"] == 1:
        return own
    part, whole = PartitionSpec("replica"), PartitionSpec()
    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(whole, part, whole),
        out_specs=part,
        axis_names=frozenset({"replica"}),
        check_vma=False,
    )


@jax.custom_vjp
def sum_over_replicas(x: jax.Array) -> jax.Array:
    """Inside `per_replica` the sum of each replica's `x`, elsewhere `x`. Its gradient is that of the own `x` alone.

    (All replicas then compute the same loss from the sum; each takes the gradient through its own rows.)
    """
    return jax.lax.psum(x, "replica") if "replica" in jax.sharding.get_abstract_mesh().manual_axes else x


sum_over_replicas.defvjp(lambda x: (sum_over_replicas(x), None), lambda _, cotangent: (cotangent,))


def stacked_shardings(mesh: Mesh, shardings: Any) -> Any:
    """For trees with `per_replica`'s leading axis: the shardings of the parameters, behind `replica`."""
    return jax.tree.map(lambda s: NamedSharding(mesh, PartitionSpec("replica", *s.spec)), shardings)


def _ambient(mesh: Mesh) -> Any:
    inside = jax.sharding.get_abstract_mesh()
    return inside if inside.manual_axes else mesh


def sharding(mesh: Mesh, *logical_axes: str | None) -> NamedSharding:
    """`spec` on a mesh."""
    return NamedSharding(_ambient(mesh), spec(*logical_axes))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays [rows, ...]: tokens, segment ids, positions."""
    return sharding(mesh, "rows")


def row_shards(mesh: Mesh) -> int:
    """Over how many shards the rows of a micro-batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, mesh: Mesh | None, *logical_axes: str | None) -> jax.Array:
    """`with_sharding_constraint` by logical names; nothing happens without a mesh or on one device."""
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, sharding(mesh, *logical_axes))


def param_shardings(mesh: Mesh, params: Any, logical_axes: Mapping[str, Sequence[str | None]] = LOGICAL_AXES) -> Any:
    """A tree like `params` with each leaf's NamedSharding.

    A leaf is found by its path (`layers.mlp.up_proj.weight`) in `logical_axes` (default: the student's table); the
    longest ending decides, so the same call serves optimizer states (`0.mu.layers.mlp.up_proj.weight`). Scalars are
    replicated. Raises KeyError for an array that the table does not know: a silent default would replicate it.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        if not leaf.shape:
            return replicated(mesh)
        parts = array_path(path).split(".")
        for start in range(len(parts)):
            if (name := ".".join(parts[start:])) in logical_axes:
                return sharding(mesh, *logical_axes[name])
        raise KeyError(f"{array_path(path)}: no logical axes for this array {leaf.shape}")

    return jax.tree_util.tree_map_with_path(place, params)


def array_path(path: Sequence[Any]) -> str:
    """A pytree key path as dotted names; the `.value` of an nnx variable is left out."""
    names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    return ".".join(name for name in names if name != "value")


def describe(tree: Any) -> str:
    """One line an array: path, dtype, shape, split, bytes in all and on one device (`--print_shardings`)."""
    lines, total, local = [], 0, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        here = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        split = getattr(leaf.sharding, "spec", "one device")
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        lines.append((array_path(path), str(leaf.dtype), shape, _spec_text(split), _bytes(size), _bytes(here)))
        total, local = total + size, local + here
    lines.append(("all", "", "", "", _bytes(total), _bytes(local)))
    header = ("array", "dtype", "shape", "split over", "bytes", "a device")
    widths = [max(len(row[i]) for row in [header, *lines]) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in [header, *lines])


def _spec_text(split: Any) -> str:
    if not isinstance(split, PartitionSpec):
        return str(split)
    cells = ["-" if s is None else s if isinstance(s, str) else "+".join(s) for s in split]
    return "(" + ", ".join(cells) + ")" if any(c != "-" for c in cells) else "replicated"


def _bytes(n: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"
