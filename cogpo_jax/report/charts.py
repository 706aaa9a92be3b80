"""Where the marks of the page's charts lie, in percent of a chart's area; charts.html draws them as HTML and SVG."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A range of values with round ticks that enclose the data."""

    name: str
    ticks: tuple[float, ...]

    @classmethod
    def around(cls, name: str, values: Sequence[float]) -> "Axis":
        """About five round numbers from below the least value to above the largest."""
        low, high = min(values), max(values)
        if not high > low:
            low, high = low - 0.5, high + 0.5
        raw = (high - low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(name, tuple(round(i * step, 12) for i in range(first, last + 1)))

    def at(self, value: float) -> float:
        """Percent of the way from the first tick to the last."""
        return 100 * (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])

    def labels(self) -> Iterator[tuple[float, str]]:
        """(percent, text) of every tick."""
        return ((self.at(tick), f"{tick:,g}" if abs(tick) < 1e6 else f"{tick:g}") for tick in self.ticks)


@dataclass(frozen=True)
class Halves(Axis):
    """Sizes by half octaves, a logarithmic axis: tick k is 2^(k/2); about six whole octaves are written."""

    def labels(self) -> Iterator[tuple[float, str]]:
        every = max(2, 2 * math.ceil(len(self.ticks) / 12))
        return ((self.at(k), f"{2 ** (int(k) // 2):,}") for k in self.ticks if k % every == 0)


@dataclass(frozen=True)
class Plot:
    """A chart with two axes. `kind`: lines, points or steps; `colour`: that of the first series.

    `series`: name -> points, in percent, y upwards; `levels`: dashed lines, (axis, percent).
    """

    kind: str
    x: Axis
    y: Axis
    series: Mapping[str, Sequence[Point]]
    levels: Sequence[tuple[str, float]] = field(default=())
    colour: int = 0


def lines(series: Mapping[str, Sequence[Point]], x_name: str, y_name: str, zero: float | None = None) -> Plot | None:
    """Line chart of named series of (x, y); `zero` draws a dashed level. Empty series are left out."""
    return _plot("lines", series, x_name, y_name, [] if zero is None else [("y", zero)])


def scatter(points: Sequence[Point], x_name: str, y_name: str, colour: int = 0) -> Plot | None:
    """Scatter plot of (x, y), with both zero lines."""
    return _plot("points", {"": points}, x_name, y_name, [("x", 0.0), ("y", 0.0)], colour)


def _plot(
    kind: str,
    series: Mapping[str, Sequence[Point]],
    x_name: str,
    y_name: str,
    levels: Sequence[tuple[str, float]],
    colour: int = 0,
) -> Plot | None:
    series = {name: points for name, points in series.items() if points}
    if not series:
        return None
    xs, ys = zip(*(point for points in series.values() for point in points), strict=True)
    x = Axis.around(x_name, [*xs, *(value for axis, value in levels if axis == "x")])
    y = Axis.around(y_name, [*ys, *(value for axis, value in levels if axis == "y")])
    placed = {name: [(x.at(a), y.at(b)) for a, b in points] for name, points in series.items()}
    return Plot(kind, x, y, placed, [(axis, (x if axis == "x" else y).at(value)) for axis, value in levels], colour)


def histogram(series: Mapping[str, Mapping[int, int]], x_name: str, y_name: str) -> Plot | None:
    """How many items (y) have which size (x, at least 1): overlaid steps, two bins an octave, a logarithmic axis."""
    binned: dict[str, Counter[int]] = {}
    for name, counts in series.items():
        for size, count in counts.items():  # bin k holds the sizes from 2^(k/2) up to 2^((k+1)/2)
            binned.setdefault(name, Counter())[math.floor(2 * math.log2(max(size, 1)) + 1e-9)] += count
    if not binned:
        return None
    places = [k for bins in binned.values() for k in bins]
    x = Halves(x_name, tuple(range(min(places), max(places) + 2)))
    y = Axis.around(y_name, [0, max(max(bins.values()) for bins in binned.values())])
    steps = {
        name: [(0.0, 0.0), *((x.at(k + i), y.at(bins[int(k)])) for k in x.ticks[:-1] for i in (0, 1)), (100.0, 0.0)]
        for name, bins in binned.items()
    }
    return Plot("steps", x, y, steps)


# The flow picture: the height of all flows together, the room between two places, the least height of one, in pixels.
BODY, GAP, LEAST = 250, 12, 20

Columns = Mapping[str, Sequence[str]]
Paths = Mapping[tuple[str, ...], int]
_Node = tuple[int, str]  # (column, place)
_Key = tuple[tuple[_Node, _Node], str]  # from where to where, and the place that gives the colour


@dataclass(frozen=True)
class Place:
    """A place of the flow picture: its column, upper edge and height (pixels), its count and share of all."""

    column: int
    name: str
    top: float
    height: float
    count: int
    share: float


@dataclass(frozen=True)
class Band:
    """What flows from a place to one of the next column; `start`, `end`: its upper edges there, `width`: its height.

    `colour`: the index of its place in the column that gives the colour, None for "".
    """

    column: int
    names: tuple[str, str]
    colour: int | None
    count: int
    start: float
    end: float
    width: float


@dataclass(frozen=True)
class Flows:
    """A flow picture (Sankey), as charts.html draws it."""

    titles: tuple[str, ...]
    places: tuple[Place, ...]
    bands: tuple[Band, ...]
    height: float


def flows(columns: Columns, paths: Paths, coloured_by: int) -> Flows | None:
    """Lays out `paths` (one place of each column -> count) through `columns` (title -> places, top to bottom).

    A place named "" is passed through: it has no bar and no label. A band has the colour of its place in column
    `coloured_by`. Bands of one colour stay together, and few cross.
    """
    sizes, counts = Counter[_Node](), Counter[_Key]()
    for path, count in paths.items():
        if count:
            sizes.update(dict.fromkeys(enumerate(path), count))
            for left, right in pairwise(enumerate(path)):
                counts[(left, right), path[coloured_by]] += count
    if not sizes:
        return None
    total = sum(paths.values())
    order = {(i, name): k for i, names in enumerate(columns.values()) for k, name in enumerate(names)}
    places: dict[_Node, Place] = {}
    below = Counter[int]()
    for i, name in sorted(sizes, key=lambda node: (node[0], order[node])):
        size, top = sizes[i, name], float(below[i])
        places[i, name] = Place(i, name, top, max(size * BODY / total, 1.5), size, size / total)
        below[i] += max(size * BODY / total, LEAST) + GAP  # type: ignore[assignment]
    # Where each band leaves and arrives: below those before it in the order of the place on that side.
    edges: list[dict[_Key, float]] = [{}, {}]
    for side in (0, 1):
        free = {node: place.top for node, place in places.items()}
        for key in sorted(counts, key=lambda k: (order[k[0][side]], order[k[0][1 - side]], order[coloured_by, k[1]])):
            edges[side][key] = free[key[0][side]]
            free[key[0][side]] += counts[key] * BODY / total
    bands = [
        Band(
            left[0],
            (left[1], right[1]),
            order[coloured_by, colour] if colour else None,
            count,
            edges[0][(left, right), colour],
            edges[1][(left, right), colour],
            count * BODY / total,
        )
        for ((left, right), colour), count in counts.items()
    ]
    return Flows(tuple(columns), tuple(places.values()), tuple(bands), float(max(below.values())))
