"""Planned micro-batches as typed arrays: packed rows, response slots and pairs, placed on the devices of a mesh.

Each process packs and sends only the rows that its own devices hold, ahead of the step that needs them.
"""

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from cogpo_jax.data.plan import EpochPlan, MicroBatch
from cogpo_jax.data.tokens import TokenizedData
from cogpo_jax.records.schema import GAPS
from cogpo_jax.sharding import replicated, row_sharding

Item = TypeVar("Item")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Packed rows of token sequences: B rows of T tokens, each row split over the mesh's row axes.

    tokens, targets: a position's token and the one after it. segment_ids: 0 for padding, 1.. within a row. positions
    restart at 0 in each segment. slots: index of the response whose log-prob the target counts for, -1 for none.
    """

    tokens: Int[Array, "B T"]
    targets: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    slots: Int[Array, "B T"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SftBatch:
    """A micro-batch of SFT: the rows hold everything."""

    rows: Rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PreferenceBatch:
    """A micro-batch of CogPO or DPO: rows with R response slots, and P pairs between the slots (padding: weight 0).

    chosen, rejected: slots. gap: index into GAPS. beta: resolved by `resolve_beta`. reference_logps: summed log-prob
    of each slot's response under the reference, in nats (0 until a live reference has scored the rows).
    """

    rows: Rows
    chosen: Int[Array, " P"]
    rejected: Int[Array, " P"]
    gap: Int[Array, " P"]
    beta: Float[Array, " P"]
    weight: Float[Array, " P"]
    reference_logps: Float[Array, " R"]


Batch = SftBatch | PreferenceBatch


def pack_rows(
    micro: MicroBatch, sequence: Callable[[int], tuple[np.ndarray, np.ndarray]], rows: Sequence[int] | None = None
) -> Rows:
    """The rows of a micro-batch as int32 arrays [len(rows), length]; only the asked rows' tokens are read.

    sequence(response) -> (ids [L], counted [L]): a sequence takes L - 1 positions, its last token being a target only.
    """
    wanted = range(micro.shape.rows) if rows is None else rows
    local = {row: i for i, row in enumerate(wanted)}
    blank: list[Any] = [np.zeros((len(wanted), micro.shape.length), np.int32) for _ in dataclasses.fields(Rows)]
    out = Rows(*blank)
    out.slots[:] = -1
    segments: dict[int, int] = {}
    for slot, placement in enumerate(micro.placements):
        if placement.row not in local:
            continue
        ids, counted = sequence(placement.response)
        i, n = local[placement.row], len(ids) - 1
        where = slice(placement.start, placement.start + n)
        segments[i] = segments.get(i, 0) + 1
        out.tokens[i, where] = ids[:-1]
        out.targets[i, where] = ids[1:]
        out.segment_ids[i, where] = segments[i]
        out.positions[i, where] = np.arange(n)
        out.slots[i, where] = np.where(counted[1:], slot, -1)
    return out


def pack_pairs(
    micro: MicroBatch,
    rows: Rows,
    data: TokenizedData,
    max_slots: int,
    max_pairs: int,
    reference: np.ndarray | None = None,
) -> PreferenceBatch:
    """A micro-batch's pairs [max_pairs] and slots [max_slots] beside its rows, as numpy arrays.

    data.betas must be resolved (`resolve_beta`). reference [R]: summed reference log-prob of each response of `data`.
    """
    pairs = np.asarray(micro.pairs, np.int64).reshape(-1, 3)
    index = pairs[:, 0]

    def padded(values: np.ndarray, dtype: Any, fill: float = 0) -> Any:
        return np.pad(values.astype(dtype), (0, max_pairs - len(index)), constant_values=fill)

    slots: Any = np.zeros(max_slots, np.float32)
    batch = PreferenceBatch(
        rows=rows,
        chosen=padded(pairs[:, 1], np.int32),
        rejected=padded(pairs[:, 2], np.int32),
        gap=padded(data.gaps[index], np.int32, len(GAPS) - 1),
        beta=padded(data.betas[index], np.float32, 1.0),
        weight=padded(data.weights[index], np.float32),
        reference_logps=slots,
    )
    if reference is not None:
        placed = [p.response for p in micro.placements]
        slots[: len(placed)] = reference[placed]
    return batch


class Feed:
    """Turns planned micro-batches of one data set into batches on the devices of a mesh."""

    def __init__(
        self,
        data: TokenizedData,
        plan: EpochPlan,
        mesh: Mesh,
        *,
        slots: int,
        pairs: bool,
        reference: np.ndarray | None = None,
    ):
        """slots: responses per compiled micro-batch. pairs: PreferenceBatch, else SftBatch. reference: `pack_pairs`."""
        self._data, self._plan, self._mesh = data, plan, mesh
        self._slots, self._pairs, self._reference = slots, pairs, reference

    def rows(self, micro: MicroBatch) -> Rows:
        """The micro-batch's rows, split over the mesh's row axes."""
        sharding = row_sharding(self._mesh)
        shape = (micro.shape.rows, micro.shape.length)
        indices = sharding.addressable_devices_indices_map(shape).values()
        spans = {index[0].indices(shape[0])[:2] for index in indices if index is not None}
        mine = sorted({row for start, stop in spans for row in range(start, stop)})
        local = {row: i for i, row in enumerate(mine)}

        def place(array: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(shape[0])
                return array[local[start] : local[start] + stop - start]

            return jax.make_array_from_callback(shape, sharding, part)

        return jax.tree.map(place, pack_rows(micro, self._data.sequence, mine))

    def batch(self, micro: MicroBatch) -> Batch:
        """`rows`, with the micro-batch's pairs (the same on every device) where the objective has pairs."""
        rows = self.rows(micro)
        if not self._pairs:
            return SftBatch(rows)
        whole = replicated(self._mesh)
        packed = pack_pairs(micro, rows, self._data, self._slots, self._plan.max_pairs, self._reference)
        put = lambda x: jax.make_array_from_callback(x.shape, whole, x.__getitem__)  # noqa: E731
        return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else put(x), packed)

    def normalizer(self, micro: MicroBatch) -> float:
        """What a micro-batch adds to the step's divisor: summed pair weight, or counted response tokens (SFT)."""
        if self._pairs:
            return float(sum(self._data.weights[pair] for pair, _, _ in micro.pairs))
        return float(sum(self._data.counted_lengths[p.response] for p in micro.placements))


def prefetch(items: Iterable[Item], make: Callable[[Item], Any], depth: int = 2) -> Iterator[tuple[Item, Any]]:
    """(item, make(item)) in order, made up to `depth` ahead on a thread; an error is raised where its item is due."""
    out: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def offer(entry: Any) -> bool:
        while not stop.is_set():
            try:
                out.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer((item, make(item), None)):
                    return
            offer(None)
        except BaseException as error:
            offer((None, None, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (entry := out.get()) is not None:
            item, value, error = entry
            if error is not None:
                raise error
            yield item, value
    finally:
        stop.set()
        thread.join()
