"""A claim of the kind "PPO > SFT > base" held to the evaluations: each step's difference with its 95% interval.

One seed: paired differences over the prompts that both policies answered (Student t), where the figure is known of each
reply. Several seeds: differences between runs of the same seed (Student t over seeds). Else, for a figure of a whole
evaluation (ROUGE, accuracy): the difference of the means, its interval from theirs as if they were independent.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from alignlab.errors import DataError
from alignlab.report.cells import Cell, rows_csv, rows_table
from alignlab.report.document import Block, Heading, Paragraph
from alignlab.report.summary import Row
from alignlab.report.tables import write_table
from alignlab.statistics import Interval, match_samples, mean_interval

Verdict = Literal["holds", "does not hold", "is not decided"]
NAME = "ordering"
NOTE = (
    "Each step's difference, better - worse, with its 95% interval: over the prompts that both answered, or over seeds "
    "where there are several. A step holds where the interval lies above 0, and does not where it lies below."
)


def check_ordering(rows: Sequence[Row], order: Sequence[str], figure: str) -> list[Row]:
    """The rows of `order`, the best first; a name is a need's, or a row's label where the need has several rows.

    Raises:
        DataError: fewer than two names, a name that is no row or several, or a row without the figure.
    """
    if len(order) < 2:
        raise DataError(f"task.ordering={list(order)}: an ordering needs two names or more, the best first")
    found = []
    for name in order:
        named = [row for row in rows if name in (row.need, row.label)]
        if len(named) != 1:
            known = ", ".join(row.label for row in rows)
            raise DataError(f"task.ordering: {name} names {len(named)} rows of the report; expected one of {known}")
        if figure not in named[0].values:
            known = ", ".join(key for key in named[0].values if not key.endswith(("_low", "_high")))
            raise DataError(f"task.ordering_by={figure}: {name} has no such figure; it has {known}")
        found += named
    return found


def difference(better: Row, worse: Row, figure: str) -> Interval:
    """better - worse with its 95% interval; which interval is said at the head of this module."""
    ours, theirs = ({record.seed: record for record in row.records} for row in (better, worse))
    seeds = [seed for seed in ours if seed in theirs]
    if len(seeds) > 1:
        return mean_interval([ours[seed].metrics[figure] - theirs[seed].metrics[figure] for seed in seeds])
    mine, others = match_samples(better.records[0].samples, worse.records[0].samples, field=figure)
    if better.num_seeds == worse.num_seeds == 1 and len(mine) > 1:
        return mean_interval([one - other for one, other in zip(mine, others)])
    mean = better.values[figure] - worse.values[figure]
    half = math.hypot(*(_half_width(row, figure) for row in (better, worse)))
    return Interval(mean, mean - half, mean + half, half / 1.96, 1)  # 1.96: the normal quantile


def verdict_of(steps: Sequence[Interval]) -> Verdict:
    """Of all steps together: one that is reversed refutes the claim, one whose interval holds 0 leaves it open."""
    if any(step.high < 0 for step in steps):
        return "does not hold"
    return "holds" if all(step.low > 0 for step in steps) else "is not decided"


def ordering_blocks(
    rows: Sequence[Row], order: Sequence[str], figure: str, out: Path
) -> tuple[list[Block], dict[str, float]]:
    """The claim in a sentence and a table (tables/ordering.*), and ordering/holds: 1, 0, or 0.5 where it is open."""
    if not order:
        return [], {}
    chosen = check_ordering(rows, order, figure)
    pairs = list(pairwise(chosen))
    steps = [difference(*pair, figure) for pair in pairs]
    lines = [_line(*pair, step) for pair, step in zip(pairs, steps)]
    table = rows_table(lines, note=NOTE, name=NAME)
    write_table(out, NAME, table, rows_csv(lines, name=NAME))
    verdict, named = verdict_of(steps), figure.replace("_", " ")
    told = "; ".join(
        f"{better.label} - {worse.label} {step.mean:.2f} [{step.low:.2f}, {step.high:.2f}]"
        for (better, worse), step in zip(pairs, steps)
    )
    sentence = f"{' > '.join(row.label for row in chosen)} by {named}: {verdict} ({told})."
    score = {"holds": 1.0, "does not hold": 0.0, "is not decided": 0.5}[verdict]
    return [Heading("Claimed ordering"), Paragraph(sentence), table], {"ordering/holds": score}


def _line(better: Row, worse: Row, step: Interval) -> dict[str, Cell]:
    return {
        "better": better.label,
        "worse": worse.label,
        "difference": step.mean,
        "low": step.low if math.isfinite(step.low) else None,
        "high": step.high if math.isfinite(step.high) else None,
        "verdict": verdict_of([step]),
    }


def _half_width(row: Row, figure: str) -> float:
    """Half of a row's interval; NaN where it has none, which leaves the claim open."""
    low, high = row.values.get(f"{figure}_low", math.nan), row.values.get(f"{figure}_high", math.nan)
    return (high - low) / 2
