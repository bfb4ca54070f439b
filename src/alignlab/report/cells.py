"""Tables of any columns: rows of words and numbers as ready cells, and as CSV.

For a reader a number has four significant digits, in a CSV all of them.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignlab.errors import DataError
from alignlab.report.document import Block, Heading
from alignlab.report.tables import TextTable, write_table

Cell = str | float | int | None
"""None: nothing was measured."""

LARGEST = 1e7
SMALLEST = 1e-3
"""Beyond these a float is written with an exponent."""


def headed_table(name: str, rows: Sequence[Mapping[str, Cell]], note: str, out: Path, *, heading: str) -> list[Block]:
    """A heading and a table, which is written to out/tables too; nothing where there are no rows."""
    if not rows:
        return []
    table = rows_table(rows, note=note, name=name)
    write_table(out, name, table, rows_csv(rows, name=name))
    return [Heading(heading), table]


def rows_table(rows: Sequence[Mapping[str, Cell]], *, note: str, name: str) -> TextTable:
    """The rows as cells, their keys as headers; a column with a number in it is right aligned.

    Raises:
        DataError: rows of different columns; `name` is the table's, for the message.
    """
    columns = _columns(rows, name)
    cells = tuple(tuple(cell_text(row[column]) for column in columns) for row in rows)
    words = tuple(not any(_is_number(row[column]) for row in rows) for column in columns)
    return TextTable(columns, cells, note, words=words)


def rows_csv(rows: Sequence[Mapping[str, Cell]], *, name: str) -> str:
    """The rows with full precision; an empty cell where nothing was measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = _columns(rows, name)
    if columns:
        writer.writerow(columns)
    # repr: numpy's and torch's floats would write themselves as something else
    writer.writerows([[_exact(row[column]) for column in columns] for row in rows])
    return out.getvalue()


def cell_text(value: Cell) -> str:
    """A cell for a reader: integers whole, floats with four significant digits, words in one line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return " ".join(str(value).split())
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if not SMALLEST <= abs(value) < LARGEST:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"
    return f"{value:.4g}" if abs(value) < 9999.5 else f"{value:.0f}"


def _exact(value: Cell) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else cell_text(value)
    return repr(float(value)) if isinstance(value, float) else str(value)


def _is_number(value: Cell) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _columns(rows: Sequence[Mapping[str, Cell]], name: str) -> tuple[str, ...]:
    columns = tuple(rows[0]) if rows else ()
    for number, row in enumerate(rows):
        if tuple(row) != columns:
            raise DataError(
                f"table {name}: row {number} has the columns {', '.join(row) or 'none'}, row 0 has "
                f"{', '.join(columns) or 'none'}; all rows of a table have the same, in the same order"
            )
    return columns
