"""A flow picture (Sankey): bands from place to place, column by column, as wide as the counts they carry."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup, escape

WIDTH, TOP, BODY, LABEL_ROOM = 960, 34, 250, 176
_BAR, _GAP, _LEAST = 10, 12, 20  # width of a place; between two; least height of one, which its label needs

Columns = Mapping[str, Sequence[str]]
Paths = Mapping[tuple[str, ...], int]
_Node = tuple[int, str]  # (column, place)


def flows(columns: Columns, paths: Paths, coloured_by: int) -> Markup:
    """The picture of `paths` (one place of each column -> count) through `columns` (title -> places, top to bottom).

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
    x = [(WIDTH - LABEL_ROOM - _BAR) * i / max(len(columns) - 1, 1) for i in range(len(columns))]
    marks = [
        f'<text class="label" x="{at:.1f}" y="14">{escape(title)}</text>' for at, title in zip(x, columns, strict=True)
    ]
    marks += _bands(paths, order, tops, x, scale, coloured_by)
    for node in sorted(sizes, key=order.__getitem__):
        if node[1]:
            marks += _bar(node, sizes[node], total, tops[node], x[node[0]], scale)
    names = ", ".join(f"{' > '.join(filter(None, path))}: {count}" for path, count in sorted(paths.items()))
    head = f'<svg class="wide" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(names)}">'
    return Markup(head + "".join(marks) + "</svg>")


def _places(columns: Columns, sizes: Mapping[_Node, int], scale: float) -> tuple[dict[_Node, float], float]:
    """The upper edge of every place, and the height of the picture."""
    tops: dict[_Node, float] = {}
    lowest = 0.0
    for i, names in enumerate(columns.values()):
        y = float(TOP)
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
