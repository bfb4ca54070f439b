"""Rewards and ROUGE of all policies, each on an axis of its own, with their intervals: figures/scores.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from alignlab.report.document import Block, Heading, Picture
from alignlab.report.figures import house_figure
from alignlab.report.summary import Row

PANELS = {
    "gold_reward": "Gold reward",
    "proxy_reward": "Proxy reward",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
}


def score_blocks(rows: Sequence[Row], out: Path, *, colours: Mapping[str, str]) -> list[Block]:
    """The figure, where replies were held to references (evaluation.rouge=true)."""
    if not any("rouge_l" in row.values for row in rows):
        return []
    path = out / "figures" / "scores.png"
    draw_scores(rows, path, colours=colours)
    return [Heading("Rewards and overlap with the references"), Picture(path, "Means with their 95% intervals.")]


def draw_scores(rows: Sequence[Row], path: Path, *, colours: Mapping[str, str]) -> None:
    """A panel per figure that some row has; rows from top to bottom as they come."""
    names = [name for name in PANELS if any(name in row.values for row in rows)]
    columns = min(3, len(names))
    num_lines = -(-len(names) // columns)
    with house_figure(path, width=3.9 * columns, height=(1.1 + 0.36 * len(rows)) * num_lines) as figure:
        axes = figure.subplots(num_lines, columns, squeeze=False)
        for place, axis in enumerate(axes.flatten()):
            if place >= len(names):
                axis.set_visible(False)
                continue
            name = names[place]
            for height, row in enumerate(rows):
                if name not in row.values:
                    continue
                mean = row.values[name]
                ends = [row.values.get(f"{name}_low", mean), row.values.get(f"{name}_high", mean)]
                spread = [[max(0.0, mean - ends[0])], [max(0.0, ends[1] - mean)]]
                axis.errorbar(mean, height, xerr=spread, fmt="o", markersize=7, capsize=3, color=colours[row.need])
            axis.set_title(PANELS[name])
            axis.set_ylim(len(rows) - 0.4, -0.6)
            axis.set_yticks(range(len(rows)), [row.label for row in rows] if place % columns == 0 else [""] * len(rows))
