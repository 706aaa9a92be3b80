"""Small charts as inline SVG, drawn by hand: a page needs no plotting library, and takes its colours from CSS.

Classes: `c0`..`c5` colour a series (stroke and fill), `grid`, `axis`, `label` and `zero` the rest; template.html has
their colours. Every text is escaped.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 30, 40

Point = tuple[float, float]


@dataclass(frozen=True)
class Dot:
    """One row of `dots`: a value with an optional interval; `strong` marks the row that the reader should look at."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    strong: bool = False


def lines(series: Mapping[str, Sequence[Point]], x_name: str, y_name: str, zero: float | None = None) -> Markup:
    """Line chart of named series of (x, y); `zero` draws a dashed level. Empty series are left out."""
    series = {name: points for name, points in series.items() if points}
    if not series:
        return Markup("")
    values = [y for points in series.values() for _, y in points] + ([] if zero is None else [zero])
    frame = _Frame.around([x for points in series.values() for x, _ in points], values)
    marks = []
    for i, points in enumerate(series.values()):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        marks.append(f'<polyline class="line c{i}" points="{path}"/>')
        if len(points) <= 12:
            marks += [
                f'<circle class="dot c{i}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.6"/>' for x, y in points
            ]
    return _svg(frame.drawn(x_name, y_name, zero) + marks + _legend(list(series)), HEIGHT, f"{y_name} by {x_name}")


def scatter(points: Sequence[Point], x_name: str, y_name: str, colour: int = 0) -> Markup:
    """Scatter plot of (x, y), with both zero lines."""
    if not points:
        return Markup("")
    xs, ys = ([p[k] for p in points] + [0.0] for k in (0, 1))
    frame = _Frame.around(xs, ys)
    marks = [f'<line class="zero" x1="{frame.x(0):.1f}" x2="{frame.x(0):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>']
    marks += [f'<circle class="dot c{colour}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.2"/>' for x, y in points]
    return _svg(frame.drawn(x_name, y_name, 0.0) + marks, HEIGHT, f"{y_name} by {x_name}")


def bars(counts: Mapping[str, int], colour: int = 0) -> Markup:
    """Horizontal bars of counts in the order given."""
    if not counts:
        return Markup("")
    row, most = 26, max(max(counts.values()), 1)
    name_width = min(max(130, 7 * max(map(len, counts)) + 12), 240)
    span = WIDTH - name_width - 60
    marks = []
    for i, (name, count) in enumerate(counts.items()):
        y, length = 6 + i * row, span * count / most
        marks.append(f'<text class="label" x="{name_width - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        marks.append(
            f'<rect class="bar c{colour}" x="{name_width}" y="{y}" width="{length:.1f}" height="{row - 8}" rx="2"/>'
        )
        marks.append(f'<text class="label value" x="{name_width + length + 6:.1f}" y="{y + 14}">{count:,}</text>')
    return _svg(marks, 6 + len(counts) * row, ", ".join(f"{name} {count}" for name, count in counts.items()))


def histogram(series: Mapping[str, Mapping[int, int]], x_name: str, y_name: str) -> Markup:
    """How many items (y) have which size (x, at least 1): overlaid steps, two bins an octave, a logarithmic axis."""
    binned = {name: _half_octaves(counts) for name, counts in series.items() if counts}
    if not binned:
        return Markup("")
    first = min(min(bins) for bins in binned.values())
    last = max(max(bins) for bins in binned.values()) + 1
    y_ticks = _ticks(0, max(max(bins.values()) for bins in binned.values()), 4)
    frame = _Frame((), y_ticks, (first, last), (y_ticks[0], y_ticks[-1]))
    marks = frame.drawn(x_name, y_name, None)
    every = max(2, 2 * math.ceil((last - first) / 2 / 6))
    for k in range(first, last + 1):
        if k % every == 0:
            place = f'x="{frame.x(k):.1f}" y="{HEIGHT - BOTTOM + 16}"'
            marks.append(f'<text class="label" {place} text-anchor="middle">{2 ** (k // 2):,}</text>')
    for i, bins in enumerate(binned.values()):
        steps = "".join(f"V{frame.y(bins[k]):.1f}H{frame.x(k + 1):.1f}" for k in range(first, last))
        marks.append(f'<path class="steps c{i}" d="M{frame.x(first):.1f},{frame.y(0):.1f}{steps}V{frame.y(0):.1f}z"/>')
    return _svg(marks + _legend(list(binned)), HEIGHT, f"{y_name} by {x_name}")


def _half_octaves(counts: Mapping[int, int]) -> Counter[int]:
    """Bin k holds the sizes from 2^(k/2) up to 2^((k+1)/2)."""
    bins = Counter[int]()
    for size, count in counts.items():
        bins[math.floor(2 * math.log2(max(size, 1)) + 1e-9)] += count
    return bins


