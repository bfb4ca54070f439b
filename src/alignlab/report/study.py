"""`build_study`: the findings of a study in, a folder with report.md, report.html, tables/ and figures/ out.

Tables and curves are taken by their attributes, so that a study needs no class of this room.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from alignlab.errors import DataError
from alignlab.report import document
from alignlab.report.cells import Cell, rows_csv, rows_table
from alignlab.report.figures import assign_colours
from alignlab.report.lines import Line, Panel, draw_panels, drawable
from alignlab.report.tables import write_table, write_text

CSS = document.CSS + "td.word { white-space: normal; min-width: 8rem; max-width: 36rem; vertical-align: top; }\n"
"""A study's words may be sentences: they wrap."""


class Table(Protocol):
    """Rows of the same keys, which are the columns in order; `note` is one line: what the numbers are."""

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]: ...

    @property
    def note(self) -> str: ...


class Curve(Protocol):
    """One figure: lines of (x, y) points by name; `x` and `y` are axis labels with units, `note` the caption."""

    @property
    def lines(self) -> Mapping[str, Sequence[tuple[float, float]]]: ...

    @property
    def x(self) -> str: ...

    @property
    def y(self) -> str: ...

    @property
    def log_x(self) -> bool: ...

    @property
    def log_y(self) -> bool: ...

    @property
    def note(self) -> str: ...


def build_study(
    folder: Path,
    *,
    title: str,
    tables: Mapping[str, Table],
    curves: Mapping[str, Curve],
    notes: Sequence[str],
    next_commands: Sequence[str],
) -> None:
    """Writes folder/report/: notes, tables/<name>.{csv,md,tex}, figures/<name>.{png,csv}, all of it in report.*.

    A curve stands below the table of the same name, where there is one.

    Raises:
        DataError: a table whose rows differ in their columns, or two names that would be one file.
    """
    out = folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    blocks: list[document.Block] = []
    if notes:
        blocks += [document.Heading("Findings"), document.Listing(tuple(_line(note) for note in notes))]
    names = _file_names([*tables, *(name for name in curves if name not in tables)])
    for name, file in names.items():
        blocks.append(document.Heading(name.replace("_", " ")))
        blocks += [_table_block(tables[name], out, file)] if name in tables else []
        blocks += [_curve_block(curves[name], out, file)] if name in curves else []
    if next_commands:
        blocks += [document.Heading("Next"), document.Commands(tuple(next_commands))]
    about = {
        "next_commands": list(next_commands),
        "summary": False,
        "tables": [names[name] for name in tables],
        "notes": [_line(note) for note in notes],
    }
    document.write_document(out, title, blocks, about, css=CSS)


def _table_block(table: Table, out: Path, file: str) -> document.Block:
    rows: Sequence[Mapping[str, Cell]] = table.rows
    text, csv_text = rows_table(rows, note=_line(table.note), name=file), rows_csv(rows, name=file)
    if not rows:
        told = f"No rows. {_line(table.note)}".strip()
        for end, content in (("csv", csv_text), ("json", "[]\n"), ("md", told + "\n"), ("tex", f"% {told}\n")):
            write_text(out / "tables" / f"{file}.{end}", content)
        return document.Paragraph(told)
    write_table(out, file, text, csv_text)
    return text


def _curve_block(curve: Curve, out: Path, file: str) -> document.Block:
    """The figure, with its points as CSV beside it."""
    lines = [Line(name, name, [(float(x), float(y)) for x, y in points]) for name, points in curve.lines.items()]
    points: list[dict[str, Cell]] = [{"line": line.label, "x": x, "y": y} for line in lines for x, y in line.points]
    write_text(out / "figures" / f"{file}.csv", rows_csv(points, name=file))
    kept = sum(len(drawable(line.points, log_x=curve.log_x, log_y=curve.log_y)) for line in lines)
    note = _line(curve.note)
    if kept == 0:
        return document.Paragraph(f"No points. {note}".strip())
    if kept < len(points):
        note = (
            f"{note} Left out: {len(points) - kept} of {len(points)} points, which have no place on these axes.".strip()
        )
    panel = Panel(lines, curve.x, curve.y, log_x=curve.log_x, log_y=curve.log_y)
    path = out / "figures" / f"{file}.png"
    draw_panels([panel], path, colours=assign_colours([line.label for line in lines]))
    return document.Picture(path, note or file)


def _file_names(names: Sequence[str]) -> dict[str, str]:
    """Each name as a file's: letters, digits, dots, underscores and dashes."""
    files = {name: re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed" for name in names}
    taken: dict[str, str] = {}
    for name, file in files.items():
        if taken.setdefault(file.lower(), name) != name:
            raise DataError(f"a study's {taken[file.lower()]!r} and {name!r} would both be the file {file}; rename one")
    return files


def _line(text: str) -> str:
    return " ".join(text.split())
