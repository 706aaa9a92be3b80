"""What a compiled program sends between devices: read from its optimized HLO, loops multiplied out."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+[0-9]*)\[([\d,]*)\]")
_CALLERS = ("calls", "body", "to_apply", "branch_computations", "true_computation", "false_computation")
_CALLS = re.compile(rf"(?:{'|'.join(_CALLERS)})=(?:\{{([^}}]*)\}}|%?([\w.\-]+))")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"^\s*(\d+)\)")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
# Between slices the compiler hands arrays to the hosts' network runtime: a send with the kind of exchange noted.
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange of a program: how often a device takes part, and the bytes it sends in all."""

    kind: str
    network: str  # ici: inside a slice; dcn: between slices
    count: int
    bytes: float


def collectives(hlo: str, slices: Sequence[int]) -> list[Collective]:
    """The exchanges of an optimized HLO module, most bytes first.

    slices[i]: the slice of the program's i-th device. A device sends (g - 1) / g of an array to a group of g in a
    gather or scatter (ring algorithms), twice that in an all-reduce; between slices, what it hands to the hosts'
    network runtime counts once. A loop without a known trip count counts once.
    """
    computations, entry = _computations(hlo)
    times: defaultdict[str, float] = defaultdict(float)
    _visit(computations, entry, 1.0, times)
    counts: defaultdict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0])
    for name, repeat in times.items():
        for kind, size, line in _exchanges(name, computations[name]):
            if _MEGASCALE.search(line):
                total = counts[kind, "dcn"]
                total[0] += int(repeat)
                total[1] += repeat * size
                continue
            group, crosses = _group(line, slices)
            if group < 2:
                continue
            total = counts[kind, "dcn" if crosses else "ici"]
            total[0] += int(repeat)
            total[1] += repeat * _sent(kind, size, group)
    found = [Collective(kind, network, int(n), size) for (kind, network), (n, size) in counts.items()]
    return sorted(found, key=lambda c: -c.bytes)


def _computations(hlo: str) -> tuple[dict[str, list[tuple[str, str, str]]], str]:
    """name -> (result type, opcode, rest of the line) of each instruction; and the entry's name."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            current = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            current.append((instruction[1], instruction[2], instruction[3]))
    return found, entry


def _visit(computations: Mapping[str, list], name: str, repeat: float, times: defaultdict[str, float]) -> None:
    times[name] += repeat
    for _, opcode, rest in computations[name]:
        trips = _trips(computations, rest) if opcode == "while" else 1
        for several, one in _CALLS.findall(rest):
            for callee in re.findall(r"[\w.\-]+", several or one):
                if callee in computations and opcode not in ("all-reduce", "reduce-scatter", "reduce"):
                    _visit(computations, callee, repeat * trips, times)


def _trips(computations: Mapping[str, list], rest: str) -> int:
    """A loop's trip count: as the compiler notes it, or the constant that its condition compares with; else 1."""
    if known := _TRIPS.search(rest):
        return int(known[1])
    condition = _CONDITION.search(rest)
    instructions = computations.get(condition[1], []) if condition else []
    limits = [int(n[1]) for _, opcode, tail in instructions if opcode == "constant" and (n := _CONSTANT.match(tail))]
    return limits[0] if len(limits) == 1 else 1


def _exchanges(name: str, instructions: list[tuple[str, str, str]]) -> Iterator[tuple[str, float, str]]:
    starts = any("AsyncCollectiveStart" in rest for _, _, rest in instructions)
    for result, opcode, rest in instructions:
        if opcode == "send" and (between := _MEGASCALE.search(rest)):
            yield between[1].lower().replace("_", "-"), _size(_SHAPE.findall(result)[0]), rest
            continue
        if "chain_id=" in rest and not starts:
            continue  # an asynchronous exchange stands in each fusion that it runs beside: it counts where it starts
        kind = opcode.removesuffix("-start")
        if kind not in _KINDS:
            continue
        size = sum(map(_size, _SHAPE.findall(result)))
        group = max(1, _group(rest, ())[0])
        if opcode == "all-gather-start":  # its type is (what goes in, what comes out)
            size *= group / (group + 1)
        elif opcode == "collective-permute-start":
            size /= 2
        elif kind == "reduce-scatter":
            size *= group
        # The TPU compiler writes a reduce-scatter as a fusion of an all-reduce and a slice of it.
        yield "reduce-scatter" if kind == "all-reduce" and "all-reduce-scatter" in name else kind, size, rest


def _size(shape: tuple[str, str]) -> float:
    dtype, dims = shape
    return _BYTES.get(dtype, 4) * float(np.prod([int(d) for d in dims.split(",") if d]))


def _sent(kind: str, size: float, group: int) -> float:
    if kind == "collective-permute":
        return size
    return size * (group - 1) / group * (2 if kind == "all-reduce" else 1)


def _group(line: str, slices: Sequence[int]) -> tuple[int, bool]:
    """(devices of a group, whether one reaches over slices)."""
    if iota := _IOTA.search(line):
        groups, size, dims, order = iota.groups()
        ids = np.arange(int(groups) * int(size)).reshape([int(d) for d in dims.split(",")])
        ids = ids.transpose([int(d) for d in order.split(",")]) if order else ids
        members = ids.reshape(int(groups), int(size)).tolist()
    elif named := _NAMED.search(line):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        over = [i for i, name in enumerate(axes) if f"'{name}'" in named[2]]
        ids = np.arange(int(np.prod(list(axes.values())))).reshape(list(axes.values()))
        moved = np.moveaxis(ids, over, range(-len(over), 0))
        members = moved.reshape(-1, int(np.prod([ids.shape[i] for i in over]))).tolist()
    elif listed := (_LISTED.search(line) or _PAIRS.search(line)):
        members = [[int(i) for i in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    else:
        return len(slices), len(set(slices)) > 1  # no groups: everyone
    crosses = bool(slices) and any(len({slices[i] for i in group}) > 1 for group in members)
    return max(map(len, members)), crosses
