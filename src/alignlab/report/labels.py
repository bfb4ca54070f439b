"""Names beside points, without a legend and, as far as there is room, without overlap."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

# Where a name may stand, in points from its point: near places first, then farther ones, right before left.
PLACES = [
    (dx, dy * far)
    for far in (1.0, 2.2, 3.6, 5.0)
    for dx, dy in ((11.0, 7.0), (-11.0, 7.0), (11.0, -14.0), (-11.0, -14.0), (0.0, 12.0), (0.0, -19.0))
]


def place_labels(
    axis: "Axes", points: Sequence[tuple[float, float]], labels: Sequence[str], *, colours: Sequence[str]
) -> None:
    """Writes each label at the first place where it leaves the axes least and overlaps no earlier label or point.

    The limits of the axes are fixed by this call: draw the data first.
    """
    _lay_out(axis)  # boxes can be compared only when everything has its place
    axis.set_xlim(axis.get_xlim())
    axis.set_ylim(axis.get_ylim())
    taken = [_around(axis, point) for point in points]
    for point, label, colour in zip(points, labels, colours):
        text = axis.annotate(
            label, point, xytext=(0, 0), textcoords="offset points", color=colour, fontsize=10, va="bottom", zorder=5
        )
        costs = []
        for place in PLACES:
            _move(text, place)
            costs.append(_cost(axis, text.get_window_extent(), taken))
        _move(text, PLACES[costs.index(min(costs))])
        taken.append(text.get_window_extent())


def name_line_ends(
    axis: "Axes",
    ends: Sequence[float],
    labels: Sequence[str],
    *,
    colours: Sequence[str],
    crowded: bool = False,
) -> None:
    """Writes each line's name right of the axes at the height of its last value, pushed apart where they would meet.

    They are pushed up, and down again together where the highest would stand above the axes; with `crowded`, both ways
    and no farther than they must. A value beyond the axes has its name at their edge.
    """
    _lay_out(axis)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    gap = 15 / max(1.0, axis.bbox.height)  # a line of text, as a share of the axes' height
    if axis.get_yscale() == "log":
        low, high, ends = math.log(low), math.log(high), [math.log(end) for end in ends]
    heights = [min(max((end - low) / (high - low), 0.0), 1.0) for end in ends]
    order = sorted(range(len(ends)), key=lambda index: heights[index])
    if crowded:
        placed = spread([heights[index] for index in order], gap)
    else:
        placed = []
        for index in order:
            placed.append(max(heights[index], placed[-1] + gap if placed else heights[index]))
        surplus = max(0.0, placed[-1] - 1.0) if placed else 0.0
        placed = [height - surplus for height in placed]
    for index, height in zip(order, placed):
        axis.annotate(
            labels[index],
            (1.02, height),
            xycoords="axes fraction",
            color=colours[index],
            fontsize=10,
            va="center",
            annotation_clip=False,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights in [0, 1] moved at least `gap` apart by the least sum of squares, within [0, 1] if they fit.

    Heights less their number of gaps must ascend: a run of them that does not is pooled at its mean.
    """
    pools: list[tuple[float, int]] = []  # mean, count
    for number, height in enumerate(heights):
        mean, count = height - number * gap, 1
        while pools and pools[-1][0] >= mean:
            before, size = pools.pop()
            mean, count = (before * size + mean * count) / (size + count), size + count
        pools.append((mean, count))
    room = max(0.0, 1.0 - (len(heights) - 1) * gap)
    flat = [min(max(mean, 0.0), room) for mean, count in pools for _ in range(count)]
    return [height + number * gap for number, height in enumerate(flat)]


def _move(text: "Annotation", place: tuple[float, float]) -> None:
    """Puts a name there, growing away from its point."""
    text.set_position(place)
    text.set_horizontalalignment("left" if place[0] > 0 else "right" if place[0] < 0 else "center")


def _lay_out(axis: "Axes") -> None:
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()


def _around(axis: "Axes", point: tuple[float, float]) -> "Bbox":
    """The few pixels that a marker covers."""
    from matplotlib.transforms import Bbox

    x, y = axis.transData.transform(point)
    return Bbox.from_extents(x - 7, y - 7, x + 7, y + 7)


def _cost(axis: "Axes", box: "Bbox", taken: Sequence["Bbox"]) -> float:
    """Pixels of overlap with what is there, and of text outside the axes."""
    from matplotlib.transforms import Bbox

    shared = [Bbox.intersection(box, other) for other in taken]
    overlap = sum(each.width * each.height for each in shared if each is not None)
    inside = Bbox.intersection(box, axis.bbox)
    outside = box.width * box.height - (inside.width * inside.height if inside is not None else 0.0)
    return overlap + outside
