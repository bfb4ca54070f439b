"""The report on the terminal: its tables, where the files lie, and what to type next."""

import csv
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.errors import DataError
from alignlab.report.tables import TextTable, read_markdown, shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# header, name in summary.csv, digits, percent: what fits into 80 columns
COLUMNS = (
    ("gold reward", "gold_reward", 2, False),
    ("proxy", "proxy_reward", 2, False),
    ("KL", "kl", 1, False),
    ("wins", "win_rate", 0, True),
    ("length", "response_length", 1, False),
    ("distinct-2", "distinct_2", 2, False),
)

MOST_ROWS = 30
"""Rows of a table that are printed; the files have the others."""

LONGEST_WORD = 24
"""Characters; a word in a cell is broken only beyond them. A column that has no room for its words is left out."""


def print_summary(folder: Path, *, console: "Console | None" = None) -> None:
    """Prints folder/report with rich: the tables, warnings or notes, paths and the next commands.

    Raises:
        DataError: `folder` has no report.
    """
    from rich.console import Console
    from rich.text import Text

    out = folder / "report"
    if not (out / "report.json").is_file():
        raise DataError(
            f"{folder}: no report/report.json here; is this the folder of a finished table or study "
            "(task=table, task=study)?"
        )
    about = json.loads((out / "report.json").read_text(encoding="utf-8"))
    console = console or Console()
    if about.get("summary", True):
        console.print(_table(about["title"], out / "tables" / "summary.csv"))
    else:
        console.print(Text(about["title"], style="bold"))
    if about.get("leaderboard"):
        _print_table(console, "leaderboard", out / "tables", skip=("method",))  # the label tells as much, in less room
    for name in about.get("tables", ()):
        _print_table(console, name, out / "tables")
    for label, found in about.get("warnings", {}).items():
        console.print(Text(f"! {label}: {'; '.join(found)}", style="red"))
    for note in about.get("notes", ()):
        console.print(Text(f"- {note}"))
    for name in ("report.html", "report.md", "tables", "figures"):
        if (out / name).exists():
            # soft_wrap: a path that is broken over two lines cannot be copied
            console.print(Text(f"  {out / name}", style="cyan"), soft_wrap=True)
    if about["next_commands"]:
        console.print(Text("Next:", style="bold"))
        for command in about["next_commands"]:
            console.print(Text(f"  {command}"), soft_wrap=True)


def _print_table(console: "Console", name: str, folder: Path, *, skip: Sequence[str] = ()) -> None:
    """tables/<name>.md as far as it fits: whole numbers, at most `MOST_ROWS` rows, and where the rest is."""
    from rich.table import Table
    from rich.text import Text

    text = (folder / f"{name}.md").read_text(encoding="utf-8")
    if not text.startswith("|"):
        console.print(Text(f"{name.replace('_', ' ')}: {text.strip()}"))
        return
    content = read_markdown(text)
    columns = [index for index, header in enumerate(content.headers) if header not in skip]
    kept = _columns_that_fit(content, columns, console.width)
    widths = _widths(content, kept, console.width)
    table = Table(title=name.replace("_", " "), title_justify="left")
    for index, width in zip(kept, widths):
        header = Text("\n".join(textwrap.wrap(content.headers[index], width)))
        justify = "left" if content.is_word(index) else "right"
        table.add_column(header, justify=justify, overflow="fold", width=width)
    for cells in content.cells[:MOST_ROWS]:
        table.add_row(*(Text(cells[index]) for index in kept))
    console.print(table)
    left_out = [content.headers[index] for index in columns if index not in kept]
    if len(content.cells) > MOST_ROWS:
        text = f"  the first {MOST_ROWS} of {len(content.cells)} rows; all are in {folder / name}.csv"
        console.print(Text(text, style="dim"), soft_wrap=True)
    if left_out:
        text = f"  more columns in {folder / name}.csv: {', '.join(left_out)}"
        console.print(Text(text, style="dim"), soft_wrap=True)


def _columns_that_fit(table: TextTable, columns: Sequence[int], width: int) -> list[int]:
    """Those of `columns`, from the left, that fit into `width` characters with their borders; one in any case."""
    kept, taken = [], 1
    for index in columns:
        taken += 3 + _least_width(table, index)
        if kept and taken > width:
            break
        kept.append(index)
    return kept


def _widths(table: TextTable, columns: Sequence[int], width: int) -> list[int]:
    """Characters for each column: what it must have, and for the words what is left over, the shorter served first."""
    widths = {index: _least_width(table, index) for index in columns}
    spare = width - 1 - sum(3 + least for least in widths.values())
    full = {index: max(len(line[index]) for line in table.cells[:MOST_ROWS]) for index in columns}
    wanting = sorted((index for index in columns if full[index] > widths[index]), key=lambda index: full[index])
    for place, index in enumerate(wanting):
        extra = max(0, min(full[index] - widths[index], spare // (len(wanting) - place)))
        widths[index] += extra
        spare -= extra
    return list(widths.values())


def _least_width(table: TextTable, index: int) -> int:
    """Characters of a column's longest part: a header may break at its spaces, words too, and numbers nowhere."""
    cells = [line[index] for line in table.cells[:MOST_ROWS]]
    if table.is_word(index):
        cells = [word[:LONGEST_WORD] for cell in cells for word in cell.split()]
    return max(map(len, [*cells, *table.headers[index].split()]), default=1)


def _table(title: str, path: Path) -> "Table":
    from rich.table import Table
    from rich.text import Text

    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    used = [column for column in COLUMNS if any(row[column[1]] for row in rows)]
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("policy", overflow="fold", min_width=6)  # long names wrap, figures never do
    for header, *_ in used:
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        cells = [_cell(row, name, digits, percent) for _, name, digits, percent in used]
        table.add_row(Text(row["policy"]), *cells)
    return table


def _cell(row: dict[str, str], name: str, digits: int, percent: bool) -> str:
    text = shown(float(row[name]) if row[name] else None, digits=digits, percent=percent)
    if name != "gold_reward" or not row["gold_reward_low"]:
        return text
    low, high = float(row["gold_reward_low"]), float(row["gold_reward_high"])
    return f"{text} \\[{low:.{digits}f}, {high:.{digits}f}]"  # the backslash: rich takes brackets for markup
