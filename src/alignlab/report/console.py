"""The report on the terminal: its table, where the files lie, and what to type next."""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.errors import DataError
from alignlab.report.tables import shown

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


def print_summary(folder: Path, *, console: "Console | None" = None) -> None:
    """Prints folder/report with rich: the table, warnings, paths and the next commands.

    Raises:
        DataError: `folder` has no report.
    """
    from rich.console import Console
    from rich.text import Text

    out = folder / "report"
    if not (out / "report.json").is_file():
        raise DataError(f"{folder}: no report/report.json here; is this the folder of a finished table (task=table)?")
    about = json.loads((out / "report.json").read_text(encoding="utf-8"))
    console = console or Console()
    console.print(_table(about["title"], out / "tables" / "summary.csv"))
    for label, found in about["warnings"].items():
        console.print(Text(f"! {label}: {'; '.join(found)}", style="red"))
    for name in ("report.html", "report.md", "tables", "figures"):
        if (out / name).exists():
            # soft_wrap: a path that is broken over two lines cannot be copied
            console.print(Text(f"  {out / name}", style="cyan"), soft_wrap=True)
    if about["next_commands"]:
        console.print(Text("Next:", style="bold"))
        for command in about["next_commands"]:
            console.print(Text(f"  {command}"), soft_wrap=True)


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
