"""The leaderboard of an exact world: how much of the optimum each policy reached, with its figures over training.

Every number is an expectation over all responses, so a row's interval is over seeds alone: nothing was sampled.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from alignlab.report import figures, tables
from alignlab.report.collect import EXACT, is_number
from alignlab.report.document import Block, Heading, Picture
from alignlab.report.lines import Line, Panel, draw_panels
from alignlab.report.summary import Row
from alignlab.report.sweeps import LOWEST_SHARE, cut_off, palette, sweep_blocks

OPTIMUM = "the optimum"


def is_contender(row: Row) -> bool:
    """Whether a policy was trained in an exact world. An untrained one is the zero of the scale."""
    return row.records[0].exact is not None and not row.is_untrained


def leaderboard_rows(rows: Sequence[Row]) -> list[Row]:
    """The contenders by their share of the optimum, best first, their exact figures under plain names."""
    found = [with_plain_names(row) for row in rows if is_contender(row)]
    return sorted(found, key=lambda row: -row.values.get("share", -math.inf))


def with_plain_names(row: Row) -> Row:
    """Exact figures without their prefix; they go before sampled ones of the same name."""
    exact = {name.removeprefix(EXACT): value for name, value in row.values.items() if name.startswith(EXACT)}
    return replace(row, values={name: value for name, value in row.values.items() if name not in exact} | exact)


def leaderboard_blocks(rows: Sequence[Row], out: Path, *, colours: Mapping[str, str]) -> list[Block]:
    """The table, the frontier, the swept settings and the curves over training; nothing where there is no contender."""
    board = leaderboard_rows(rows)
    if not board:
        return []
    untrained = [row.label for row in rows if row.records[0].exact is not None and row.is_untrained]
    note = leaderboard_note(board, untrained=untrained)
    table = tables.text_table(board, tables.LEADERBOARD_COLUMNS, first="policy", note=note)
    tables.write_table(out, "leaderboard", table, tables.to_csv(board, tables.LEADERBOARD_CSV, first="policy"))
    blocks: list[Block] = [Heading("Leaderboard"), table]
    blocks += sweep_blocks(board, out, colours=colours)
    blocks += _training_blocks(board, out, colours=colours)
    return blocks + _frontier_blocks(board, out, colours=colours)


def leaderboard_note(board: Sequence[Row], *, untrained: Sequence[str]) -> str:
    """What the numbers of the leaderboard are."""
    several = any(row.num_seeds > 1 for row in board)
    over = "means over seeds; brackets: 95% interval, Student t over seeds" if several else "one run each, no interval"
    parts = [
        f"Exact: expectations over every response, nothing is sampled; {over}",
        "share of optimum: (J - J of the reference) / (J of the optimum - J of the reference)",
        "J: expected reward less beta times the KL to the reference the run is held to",
        "regret: J of the optimum - J, in units of the reward; KL: nats per response",
    ]
    if any("ipo_share" in row.values for row in board):
        parts.append(
            "own optimum: IPO's share of what IPO itself maximises, E[p(y > mu)] - tau KL; "
            "-: the same as the share of optimum"
        )
    if any("seconds" in row.values for row in board):
        parts.append("time: wall time of the training")
    if any("share" not in row.values for row in board):
        parts.append("share of optimum -: not a number in some run, or not worked out")
    if untrained:
        parts.append(f"left out, because untrained: {', '.join(untrained)}")
    return "; ".join(parts) + "."


def _training_blocks(board: Sequence[Row], out: Path, *, colours: Mapping[str, str]) -> list[Block]:
    """Share and regret of every run over its steps."""
    by_need = len({row.need for row in board}) > 1
    shares, regrets = [], []
    for row in board:
        family = row.need if by_need else row.label
        for record in row.records:
            shares.append(Line(row.label, family, _history(record.history, "share", scale=100.0)))
            regrets.append(Line(row.label, family, _history(record.history, "regret")))
    panels = [
        Panel(shares, "step", "share of optimum (%)", level=100.0, floor=LOWEST_SHARE),
        Panel(regrets, "step", "regret (log scale)", log_y=True),
    ]
    panels = [panel for panel in panels if any(len(line.points) > 1 for line in panel.lines)]
    if not panels:
        return []
    path = out / "figures" / "leaderboard.png"
    draw_panels(panels, path, colours=palette(board, colours, labels=[row.label for row in board]))
    lowest = min((y for line in shares for _, y in line.points), default=0.0)
    caption = "Share of the optimum (dashed: all of it) and regret over training, a line per run"
    return [Picture(path, caption + cut_off(lowest) + ".")]


def _history(history: Sequence[Mapping[str, float]], name: str, *, scale: float = 1.0) -> list[tuple[float, float]]:
    found = [(line["step"], line.get(f"{EXACT}{name}")) for line in history if "step" in line]
    return [(float(step), scale * value) for step, value in found if value is not None and is_number(value)]


def _frontier_blocks(board: Sequence[Row], out: Path, *, colours: Mapping[str, str]) -> list[Block]:
    """Reward against KL, both exact, and the optimum where all rows have the same one."""
    shown = [row for row in board if {"kl", "reward"} <= row.values.keys()]
    if not shown:
        return []
    points = [_point(row.label, row.need, row.values) for row in shown]
    optimum = _common_optimum(shown)
    points += [_point(OPTIMUM, OPTIMUM, optimum)] if optimum else []
    path = out / "figures" / "exact_frontier.png"
    figures.reward_kl_frontier(points, path, colours={**colours, OPTIMUM: figures.INK}, measured="exact")
    several = any(row.num_seeds > 1 for row in shown)
    sweep = len({row.need for row in shown}) < len(shown)
    caption = "Expected reward against KL" + ("; bars: 95% intervals over seeds" if several else "")
    return [Picture(path, caption + ("; lines join the settings of one sweep." if sweep else "."))]


def _point(label: str, family: str, values: Mapping[str, float]) -> figures.FrontierPoint:
    (kl, kl_low, kl_high), reward = (
        (values[name], values.get(f"{name}_low", values[name]), values.get(f"{name}_high", values[name]))
        for name in ("kl", "reward")
    )
    return figures.FrontierPoint(label, family, kl, kl_low, kl_high, {"expected reward": reward}, flagged=False)


def _common_optimum(rows: Sequence[Row]) -> dict[str, float] | None:
    """Reward and KL of the optimum, where the rows agree on it (to rounding)."""
    found = [{name: row.values.get(f"optimal_{name}", math.nan) for name in ("reward", "kl")} for row in rows]
    agree = all(math.isclose(each[name], found[0][name], rel_tol=1e-4) for each in found for name in each)
    return found[0] if agree else None
