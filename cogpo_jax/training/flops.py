"""FLOPs two ways: counted in a program's jaxpr, and what the model needs by formula.

XLA's own cost analysis counts a loop's body once; here a scan counts its length. A multiply-add is 2 FLOPs; only matrix
products count (the rest is below 1% at these widths). Loops whose trip count depends on data (the head over counted
tokens, attention over visited tiles) need to be told it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cogpo_jax.student.config import StudentConfig

PARTS = ("layers", "attention", "head")


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs by part: the layers' projections, attention's two products (and their gradients), the vocabulary head."""

    layers: float = 0.0
    attention: float = 0.0
    head: float = 0.0

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return self.layers + self.attention + self.head

    @property
    def without_attention(self) -> float:
        """Layers and head: what does not depend on how long a token's segment is."""
        return self.layers + self.head

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(getattr(self, part) + getattr(other, part) for part in PARTS))


def model_flops(
    student: StudentConfig,
    segments: Sequence[int],
    counted: int,
    *,
    backward: bool = True,
    remat: str = "none",
) -> Flops:
    """What a forward pass (with its gradient) over packed segments needs.

    segments: tokens of each; counted: tokens that go through the head. Per token and layer 2 FLOPs a weight, attention
    causal within its segment: 4 H dh n (n + 1) / 2; the gradient is twice the forward pass (Kaplan et al., arXiv
    2001.08361). remat "full" and "offload" add the layers' forward pass once more, but for its last product (down_proj:
    no gradient needs its result); "dots" adds nothing here. The head is always recomputed for its gradient
    (`objective.logps`), and flash attention its scores (one product of five): both are work that this algorithm needs,
    and count where `remat` is not "none"; "none" is the model's own, for MFU.
    """
    tokens = sum(segments)
    d, q, kv = (
        student.hidden_size,
        *(n * student.head_dim for n in (student.num_attention_heads, student.num_key_value_heads)),
    )
    down = d * student.intermediate_size
    weights = 2 * d * q + 2 * d * kv + 3 * down
    layers, head = student.num_hidden_layers * 2.0 * weights * tokens, 2.0 * d * student.vocab_size * counted
    attention = student.num_hidden_layers * 2.0 * q * sum(n * (n + 1) for n in segments)
    if not backward:
        return Flops(layers, attention, head)
    again = remat in ("full", "offload")
    passes = Flops(3 + again * (1 - down / weights), 3 + again + 0.5 * (remat != "none"), 3 + (remat != "none"))
    return Flops(layers * passes.layers, attention * passes.attention, head * passes.head)


def visited_pairs(segments: Sequence[int], row_length: int, tile: int, *, skips: bool = True) -> int:
    """Query-key pairs of the tiles [tile, tile] that attention works on in one row; needed are n (n + 1) / 2 a segment.

    segments: tokens of each, one behind the other from the row's start; the rest is padding. skips: tiles of other
    segments are left out (`student.attention.tiles`), else every tile at or below the diagonal is worked on.
    """
    first = np.arange(-(-row_length // tile)) * tile  # each query tile's first token
    if not skips:
        return int((first // tile + 1).sum()) * tile**2
    starts = np.cumsum([0, *segments])
    begins = starts[np.searchsorted(starts, first, side="right") - 1]  # of the segment that this token is in
    from_key = np.where(first < starts[-1], begins, first) // tile  # padding sees itself alone
    return int((first // tile - from_key + 1).sum()) * tile**2


def jaxpr_flops(jaxpr: Any, *, head_trips: float, visited: float) -> Flops:
    """FLOPs of a traced program (`jax.jit(f).trace(...).jaxpr` or `jax.make_jaxpr`), over all devices.

    head_trips: rounds of the head's inner loop (chunks of counted tokens on a device). visited: share of the attention
    kernel's grid, or rounds of XLA attention's inner loop, that are worked on.
    """
    return _count(jaxpr, "layers", 1.0, {"head": head_trips, "attention": visited})


def _count(jaxpr: Any, part: str, times: float, trips: Mapping[str, float]) -> Flops:
    total = Flops()
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        here = _part(str(eqn.source_info.name_stack), part)
        name = eqn.primitive.name
        if not eqn.effects and all(type(out).__name__ == "DropVar" for out in eqn.outvars):
            continue  # dead: remat leaves the forward kernel behind, with no outputs, where it keeps its result
        if name == "dot_general":
            total += Flops(**{here: times * _dot(eqn)})
        elif name == "scan":
            total += _count(eqn.params["jaxpr"], here, times * eqn.params["length"], trips)
        elif name == "while":
            total += _count(eqn.params["body_jaxpr"], here, times * trips.get(here, 1.0), trips)
        elif name == "cond":
            branches = [_count(branch, here, times, trips) for branch in eqn.params["branches"]]
            total += max(branches, key=lambda flops: flops.total)
        elif name == "shard_map":
            mesh, axes = eqn.params["mesh"], eqn.params["newly_manual_axes"]
            devices = math.prod(mesh.shape[axis] for axis in axes)
            total += _count(eqn.params["jaxpr"], here, times * devices, trips)
        elif name == "pallas_call":
            steps = math.prod(int(n) for n in eqn.params["grid_mapping"].grid)
            total += _count(eqn.params["jaxpr"], here, times * steps * trips.get(here, 1.0), trips)
        else:
            for inner in _inner(eqn.params.values()):
                total += _count(inner, here, times, trips)
    return total


def _part(name_stack: str, outer: str) -> str:
    return next((part for part in PARTS[1:] if part in name_stack), outer)


def _inner(values: Any) -> Any:
    """Jaxprs among an equation's parameters (jit, remat, custom gradients)."""
    for value in values:
        if hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns"):
            yield value


def _dot(eqn: Any) -> float:
    (contract, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contract)
