"""Figures as PNG files: the reward-KL frontier, reward curves, reply lengths, reward-model quality.

Pure functions from data to a file. Colours are those of Okabe and Ito, told apart by colour-blind readers too; lines
and points carry their names directly where they fit. Matplotlib is driven through its Figure class, without pyplot:
no display, no global state.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignlab.report.labels import name_line_ends, place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MOST_NAMES = 14  # beyond this, names on the frontier cover each other
INK, FAINT, ALARM = "#222222", "#9a9a9a", "#B00020"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "lines.linewidth": 2.0,
    "figure.facecolor": "white",
}


def assign_colours(families: Sequence[str]) -> dict[str, str]:
    """A colour per family in the order given, the same in all figures of a report; they repeat after seven."""
    return {family: COLOURS[index % len(COLOURS)] for index, family in enumerate(dict.fromkeys(families))}


class FrontierPoint(NamedTuple):
    """One policy on the reward-KL plane; `low` and `high` are ends of intervals."""

    label: str
    family: str  # points of one family share a colour and a line: a sweep
    kl: float
    kl_low: float
    kl_high: float
    rewards: Mapping[str, tuple[float, float, float]]  # panel ("gold reward") -> mean, low, high
    flagged: bool


class Curve(NamedTuple):
    """One quantity of one run over its steps."""

    label: str
    family: str
    panel: str  # curves of one panel share their axes
    steps: Sequence[float]
    values: Sequence[float]


class Lengths(NamedTuple):
    """Reply lengths of one policy, in tokens."""

    label: str
    family: str
    values: Sequence[int]


class RewardModelPlot(NamedTuple):
    """One reward model's held-out figures; `bins` are (confidence, accuracy, pairs) without the empty ones."""

    label: str
    family: str
    accuracy: float
    low: float
    high: float
    margins: Sequence[float]
    bins: Sequence[tuple[float, float, int]]


def reward_kl_frontier(
    points: Sequence[FrontierPoint], path: Path, *, colours: Mapping[str, str], measured: str = "sampled"
) -> None:
    """Reward against KL, a panel per reward, one above the other, so that a proxy that parts from gold is seen.

    The axis is the square root of the KL, the distance of Gao et al. 2023: near and far policies both have room.
    """
    panels = list(dict.fromkeys(panel for point in points for panel in point.rewards))
    with house_figure(path, width=8.0, height=1.2 + 3.4 * len(panels)) as figure:
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, panel in zip(axes, panels):
            _draw_frontier(axis, panel, [point for point in points if panel in point.rewards], colours)
            axis.set_xscale("function", functions=(_signed_root, _signed_square))
        axes[-1].set_xlabel(f"KL to the reference (nats per sequence, {measured}; square-root scale)")


def _signed_root(kl: Any) -> Any:
    import numpy as np

    return np.sign(kl) * np.sqrt(np.abs(kl))  # a sampled KL near 0 may come out below it


def _signed_square(distance: Any) -> Any:
    import numpy as np

    return np.sign(distance) * np.square(distance)


