"""Tables as text: the summary of policies and of reward models in markdown, LaTeX and CSV.

CSV holds full precision under the metric's own names, an empty cell where nothing was measured; markdown and LaTeX
hold what a reader wants, with intervals in brackets.
"""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alignlab.report.summary import Row


class Column(NamedTuple):
    """How a figure is shown."""

    name: str
    header: str
    digits: int  # after the point
    interval: bool = False
    percent: bool = False


class TextTable(NamedTuple):
    """Ready cells; the first `num_words` columns are words (left aligned), the others numbers (right aligned).

    Where `words` is given it says so column by column instead.
    """

    headers: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    note: str  # one line: what the numbers are
    num_words: int = 2
    words: tuple[bool, ...] = ()

    def is_word(self, index: int) -> bool:
        """Whether that column is of words."""
        return self.words[index] if self.words else index < self.num_words


POLICY_COLUMNS = (
    Column("gold_reward", "gold reward", 2, interval=True),
    Column("proxy_reward", "proxy reward", 2, interval=True),
    Column("kl", "KL (nats)", 1),
    Column("win_rate", "win rate", 0, interval=True, percent=True),
    Column("win_rate_length_controlled", "win rate (LC)", 0, interval=True, percent=True),
    Column("response_length", "length", 1),
    Column("distinct_2", "distinct-2", 2),
    Column("perplexity_reference", "perplexity", 1),
    Column("eos_rate", "EOS rate", 0, percent=True),
    Column("quality_rate", "quality", 0, percent=True),
    Column("pair_margin", "pair margin (nats)", 1),
    Column("implicit_margin", "gained", 1, interval=True),
    Column("implicit_accuracy", "pairs moved right", 0, interval=True, percent=True),
    Column("chosen_perplexity", "perplexity of chosen", 1),
    *(Column(f"rouge_{kind}", f"ROUGE-{kind.upper()}", 3) for kind in "12l"),
)
REWARD_COLUMNS = (
    Column("accuracy", "accuracy", 1, interval=True, percent=True),
    Column("margin", "margin", 2, interval=True),
    Column("calibration_error", "calibration error", 3),
    Column("loss", "loss", 3),
    Column("num_pairs", "pairs", 0),
    Column("likelihood_gap", "likelihood gap", 4),
    Column("share", "share of optimum", 1, percent=True),
)
LEADERBOARD_COLUMNS = (
    Column("share", "share of optimum", 1, interval=True, percent=True),
    Column("regret", "regret", 4),
    Column("kl", "KL (nats)", 3),
    Column("reward", "reward", 3),
    Column("ipo_share", "own optimum", 1, percent=True),
    Column("seconds", "time (s)", 1),
)
POLICY_CSV = (
    *("gold_reward", "gold_reward_low", "gold_reward_high", "proxy_reward", "kl", "win_rate"),
    *("response_length", "distinct_2", "perplexity_reference", "eos_rate", "seeds"),
    *("proxy_reward_low", "proxy_reward_high", "kl_low", "kl_high", "win_rate_low", "win_rate_high"),
    *("distinct_1", "repetition_rate", "entropy", "num_prompts"),
    *("pair_margin", "pair_margin_low", "pair_margin_high", "pair_accuracy"),
    *("implicit_margin", "implicit_margin_low", "implicit_margin_high"),
    *("implicit_accuracy", "implicit_accuracy_low", "implicit_accuracy_high"),
    *("chosen_perplexity", "rejected_perplexity", "num_pairs"),
    *(f"rouge_{kind}{end}" for kind in "12l" for end in ("", "_low", "_high")),
    *("quality_rate", "quality_rate_low", "quality_rate_high"),
)
REWARD_CSV = (
    *("accuracy", "accuracy_low", "accuracy_high", "margin", "margin_low", "margin_high"),
    *("calibration_error", "loss", "num_pairs", "seeds"),
)
REWARD_EXACT_CSV = ("likelihood_gap", "likelihood_gap_low", "likelihood_gap_high", "share", "share_low", "share_high")
LEADERBOARD_CSV = (
    *("share", "share_low", "share_high", "regret", "regret_low", "regret_high", "kl", "kl_low", "kl_high"),
    *("reward", "reward_low", "reward_high", "objective", "ipo_share", "ipo_share_low", "ipo_share_high"),
    *("optimal_objective", "optimal_reward", "optimal_kl", "seconds", "seeds"),
)
LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\~{}", "^": r"\^{}"}