def stacked(rows: Mapping[str, Mapping[str, int]], parts: Sequence[str]) -> Markup:
    """Horizontal bars of counts, each of `parts` (in that order, class c0, c1, ...)."""
    if not rows:
        return Markup("")
    row, name_width, top = 26, 108, 24
    most = max(max(sum(counts.values()) for counts in rows.values()), 1)
    marks = []
    for i, (name, counts) in enumerate(rows.items()):
        y, x = top + i * row, float(name_width)
        marks.append(f'<text class="label" x="{name_width - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        for k, part in enumerate(parts):
            length = (WIDTH - name_width - 76) * counts.get(part, 0) / most
            if length:
                size = f'x="{x:.1f}" y="{y}" width="{max(length - 1, 0.5):.1f}" height="{row - 8}"'
                marks.append(
                    f'<rect class="bar c{k}" {size} rx="2"><title>{escape(part)}: {counts[part]:,}</title></rect>'
                )
            x += length
        shares = " + ".join(f"{counts[part]:,}" for part in parts if counts.get(part))
        marks.append(f'<text class="label value" x="{x + 6:.1f}" y="{y + 14}">{shares}</text>')
    return _svg(marks + _legend(parts), top + len(rows) * row, ", ".join(rows))


def dots(rows: Sequence[Dot], level: float = 0.5, colour: int = 0) -> Markup:
    """Shares from 0 to 1, one row each, with intervals as whiskers and a dashed line at `level`."""
    if not rows:
        return Markup("")
    step, name_width, bottom = 25, 186, 26
    height = 8 + len(rows) * step + bottom

    def x(value: float) -> float:
        return name_width + (WIDTH - name_width - 48) * value

    base = height - bottom
    marks = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        kind = "zero" if tick == level else "grid"
        marks.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="4" y2="{base}"/>')
        marks.append(f'<text class="label" x="{x(tick):.1f}" y="{base + 17}" text-anchor="middle">{tick:g}</text>')
    for i, dot in enumerate(rows):
        y = 8 + (i + 0.5) * step
        weight = " strong" if dot.strong else " weak"
        marks.append(
            f'<text class="label{weight}" x="{name_width - 14}" y="{y + 4}" text-anchor="end">{escape(dot.name)}</text>'
        )
        if dot.low is not None and dot.high is not None:
            ends = f'x1="{x(dot.low):.1f}" x2="{x(dot.high):.1f}" y1="{y}" y2="{y}"'
            marks.append(f'<line class="whisker c{colour}{weight}" {ends}/>')
        marks.append(
            f'<circle class="dot c{colour}{weight}" cx="{x(dot.value):.1f}" cy="{y}" r="{5 if dot.strong else 4}"/>'
        )
        marks.append(f'<text class="label value" x="{WIDTH - 4}" y="{y + 4}" text-anchor="end">{dot.value:.2f}</text>')
    return _svg(marks, height, ", ".join(f"{dot.name} {dot.value:.2f}" for dot in rows))


@dataclass(frozen=True)
class _Frame:
    """Data coordinates to picture coordinates, with round ticks that enclose the data."""

    x_ticks: tuple[float, ...]
    y_ticks: tuple[float, ...]
    x_range: Point
    y_range: Point

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float]) -> "_Frame":
        y_ticks = _ticks(min(ys), max(ys), 5)
        x_ticks = _ticks(min(xs), max(xs), 5)
        return cls(x_ticks, y_ticks, (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    def drawn(self, x_name: str, y_name: str, zero: float | None) -> list[str]:
        marks = []
        for tick in self.y_ticks:
            y = self.y(tick)
            marks.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            marks.append(f'<text class="label" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for tick in self.x_ticks:
            place = f'x="{self.x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}"'
            marks.append(f'<text class="label" {place} text-anchor="middle">{tick:g}</text>')
        if zero is not None:
            y = self.y(zero)
            marks.append(f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        marks.append(f'<text class="label" x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_name)}</text>')
        marks.append(f'<text class="label" x="4" y="13">{escape(y_name)}</text>')
        return marks


def _ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """About `count` round numbers from below `low` to above `high`."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(i * step, 12) for i in range(first, last + 1))


def _legend(names: Sequence[str]) -> list[str]:
    if len(names) < 2:
        return []
    marks, x = [], float(WIDTH - RIGHT)
    for i, name in reversed(list(enumerate(names))):
        x -= 7.4 * len(name)
        marks.append(f'<text class="label" x="{x:.1f}" y="13">{escape(name)}</text>')
        marks.append(f'<circle class="dot c{i}" cx="{x - 7:.1f}" cy="9" r="4"/>')
        x -= 20
    return marks


def _svg(marks: Sequence[str], height: float, title: str) -> Markup:
    head = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
    return Markup(head + "".join(marks) + "</svg>")


# The flow picture (Sankey): its width, its first place's upper edge, the height of all flows, room for the last labels.
FLOW_WIDTH, FLOW_TOP, BODY, LABEL_ROOM = 960, 34, 250, 176
_BAR, _GAP, _LEAST = 10, 12, 20  # width of a place; between two; least height of one, which its label needs

Columns = Mapping[str, Sequence[str]]
Paths = Mapping[tuple[str, ...], int]
_Node = tuple[int, str]  # (column, place)


def flows(columns: Columns, paths: Paths, coloured_by: int) -> Markup:
    """A flow picture (Sankey) of `paths` (one place of each column -> count).

    It goes through `columns` (title -> places, top to bottom).

    A place named "" is passed through: it has no bar and no label. A band has the colour of its place in column
    `coloured_by`: class c0, c1, ... by that column's order, `rest` for "".
    """
    paths = {path: count for path, count in paths.items() if count}
    if not paths:
        return Markup("")
    total = sum(paths.values())
    scale = BODY / total
    order = {(i, name): k for i, names in enumerate(columns.values()) for k, name in enumerate(names)}
    sizes = Counter[_Node]()
    for path, count in paths.items():
        sizes.update(dict.fromkeys(enumerate(path), count))
    tops, height = _places(columns, sizes, scale)
    x = [(FLOW_WIDTH - LABEL_ROOM - _BAR) * i / max(len(columns) - 1, 1) for i in range(len(columns))]
    marks = [
        f'<text class="label" x="{at:.1f}" y="14">{escape(title)}</text>' for at, title in zip(x, columns, strict=True)
    ]
    marks += _bands(paths, order, tops, x, scale, coloured_by)
    for node in sorted(sizes, key=order.__getitem__):
        if node[1]:
            marks += _bar(node, sizes[node], total, tops[node], x[node[0]], scale)
    names = ", ".join(f"{' > '.join(filter(None, path))}: {count}" for path, count in sorted(paths.items()))
    head = f'<svg class="wide" viewBox="0 0 {FLOW_WIDTH} {height:.0f}" role="img" aria-label="{escape(names)}">'
    return Markup(head + "".join(marks) + "</svg>")


def _places(columns: Columns, sizes: Mapping[_Node, int], scale: float) -> tuple[dict[_Node, float], float]:
    """The upper edge of every place, and the height of the picture."""
    tops: dict[_Node, float] = {}
    lowest = 0.0
    for i, names in enumerate(columns.values()):
        y = float(FLOW_TOP)
        for name in names:
            if (i, name) in sizes:
                tops[i, name] = y
                y += max(sizes[i, name] * scale, _LEAST) + _GAP
        lowest = max(lowest, y)
    return tops, lowest


def _bands(
    paths: Paths,
    order: Mapping[_Node, int],
    tops: Mapping[_Node, float],
    x: Sequence[float],
    scale: float,
    coloured_by: int,
) -> list[str]:
    """The bands between each two columns, stacked so that those of one colour stay together and few cross."""
    bands = Counter[tuple[_Node, _Node, str]]()
    for path, count in paths.items():
        for (i, here), (j, there) in pairwise(enumerate(path)):
            bands[(i, here), (j, there), path[coloured_by]] += count
    leaving, coming = dict(tops), dict(tops)
    where = {}
    for band in sorted(bands, key=lambda b: (order[b[0]], order[b[1]], order[coloured_by, b[2]])):
        where[band], leaving[band[0]] = leaving[band[0]], leaving[band[0]] + bands[band] * scale
    marks = []
    for band in sorted(bands, key=lambda b: (order[b[1]], order[b[0]], order[coloured_by, b[2]])):
        (i, here), (j, there), colour = band
        start, end, wide = where[band], coming[j, there], max(bands[band] * scale, 0.8)
        coming[j, there] += bands[band] * scale
        # A place that is passed through has no bar: the band goes on where it is.
        left, right = x[i] + (_BAR if here else 0), x[j]
        middle = (left + right) / 2
        outline = (
            f"M{left:.1f},{start:.1f}C{middle:.1f},{start:.1f} {middle:.1f},{end:.1f} {right:.1f},{end:.1f}"
            f"v{wide:.1f}C{middle:.1f},{end + wide:.1f} {middle:.1f},{start + wide:.1f} {left:.1f},{start + wide:.1f}z"
        )
        kind = f"c{order[coloured_by, colour]}" if colour else "rest"
        words = " → ".join(filter(None, (here, there)))
        marks.append(f'<path class="flow {kind}" d="{outline}"><title>{escape(words)}: {bands[band]:,}</title></path>')
    return marks


def _bar(node: _Node, count: int, total: int, top: float, x: float, scale: float) -> list[str]:
    height = max(count * scale, 1.5)
    y = top + max(height, _LEAST) / 2
    at = f'class="label" x="{x + _BAR + 6:.1f}"'
    name, number = f'<tspan class="value">{escape(node[1])}</tspan>', f"{count:,}"
    marks = [f'<rect class="place" x="{x:.1f}" y="{top:.1f}" width="{_BAR}" height="{height:.1f}" rx="2"/>']
    if height < 30:  # room for one line
        return [*marks, f'<text {at} y="{y + 4:.1f}">{name} {number}</text>']
    share = f"{number} · {100 * count / total:.0f}%"
    return [*marks, f'<text {at} y="{y - 2:.1f}">{name}</text><text {at} y="{y + 14:.1f}">{share}</text>']