def reward_curves(curves: Sequence[Curve], path: Path, *, colours: Mapping[str, str]) -> None:
    """Training curves, a panel per quantity, each line named at its end."""
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    columns = min(2, len(panels))
    num_rows = -(-len(panels) // columns)
    with house_figure(path, width=4.9 * columns, height=3.2 * num_rows) as figure:
        axes = figure.subplots(num_rows, columns, squeeze=False).flatten()
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis, panel in zip(axes, panels):
            shown = [curve for curve in curves if curve.panel == panel]
            ends = [_draw_curve(axis, curve, colours[curve.family]) for curve in shown]
            axis.set_title(panel)
            axis.set_xlabel("step")
            axis.margins(x=0.02)
            inks = [ink(colours[curve.family]) for curve in shown]
            name_line_ends(axis, ends, [curve.label for curve in shown], colours=inks)


def length_histogram(lengths: Sequence[Lengths], path: Path, *, colours: Mapping[str, str]) -> None:
    """Reply lengths in tokens, a strip per policy on one axis, with the mean marked."""
    longest = max(max(each.values) for each in lengths)
    width = max(1, -(-longest // 32))  # whole tokens per bar, at most 32 bars
    edges = [start - 0.5 for start in range(0, longest + width + 1, width)]
    with house_figure(path, width=8.0, height=0.9 + 1.05 * len(lengths)) as figure:
        axes = figure.subplots(len(lengths), 1, sharex=True, squeeze=False)[:, 0]
        for axis, each in zip(axes, lengths):
            mean = sum(each.values) / len(each.values)
            weights = [1 / len(each.values)] * len(each.values)
            axis.hist(each.values, bins=edges, weights=weights, color=colours[each.family], alpha=0.85)
            axis.axvline(mean, color=INK, linewidth=1.2, linestyle="--")
            axis.set_title(f"{each.label}   (mean {mean:.1f})", fontsize=11, pad=3)
            axis.set_yticks([])
            axis.grid(visible=False)
            axis.spines["left"].set_visible(False)
            axis.locator_params(axis="x", integer=True)
        axes[-1].set_xlabel("reply length (tokens, stop token included); dashed: mean")


def reward_model_quality(models: Sequence[RewardModelPlot], path: Path, *, colours: Mapping[str, str]) -> None:
    """Left: held-out accuracy with its interval. Middle: margins. Right: calibration."""
    with house_figure(path, width=11.0, height=3.9 + 0.25 * max(0, len(models) - 4)) as figure:
        left, middle, right = figure.subplots(1, 3)
        _draw_accuracy(left, models, colours)
        for model in models:
            if model.margins:
                middle.hist(model.margins, bins=30, histtype="stepfilled", alpha=0.55, color=colours[model.family])
        middle.axvline(0, color=INK, linewidth=1.2, linestyle="--")
        middle.set_title("Margins")
        middle.set_xlabel("score of chosen - score of rejected")
        middle.set_ylabel("pairs")
        right.plot([0.5, 1], [0.5, 1], color=FAINT, linestyle="--", linewidth=1.2)
        for model in models:
            confidence, accuracy = [each[0] for each in model.bins], [each[1] for each in model.bins]
            largest = max((each[2] for each in model.bins), default=1)
            right.plot(confidence, accuracy, color=colours[model.family], linewidth=1.2)
            sizes = [20 + 120 * each[2] / largest for each in model.bins]
            right.scatter(confidence, accuracy, s=sizes, color=colours[model.family], zorder=3)
        right.set_title("Calibration")
        right.set_xlabel("confidence, sigmoid(|margin|)")
        right.set_ylabel("share right (dot size: pairs)")
        right.set_xlim(0.49, 1.01)


def _draw_frontier(axis: "Axes", panel: str, points: Sequence[FrontierPoint], colours: Mapping[str, str]) -> None:
    for family in dict.fromkeys(point.family for point in points):
        members = sorted((point for point in points if point.family == family), key=lambda point: point.kl)
        if len(members) > 1:
            xs, ys = [point.kl for point in members], [point.rewards[panel][0] for point in members]
            axis.plot(xs, ys, color=colours[family], alpha=0.5, linewidth=1.4, zorder=2)
    for point in points:
        mean, low, high = point.rewards[panel]
        axis.errorbar(
            point.kl,
            mean,
            xerr=[[max(0.0, point.kl - point.kl_low)], [max(0.0, point.kl_high - point.kl)]],
            yerr=[[max(0.0, mean - low)], [max(0.0, high - mean)]],
            fmt="o",
            markersize=8,
            capsize=3,
            elinewidth=1.3,
            color=colours[point.family],
            zorder=3,
        )
        if point.flagged:
            axis.plot(point.kl, mean, "o", markersize=17, markerfacecolor="none", markeredgecolor=ALARM, zorder=4)
    axis.set_title(panel[:1].upper() + panel[1:])
    axis.margins(0.12)
    place_labels(
        axis,
        [(point.kl, point.rewards[panel][0]) for point in points],
        [point.label + (" (suspect)" if point.flagged else "") if _named(point, points) else "" for point in points],
        colours=[ALARM if point.flagged else ink(colours[point.family]) for point in points],
    )


def _named(point: FrontierPoint, points: Sequence[FrontierPoint]) -> bool:
    """All points are named while there is room; then the suspects and the two ends of every sweep."""
    kls = [each.kl for each in points if each.family == point.family]
    return len(points) <= MOST_NAMES or point.flagged or point.kl in (min(kls), max(kls))


def _draw_curve(axis: "Axes", curve: Curve, colour: str) -> float:
    """The raw values faintly and their running mean over a twentieth of the curve; returns where that ends."""
    reach = len(curve.values) // 40
    smooth = []
    for index in range(len(curve.values)):
        # The window shrinks at both ends alike, so that no end leans on one side.
        span = min(reach, index, len(curve.values) - 1 - index)
        around = curve.values[index - span : index + span + 1]
        smooth.append(sum(around) / len(around))
    if reach:
        axis.plot(curve.steps, curve.values, color=colour, linewidth=0.8, alpha=0.35)
    axis.plot(curve.steps, smooth, color=colour, linewidth=1.8, marker="o" if len(smooth) == 1 else None)
    return smooth[-1]


def _draw_accuracy(axis: "Axes", models: Sequence[RewardModelPlot], colours: Mapping[str, str]) -> None:
    for position, model in enumerate(models):
        spread = [[model.accuracy - model.low], [model.high - model.accuracy]]
        axis.errorbar(
            model.accuracy, position, xerr=spread, fmt="o", markersize=8, capsize=3, color=colours[model.family]
        )
    axis.axvline(0.5, color=FAINT, linestyle="--", linewidth=1.2)
    axis.set_title("Accuracy")
    axis.set_xlabel("share of pairs right (dashed: chance)")
    axis.set_xlim(min(0.45, *(model.low - 0.03 for model in models)), 1.02)
    axis.set_ylim(-0.7, len(models) - 0.3)
    axis.set_yticks([])
    place_labels(
        axis,
        [(model.accuracy, position) for position, model in enumerate(models)],
        [f"{model.label}  {100 * model.accuracy:.1f}%" for model in models],
        colours=[ink(colours[model.family]) for model in models],
    )


def ink(colour: str) -> str:
    """The colour of a name beside its mark: darker, because thin letters need more contrast than dots."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(part * 0.68):02x}" for part in (red, green, blue))


@contextmanager
def house_figure(path: Path, *, width: float, height: float) -> "Iterator[Figure]":
    """An empty figure in the house style, saved to `path` at the end."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
        FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})  # no version inside: the same data gives the same bytes
