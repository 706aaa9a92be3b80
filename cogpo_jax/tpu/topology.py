"""TPU topologies by their shape (`v5p:4x4x4`), as devices of the real compiler; no TPU is needed.

libtpu compiles on any x86 Linux machine through `jax.experimental.topologies`; it must be the one that jax's `tpu`
extra pins (requirements/tpu.txt): another version gives other memory figures.
"""

import dataclasses
import importlib.metadata
import math
import os
from typing import Any

from cogpo_jax.errors import UserError

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip: HBM that the compiler may use (bytes), peak bfloat16 FLOP/s (vendor's data sheet), slice shapes."""

    hbm: int
    peak_flops: float
    shapes: tuple[str, ...]


_ONE = "1x1"  # a single chip, as in a Colab notebook
_FLAT = (_ONE, "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
CHIPS = {
    "v5e": Chip(int(15.75 * GIB), 197e12, _FLAT),
    "v5p": Chip(int(95.74 * GIB), 459e12, _CUBES),
    "v6e": Chip(int(31.25 * GIB), 918e12, _FLAT),
}
# Without them libtpu asks a metadata server for the machine it is on, and refuses to load beside another process's.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`num_slices` slices of one shape, joined by the data-centre network."""

    name: str
    chip: Chip
    num_slices: int

    @property
    def chips_per_slice(self) -> int:
        """Chips of one slice; device ids count slice by slice."""
        return math.prod(int(n) for n in self.name.split(":")[1].split("x"))

    def devices(self) -> list[Any]:
        """The compile-only devices of all slices. Raises UserError where libtpu is missing or is not the pinned one."""
        prepare()
        from jax.experimental import topologies

        options: dict[str, Any] = {"num_slices": self.num_slices} if self.num_slices > 1 else {}
        if self.chips_per_slice == 1:  # libtpu thinks of hosts with 2x2 chips unless it is told
            options["chips_per_host_bounds"] = (1, 1, 1)
        return list(topologies.get_topology_desc(platform="tpu", topology_name=self.name, **options).devices)


def find(name: str, num_slices: int = 1) -> Topology:
    """The topology of that name. Raises UserError listing the known ones."""
    generation, _, shape = name.partition(":")
    if generation not in CHIPS or shape not in CHIPS[generation].shapes:
        known = "; ".join(f"{g}:{{{','.join(chip.shapes)}}}" for g, chip in CHIPS.items())
        raise UserError(f"--topology: {name}: no such topology; known are {known}")
    if num_slices < 1:
        raise UserError(f"--num_slices: {num_slices}: must be at least 1")
    return Topology(name, CHIPS[generation], num_slices)


def prepare() -> None:
    """Sets libtpu's environment; to be called before jax is imported. Raises UserError as `Topology.devices` does."""
    os.environ.update(ENVIRONMENT)
    wanted = [r for r in importlib.metadata.requires("jax") or () if r.startswith("libtpu") and '"tpu"' in r]
    pin = wanted[0].partition("==")[2].partition(".*")[0] if wanted else ""
    try:
        found = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"libtpu: not installed: compiling for a TPU needs it; pip install 'libtpu=={pin}.*' (requirements/tpu.txt)"
        ) from None
    if pin and not (found == pin or found.startswith(f"{pin}.")):
        raise UserError(f"libtpu: {found}: jax {importlib.metadata.version('jax')} pins {pin}.*; install that one")
