"""Rows to devices: each process packs and sends only the rows its own devices hold, ahead of the step."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from cogpo_jax.data.packing import pack_pairs, pack_rows
from cogpo_jax.data.plan import EpochPlan, MicroBatch
from cogpo_jax.data.tokens import TokenizedData
from cogpo_jax.sharding import replicated, row_sharding

Item = TypeVar("Item")


class Feed:
    """Turns planned micro-batches of one data set into device arrays on a mesh."""

    def __init__(
        self,
        data: TokenizedData,
        plan: EpochPlan,
        mesh: Mesh,
        *,
        slots: int,
        beta_by_gap: Mapping[str, float] | None = None,
        reference: np.ndarray | None = None,
    ):
        """slots: responses per compiled micro-batch; reference [R]: summed reference log-probs, NaN = not known."""
        self._data, self._plan, self._mesh = data, plan, mesh
        self._slots, self._beta_by_gap, self._reference = slots, beta_by_gap, reference

    def rows(self, micro: MicroBatch) -> dict[str, jax.Array]:
        """tokens, targets, segment_ids, positions, slots: [rows, length] int32, split over the mesh's row axes."""
        sharding = row_sharding(self._mesh)
        shape = (micro.shape.rows, micro.shape.length)
        indices = sharding.addressable_devices_indices_map(shape).values()
        spans = {index[0].indices(shape[0])[:2] for index in indices if index is not None}
        mine = sorted({row for start, stop in spans for row in range(start, stop)})
        local = {row: i for i, row in enumerate(mine)}
        arrays = pack_rows(micro, self._data.sequence, mine)

        def place(array: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(shape[0])
                return array[local[start] : local[start] + stop - start]

            return jax.make_array_from_callback(shape, sharding, part)

        return {name: place(array) for name, array in arrays.items()}

    def batch(self, micro: MicroBatch) -> dict[str, jax.Array]:
        """`rows` and the pairs of a micro-batch, with the reference log-probs of its responses where they are known."""
        if not self._beta_by_gap:
            return self.rows(micro)
        pairs = pack_pairs(
            micro,
            self._slots,
            self._plan.max_pairs,
            gaps=self._data.gaps,
            betas=self._data.betas,
            weights=self._data.weights,
            beta_by_gap=self._beta_by_gap,
            reference=None if self._reference is None else lambda r: float(self._reference[r]),  # type: ignore[index]
        )
        whole = replicated(self._mesh)
        put = {name: jax.make_array_from_callback(x.shape, whole, x.__getitem__) for name, x in pairs.items()}
        return self.rows(micro) | put

    def normalizer(self, micro: MicroBatch) -> float:
        """What a micro-batch adds to the step's divisor: summed pair weight, or counted response tokens (SFT)."""
        if self._beta_by_gap:
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