def text_table(rows: Sequence[Row], columns: Sequence[Column], *, first: str, note: str) -> TextTable:
    """Rows as cells; columns that no row has a value for are left out, and so is `seeds` where all have one."""
    used = [column for column in columns if any(column.name in row.values for row in rows)]
    several = any(row.num_seeds > 1 for row in rows)
    headers = (first, "method", *(column.header for column in used), *(("seeds",) if several else ()))
    cells = tuple(
        (
            row.label,
            row.method or "-",
            *(_cell(row, column) for column in used),
            *((str(row.num_seeds),) if several else ()),
        )
        for row in rows
    )
    return TextTable(headers, cells, note)


def to_markdown(table: TextTable) -> str:
    """A GitHub table padded to read well as plain text, with its note under it."""
    lines = [table.headers, *table.cells]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[index]) for line in escaped)) for index in range(len(table.headers))]
    rules = ["-" * width if table.is_word(index) else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    padded = [
        " | ".join(
            cell.ljust(width) if table.is_word(index) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths))
        )
        for line in [escaped[0], rules, *escaped[1:]]
    ]
    body = "\n".join(f"| {line} |" for line in padded)
    return f"{body}\n\n{table.note}\n"


def read_markdown(text: str) -> TextTable:
    """The table that `to_markdown` wrote."""
    body, _, note = text.partition("\n\n")
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in body.splitlines()]
    headers, rules, *cells = [tuple(cell.strip().replace("\\|", "|") for cell in line) for line in lines]
    return TextTable(headers, tuple(cells), note.strip(), words=tuple(not rule.endswith(":") for rule in rules))


def to_latex(table: TextTable) -> str:
    """A booktabs tabular (needs \\usepackage{booktabs}), with the note as a comment above it."""
    layout = "".join("l" if table.is_word(index) else "r" for index in range(len(table.headers)))
    lines = [
        f"% {table.note}",
        f"\\begin{{tabular}}{{{layout}}}",
        "\\toprule",
        _latex_line(table.headers),
        "\\midrule",
        *(_latex_line(line) for line in table.cells),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(rows: Sequence[Row], names: Sequence[str], *, first: str) -> str:
    """`first` (the label), method and `names` as columns; numbers as Python writes them, empty where unmeasured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([first, "method", *names])
    for row in rows:
        values = row.values | {"seeds": row.num_seeds}
        writer.writerow([row.label, row.method or "", *(values.get(name, "") for name in names)])
    return out.getvalue()


def to_json(csv_text: str) -> str:
    """A CSV of ours as a JSON list of objects: numbers as numbers, null for an empty cell and what is not finite."""
    head, *lines = csv.reader(io.StringIO(csv_text))
    rows = [{name: cell if name == head[0] else _read_cell(cell) for name, cell in zip(head, line)} for line in lines]
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _read_cell(cell: str) -> str | float | int | None:
    for kind in (int, float):
        try:
            value = kind(cell)
        except ValueError:
            continue
        return value if math.isfinite(value) else None
    return cell or None


def write_table(out: Path, name: str, table: TextTable, csv_text: str) -> None:
    """Writes out/tables/<name>.csv, .json (what the CSV says), .md and .tex."""
    write_text(out / "tables" / f"{name}.csv", csv_text)
    write_text(out / "tables" / f"{name}.json", to_json(csv_text))
    write_text(out / "tables" / f"{name}.md", to_markdown(table))
    write_text(out / "tables" / f"{name}.tex", to_latex(table))


def write_text(path: Path, text: str) -> None:
    """Writes a file and, where it is missing, its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def shown(value: float | None, *, digits: int, percent: bool = False) -> str:
    """A number for a reader: `-` where there is none."""
    if value is None:
        return "-"
    return f"{100 * value:.{digits}f}%" if percent else f"{value:.{digits}f}"


def _cell(row: Row, column: Column) -> str:
    text = shown(row.values.get(column.name), digits=column.digits, percent=column.percent)
    low, high = row.values.get(f"{column.name}_low"), row.values.get(f"{column.name}_high")
    if not column.interval or low is None or high is None:
        return text
    scale = 100 if column.percent else 1
    return f"{text} [{scale * low:.{column.digits}f}, {scale * high:.{column.digits}f}]"


def _latex_line(cells: Sequence[str]) -> str:
    escaped = ["".join(LATEX.get(letter, letter) for letter in cell.replace("\\", "/")) for cell in cells]
    return " & ".join(escaped) + r" \\"
