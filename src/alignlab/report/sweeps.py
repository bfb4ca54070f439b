"""Share of the optimum against a swept setting: what 100, 1000 and 10000 pairs buy.

A setting is swept where one need has at least three numbers of it. Settings that go with it (an interpolation, a
schedule that grows with the data) are part of the sweep; the others part it into lines.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.report.cells import Cell, rows_csv, rows_table
from alignlab.report.collect import is_number
from alignlab.report.document import Block, Picture
from alignlab.report.figures import assign_colours
from alignlab.report.lines import Line, Panel, draw_panels
from alignlab.report.summary import Row
from alignlab.report.tables import write_table

FEWEST = 3
"""Values that make a curve."""

WIDE = 10.0
"""Largest over smallest value beyond which the axis is logarithmic."""

LOWEST_SHARE = -50.0
"""Percent: what is far worse than the reference is below the axes; the tables have it."""

NOTE = "A row for each point of the curve; share: of the optimum (1: all of it), with its 95% interval over seeds."


def sweep_blocks(board: Sequence[Row], out: Path, *, colours: Mapping[str, str]) -> list[Block]:
    """tables/curve and figures/curve; curve-<setting> where several settings are swept."""
    swept = find_sweeps(board)
    blocks: list[Block] = []
    for setting, lines in swept.items():
        name = "curve" if len(swept) == 1 else f"curve-{setting}"
        rows = _table_rows(setting, lines)
        write_table(out, name, rows_table(rows, note=NOTE, name=name), rows_csv(rows, name=name))
        path = out / "figures" / f"{name}.png"
        panel = _panel(setting, lines, by_need=len({row.need for row in board}) > 1)
        draw_panels([panel], path, colours=palette(board, colours, labels=list(lines)))
        several = any(row.num_seeds > 1 for members in lines.values() for row in members)
        caption = f"Share of the optimum (dashed: all of it) against {setting}"
        caption += "; bars: 95% intervals over seeds" if several else ""
        lowest = min(100 * row.values["share"] for members in lines.values() for row in members)
        away = [row.label for row in board if setting in row.settings and not is_number(row.settings[setting])]
        caption += cut_off(lowest) + (f"; no number, so not on the axis: {', '.join(away)}" if away else "")
        blocks.append(Picture(path, caption + "."))
    return blocks


def palette(board: Sequence[Row], colours: Mapping[str, str], *, labels: Sequence[str]) -> Mapping[str, str]:
    """The needs' colours; those of the labels where there is one need only, which has nothing to be told from."""
    return colours if len({row.need for row in board}) > 1 else assign_colours(labels)


def cut_off(lowest: float) -> str:
    """What a caption says where points lie below the axes."""
    return f"; shares below {LOWEST_SHARE:.0f}% are not shown" if lowest < LOWEST_SHARE else ""


def find_sweeps(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Setting -> line label -> its rows in order of the setting, at least three of them."""
    found: dict[str, dict[str, list[Row]]] = {}
    for need in dict.fromkeys(row.need for row in rows):
        members = [row for row in rows if row.need == need and "share" in row.values]
        done: list[str] = []
        for setting in dict.fromkeys(name for row in members for name in row.settings):
            # a setting that goes hand in hand with one before it would give the same curve again
            if any(_goes_with(setting, other, members) and _goes_with(other, setting, members) for other in done):
                continue
            lines = _lines(need, setting, members)
            if lines:
                done.append(setting)
                found.setdefault(setting, {}).update(lines)
    return found


def _lines(need: str, setting: str, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The need's rows that have a number for `setting`, parted by the settings that do not go with it."""
    placed = [row for row in rows if is_number(row.settings.get(setting))]
    others = [name for name in dict.fromkeys(name for row in placed for name in row.settings) if name != setting]
    apart = [name for name in others if not _goes_with(name, setting, placed)]
    lines: dict[str, list[Row]] = {}
    for row in sorted(placed, key=lambda row: row.settings[setting]):
        words = [f"{name}={row.settings[name]}" for name in apart if name in row.settings]
        lines.setdefault(" ".join([need, *words]), []).append(row)
    return {label: line for label, line in lines.items() if len({row.settings[setting] for row in line}) >= FEWEST}


def _goes_with(name: str, setting: str, rows: Sequence[Row]) -> bool:
    """Whether `setting` decides `name`: where the one is the same, so is the other."""
    found: dict[Any, set[str]] = {}
    for row in rows:
        found.setdefault(repr(row.settings.get(setting)), set()).add(repr(row.settings.get(name)))
    return all(len(values) == 1 for values in found.values())


def _panel(setting: str, lines: Mapping[str, Sequence[Row]], *, by_need: bool) -> Panel:
    values = [row.settings[setting] for rows in lines.values() for row in rows]
    log_x = min(values) > 0 and max(values) > WIDE * min(values)
    drawn: list[Line] = []
    for label, rows in lines.items():
        points = [(float(row.settings[setting]), 100 * row.values["share"]) for row in rows]
        ends = [(row.values.get("share_low"), row.values.get("share_high")) for row in rows]
        spread = [
            (y if low is None else 100 * low, y if high is None else 100 * high)
            for (_, y), (low, high) in zip(points, ends)
        ]
        family = rows[0].need if by_need else label
        drawn.append(Line(label, family, points, spread, dash=sum(line.family == family for line in drawn)))
    axis = setting + (" (log scale)" if log_x else "")
    return Panel(drawn, axis, "share of optimum (%)", log_x=log_x, level=100.0, floor=LOWEST_SHARE)


def _table_rows(setting: str, lines: Mapping[str, Sequence[Row]]) -> list[dict[str, Cell]]:
    figures = ("share", "share_low", "share_high", "regret", "regret_low", "regret_high")
    return [
        {"line": label, setting: row.settings[setting]}
        | {name: row.values.get(name) for name in figures}
        | {"seeds": row.num_seeds}
        for label, rows in lines.items()
        for row in rows
    ]
