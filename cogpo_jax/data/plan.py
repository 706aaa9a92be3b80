"""The epoch plan: batch k is a pure function of (token lengths, seed, k).

Which groups a step takes depends on the lengths, the seed and `batch.groups` alone; what is dropped depends on
`rows.length` alone. How a step's groups are packed into micro-batches depends on the micro-batch shape, and changes
neither loss nor gradient. Nothing here is random but the shuffle, and nothing depends on hosts.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from cogpo_jax.errors import UserError

GOOD_FILL = 0.97  # a micro-batch this full is taken at once
FILL_TRIES = 24


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """A compiled micro-batch: `rows` rows of `length` tokens."""

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclasses.dataclass(frozen=True)
class Placement:
    """One sequence in a row: its slot in the micro-batch, response index, row and first position."""

    response: int
    row: int
    start: int


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Placements (slot = list position) and pairs (pair index, chosen slot, rejected slot) of one micro-batch."""

    shape: Shape
    placements: tuple[Placement, ...]
    pairs: tuple[tuple[int, int, int], ...]
    tokens: int

    @property
    def fill(self) -> float:
        """Share of the row tokens that are not padding."""
        return self.tokens / self.shape.tokens


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One optimizer step: its groups (indices) and micro-batches.

    split_groups: groups that no micro-batch can hold whole; repeated_responses: how often one of their responses goes
    through the model once more.
    """

    step: int
    epoch: int
    groups: np.ndarray
    micro_batches: tuple[MicroBatch, ...]
    split_groups: int
    repeated_responses: int


@dataclasses.dataclass(frozen=True)
class _Unit:
    """Sequences that must share a micro-batch: a group, or one of the parts that a group was split into."""

    responses: tuple[int, ...]
    sizes: tuple[int, ...]
    pairs: tuple[int, ...]
    tokens: int


def default_shapes(rows: int, length: int, row_devices: int = 1) -> tuple[Shape, ...]:
    """Up to three shapes, largest first: fewer rows while every device keeps one, then shorter rows.

    rows, length: of a full micro-batch; row_devices: over how many devices the rows are split.
    """
    shapes = [Shape(rows, length)]
    while len(shapes) < 3:
        last = shapes[-1]
        if last.rows % 2 == 0 and (last.rows // 2) % row_devices == 0:
            shapes.append(Shape(last.rows // 2, last.length))
        elif last.length % 256 == 0:  # halves stay multiples of the attention kernels' 128 lanes
            shapes.append(Shape(last.rows, last.length // 2))
        else:
            break
    return tuple(shapes)


class EpochPlan:
    """Steps of an epoch over groups of responses.

    lengths [R]: tokens of prompt + response; response_offsets [G + 1], pair_offsets [G + 1]: a group's responses and
    pairs; chosen, rejected [P]: global response indices (empty arrays for SFT, where every response stands alone).
    shapes: micro-batch shapes, the first being the full one. Raises UserError where nothing is left to train on.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        response_offsets: np.ndarray,
        pair_offsets: np.ndarray,
        chosen: np.ndarray,
        rejected: np.ndarray,
        *,
        groups_per_step: int,
        shapes: Sequence[Shape],
        seed: int,
        row_length: int | None = None,
        pairwise: bool = True,
        shuffle: bool = True,
    ):
        if groups_per_step < 1:
            raise UserError(f"batch.groups: {groups_per_step}: must be at least 1")
        self.shapes = tuple(shapes)
        self.seed, self.groups_per_step, self.shuffle, self.pairwise = seed, groups_per_step, shuffle, pairwise
        self._lengths = np.asarray(lengths)
        self._offsets, self._pair_offsets = response_offsets, pair_offsets
        self._chosen, self._rejected = chosen, rejected
        self.row_length = row_length or self.shapes[0].length
        self.drops: Counter[str] = Counter()
        self._kept_pairs = self._keep()
        self.groups = self._usable_groups()
        if not len(self.groups):
            longer = np.maximum(self._lengths[self._chosen], self._lengths[self._rejected])
            shortest = int((longer if self.pairwise else self._lengths).min(initial=2**31 - 1))
            raise UserError(
                f"rows.length: {self.row_length}: leaves nothing to train on (dropped: {dict(self.drops)}); "
                f"the shortest {'pair' if self.pairwise else 'response'} needs {shortest} tokens with its prompt"
            )
        self.max_slots, self.max_pairs = self._slot_bounds()
        self.split_groups, self.repeated_responses = self._repeats()

    def _keep(self) -> np.ndarray:
        """Counts what is dropped and returns the mask of pairs that stay [P]."""
        fits = self._lengths <= self.row_length
        self._fits = fits
        self.drops["response_longer_than_row"] = int((~fits).sum())
        kept = fits[self._chosen] & fits[self._rejected]
        self.drops["pair_lost_a_response"] = int((~kept).sum())
        self.used = fits  # [R]: the responses that an epoch runs
        if self.pairwise:
            self.used = np.zeros(len(fits), bool)
            self.used[self._chosen[kept]] = self.used[self._rejected[kept]] = True
            self.drops["response_without_pair"] = int((fits & ~self.used).sum())
        full = self.shapes[0]
        if self.pairwise and full.rows == 1 and kept.any():
            together = self._needed(self._chosen) + self._needed(self._rejected)
            alone = int((together[kept] > full.length).sum())
            if alone:
                raise UserError(
                    f"rows.per_device: {full.rows}: {alone} pairs need two rows of {full.length}; set rows.per_device=2"
                )
        return kept

    def _needed(self, responses: np.ndarray) -> np.ndarray:
        # The last token of a sequence is only ever a target: it takes no position in the row.
        return self._lengths[responses] - 1

    def _usable_groups(self) -> np.ndarray:
        if self.pairwise:
            per_group = np.add.reduceat(np.append(self._kept_pairs, 0), self._pair_offsets[:-1])
            per_group = np.where(np.diff(self._pair_offsets) > 0, per_group, 0)
            self.drops["group_without_pairs"] = int((per_group == 0).sum())
        else:
            per_group = np.add.reduceat(np.append(self._fits, 0), self._offsets[:-1])
            per_group = np.where(np.diff(self._offsets) > 0, per_group, 0)
            self.drops["group_without_responses"] = int((per_group == 0).sum())
        return np.flatnonzero(per_group > 0)

    def _slot_bounds(self) -> tuple[int, int]:
        responses = np.diff(self._offsets)[self.groups]
        if not self.pairwise:
            return int(responses.max()) * self.groups_per_step, 1
        pairs = int(np.diff(self._pair_offsets)[self.groups].max())
        # A group split by pairs repeats shared responses: at most two slots a pair.
        slots = max(int(responses.max()), 2 * pairs)
        return slots * self.groups_per_step, pairs * self.groups_per_step

    def _repeats(self) -> tuple[int, int]:
        """(groups that are split, responses that are repeated) in an epoch."""
        if not self.pairwise:
            return 0, 0
        # A response fits a row: as many rows as responses hold any group.
        large = [g for g in self.groups if self._offsets[g + 1] - self._offsets[g] > self.shapes[0].rows]
        split = [units for units in map(self._units, large) if len(units) > 1]
        return len(split), sum(map(_repeated, split))

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.groups) // self.groups_per_step)

    @functools.lru_cache(maxsize=2)  # noqa: B019 (a plan lives as long as its run)
    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return self.groups
        rng = np.random.Generator(np.random.Philox(key=[self.seed & (2**64 - 1), epoch]))
        return rng.permutation(self.groups)

    def step(self, k: int) -> StepPlan:
        """The plan of global step k (0-based), over as many epochs as asked for; O(1) in k."""
        epoch, index = divmod(k, self.steps_per_epoch)
        groups = self._order(epoch)[index * self.groups_per_step : (index + 1) * self.groups_per_step]
        by_group = [self._units(int(g)) for g in groups]
        split = [units for units in by_group if self.pairwise and len(units) > 1]
        packed = self._pack([unit for units in by_group for unit in units])
        return StepPlan(k, epoch, groups, tuple(packed), len(split), sum(map(_repeated, split)))

    def _units(self, group: int) -> list[_Unit]:
        if not self.pairwise:
            responses = range(int(self._offsets[group]), int(self._offsets[group + 1]))
            return [self._unit((r,), ()) for r in responses if self._fits[r]]
        pairs = [p for p in range(self._pair_offsets[group], self._pair_offsets[group + 1]) if self._kept_pairs[p]]
        whole = self._unit_of_pairs(pairs)
        if self._fits_in(whole, self.shapes[0]):
            return [whole]
        units: list[_Unit] = []
        taken: list[int] = []
        for p in pairs:  # greedily as many pairs as a micro-batch holds
            if taken and not self._fits_in(self._unit_of_pairs([*taken, p]), self.shapes[0]):
                units.append(self._unit_of_pairs(taken))
                taken = []
            taken.append(p)
        return [*units, self._unit_of_pairs(taken)]

    def _unit_of_pairs(self, pairs: Sequence[int]) -> _Unit:
        used = dict.fromkeys(int(r) for p in pairs for r in (self._chosen[p], self._rejected[p]))
        return self._unit(tuple(sorted(used)), tuple(pairs))

    def _unit(self, responses: tuple[int, ...], pairs: tuple[int, ...]) -> _Unit:
        sizes = tuple(int(s) for s in self._needed(np.asarray(responses)))
        return _Unit(responses, sizes, pairs, sum(sizes))

    def _fits_in(self, unit: _Unit, shape: Shape) -> bool:
        return _place(unit.sizes, np.full(shape.rows, shape.length)) is not None

    def _pack(self, units: list[_Unit]) -> list[MicroBatch]:
        """Micro-batches filled one after the other, each from all the units left."""
        waiting = sorted(units, key=lambda u: (-u.tokens, u.responses))
        packed = []
        while waiting:
            taken = self._best_filling(waiting)
            packed.append(self._micro_batch(taken))
            gone = {id(unit) for unit in taken}
            waiting = [unit for unit in waiting if id(unit) not in gone]
        return packed

    def _best_filling(self, waiting: list[_Unit]) -> list[_Unit]:
        """Units for one full micro-batch: largest first; where that leaves gaps, the best of a few shuffled orders.

        The shuffles are seeded by what is packed, so that the plan stays a pure function.
        """
        best = self._filling(waiting)
        goal = min(GOOD_FILL * self.shapes[0].tokens, sum(unit.tokens for unit in waiting))
        rng = np.random.Generator(np.random.Philox(key=[waiting[0].tokens, len(waiting)]))
        for _ in range(FILL_TRIES):
            if sum(unit.tokens for unit in best) >= goal:
                break
            # Noise on the sizes keeps large units early, where they still find room.
            noise = rng.uniform(0.5, 1.5, len(waiting))
            order = sorted(range(len(waiting)), key=lambda i: -waiting[i].tokens * noise[i])
            best = max(best, self._filling([waiting[i] for i in order]), key=lambda units: sum(u.tokens for u in units))
        return best

    def _filling(self, waiting: list[_Unit]) -> list[_Unit]:
        """The units, in this order, that a full micro-batch takes: each into its fullest rows with room."""
        free = np.full(self.shapes[0].rows, self.shapes[0].length)
        taken = []
        for unit in waiting:
            placed = _place(unit.sizes, free) if unit.tokens <= free.sum() else None
            if placed:
                free = placed[1]
                taken.append(unit)
        return taken

    def _micro_batch(self, units: list[_Unit]) -> MicroBatch:
        """The units in the smallest shape that holds them all; within it, every row is filled from its start."""
        sizes = [size for unit in units for size in unit.sizes]
        shape, rows = self.shapes[0], None
        for shape in sorted(self.shapes, key=lambda s: s.tokens):
            placed = _place(sizes, np.full(shape.rows, shape.length))
            if placed:
                rows = placed[0]
                break
        if rows is None:  # the units went in one by one where all at once do not: take them in the same order
            rows, free = [], np.full(self.shapes[0].rows, self.shapes[0].length)
            shape = self.shapes[0]
            for unit in units:
                placed = _place(unit.sizes, free)
                assert placed is not None
                rows += placed[0]
                free = placed[1]
        used = np.zeros(shape.rows, np.int64)
        placements: list[Placement] = []
        pairs: list[tuple[int, int, int]] = []
        responses = [r for unit in units for r in unit.responses]
        for response, size, row in zip(responses, sizes, rows, strict=True):
            placements.append(Placement(response, row, int(used[row])))
            used[row] += size
        first = 0
        for unit in units:
            slots = {r: first + i for i, r in enumerate(unit.responses)}
            pairs += [(p, slots[int(self._chosen[p])], slots[int(self._rejected[p])]) for p in unit.pairs]
            first += len(unit.responses)
        return MicroBatch(shape, tuple(placements), tuple(pairs), int(used.sum()))


def _repeated(units: Sequence[_Unit]) -> int:
    """How many responses of a split group are there again, in another part of it."""
    responses = [r for unit in units for r in unit.responses]
    return len(responses) - len(set(responses))


def _place(sizes: Sequence[int], free: np.ndarray) -> tuple[list[int], np.ndarray] | None:
    """Best-fit decreasing: (row of each size, free tokens left per row), or None where they do not fit."""
    free = free.copy()
    rows = [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        left = free - sizes[i]
        candidates = np.where(left >= 0, left, np.iinfo(np.int64).max)
        row = int(candidates.argmin())
        if left[row] < 0:
            return None
        rows[i] = row
        free[row] -= sizes[i]
    return rows, free
