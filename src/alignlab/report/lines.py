"""Line plots: exact figures over training, figures against a swept setting, the curves of a study.

Colours belong to families (needs, as a rule); lines carry their names at their ends.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignlab.report.figures import COLOURS, FAINT, house_figure, ink
from alignlab.report.labels import name_line_ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMES = 24  # beyond this, names cover each other: then only families are named
MOST_MARKERS = 12  # points of a line that are drawn as dots too
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))  # when colours come round


class Line(NamedTuple):
    """A line of points (x, y); lines of one label (the seeds of a row) are named once."""

    label: str
    family: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[tuple[float, float]] = ()  # ends of an interval at each point
    dash: int = 0  # lines of one family differ in it


class Panel(NamedTuple):
    """One pair of axes."""

    lines: Sequence[Line]
    x: str
    y: str
    title: str = ""
    log_x: bool = False
    log_y: bool = False
    level: float | None = None  # a dashed line across, such as the optimum
    floor: float | None = None  # y below it is not shown


def drawable(points: Sequence[tuple[float, float]], *, log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    """Points that have a place: finite, and above 0 on a logarithmic axis."""
    return [
        (x, y)
        for x, y in points
        if math.isfinite(x) and math.isfinite(y) and not (log_x and x <= 0) and not (log_y and y <= 0)
    ]


def draw_panels(panels: Sequence[Panel], path: Path, *, colours: Mapping[str, str]) -> None:
    """Panels one above the other. Lines without a point that has a place are left out."""
    names = max(len(_groups(panel)) for panel in panels)
    with house_figure(path, width=9.0, height=max(3.4, 0.9 + 0.19 * names) * len(panels)) as figure:
        axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axis, panel in zip(axes, panels):
            _draw(axis, panel, colours)


def _draw(axis: "Axes", panel: Panel, colours: Mapping[str, str]) -> None:
    axis.set_title(panel.title)
    axis.set_xlabel(panel.x)
    axis.set_ylabel(panel.y)
    axis.set_xscale("log" if panel.log_x else "linear")
    axis.set_yscale("log" if panel.log_y else "linear")
    axis.margins(x=0.02)
    if panel.log_x:
        axis.xaxis.set_major_formatter("{x:g}")  # 1000 pairs, not 10 to the third
    if panel.level is not None:
        axis.axhline(panel.level, color=FAINT, linestyle="--", linewidth=1.2)
    rounds = {family: index // len(COLOURS) for index, family in enumerate(colours)}
    for line in panel.lines:
        points = drawable(line.points, log_x=panel.log_x, log_y=panel.log_y)
        if not points:
            continue
        xs, ys = [x for x, _ in points], [y for _, y in points]
        colour, marker = colours[line.family], "o" if len(xs) <= MOST_MARKERS else None
        dash = DASHES[(rounds[line.family] + line.dash) % len(DASHES)]
        axis.plot(xs, ys, color=colour, linestyle=dash, linewidth=1.4, marker=marker, markersize=4)
        if len(line.spread) == len(points):
            lows = [max(0.0, y - low) for y, (low, _) in zip(ys, line.spread)]
            highs = [max(0.0, high - y) for y, (_, high) in zip(ys, line.spread)]
            axis.errorbar(xs, ys, yerr=[lows, highs], fmt="none", ecolor=colour, elinewidth=1.3, capsize=3)
    if panel.floor is not None and axis.get_ylim()[0] < panel.floor:
        axis.set_ylim(bottom=panel.floor)
    groups = _groups(panel)
    inks = [ink(colours[family]) for family, _ in groups.values()]
    name_line_ends(axis, [end for _, end in groups.values()], list(groups), colours=inks, crowded=True)


def _groups(panel: Panel) -> dict[str, tuple[str, float]]:
    """Each name with its family and the height it stands at: the middle of where the lines of that name end."""
    by_family = len({line.label for line in panel.lines}) > MOST_NAMES
    found: dict[str, tuple[str, list[float]]] = {}
    for line in panel.lines:
        points = drawable(line.points, log_x=panel.log_x, log_y=panel.log_y)
        if points:
            name = line.family if by_family else line.label
            found.setdefault(name, (line.family, []))[1].append(points[-1][1])
    return {name: (family, sorted(ends)[len(ends) // 2]) for name, (family, ends) in found.items()}
