"""What a study hands to the report: tables, curves, figures for run.json, and sentences."""

from typing import NamedTuple

Cell = str | float | int


class Table(NamedTuple):
    """Rows with the same keys, which are the columns in order."""

    rows: list[dict[str, Cell]]
    note: str  # one line: what the numbers are


class Curve(NamedTuple):
    """One figure: lines of (x, y) points, by name."""

    lines: dict[str, list[tuple[float, float]]]
    x: str  # axis labels, with units
    y: str
    log_x: bool = False
    log_y: bool = False
    note: str = ""  # the caption


class Findings(NamedTuple):
    """What was found out."""

    tables: dict[str, Table]
    curves: dict[str, Curve]
    metrics: dict[str, float]
    notes: list[str]  # what a reader should take home, a sentence each
