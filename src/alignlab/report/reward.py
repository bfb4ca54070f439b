"""What a report says of reward models beyond one line each: parts of the data, length, styles; and their own report.

Read from eval/reward.json as it stands on disk (see `evaluate/saving.py`), so that a report needs no model.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.report import figures
from alignlab.report.cells import Cell, headed_table
from alignlab.report.document import Block, Commands, Heading, Picture, write_document
from alignlab.report.figures import RewardModelPlot
from alignlab.report.tables import shown

MODEL = "reward model"
LENGTH_NOTE = (
    "Lengths in characters. Longer wins: how often the longer reply is the chosen one, equal lengths half; "
    "the accuracies are the reward model's, on all pairs, on those whose chosen reply is the longer one and on those "
    "where it is the shorter one; correlation: Pearson's, of margin and length of chosen - length of rejected."
)
SUBSET_NOTE = (
    "Ties half; low and high: 95% interval (Wilson over pairs, or over prompts where pairs share one; of several "
    "seeds the means, Student t over seeds). "
    "Longer wins: how often the longer reply is the chosen one."
)
STYLE_NOTE = (
    "Share of pairs right, by the style of the chosen reply (row) and of the rejected one (column); 0 is the plainest. "
    "Easy: below the diagonal, normal: on it, hard: above it (Liu et al. 2024); ties half."
)
PICTURE = "Accuracy with its 95% interval, margins, and calibration; dots on the dashed diagonal are calibrated."


def build_reward_report(folder: Path, name: str) -> None:
    """Writes folder/report/ from folder/eval/reward.json; `name` is what the reward model is called."""
    content = json.loads((folder / "eval" / "reward.json").read_text(encoding="utf-8"))
    out = folder / "report"
    note = "95% intervals over pairs, over prompts where pairs have styles; ties half; calibration error: ECE."
    headline = headed_table("reward", [_headline(name, content["metrics"])], note, out, heading="Held-out pairs")
    path = out / "figures" / "reward_model.png"
    figures.reward_model_quality([plot_of(name, content)], path, colours=figures.assign_colours([name]))
    blocks = [*headline, Picture(path, PICTURE), *reward_tables({name: content}, out)]
    tables = [file.stem for file in sorted((out / "tables").glob("*.md"))]
    next_commands = (f"alignlab report {folder}",)
    blocks += [Heading("Next"), Commands(next_commands)]
    about = {"summary": False, "tables": tables, "notes": [], "next_commands": list(next_commands)}
    write_document(out, f"Reward model {name}", blocks, about)


def plot_of(name: str, content: Mapping[str, Any]) -> RewardModelPlot:
    """What the figure shows of one evaluation."""
    metrics, accuracy = content["metrics"], content["metrics"]["accuracy"]
    bins = [(each["confidence"], each["accuracy"], each["count"]) for each in content["calibration"] if each["count"]]
    margins = [margin for margin in content["margins"] if margin is not None]
    low, high = metrics.get("accuracy_low", accuracy), metrics.get("accuracy_high", accuracy)
    return RewardModelPlot(name, name, accuracy, low, high, margins, bins)


def reward_tables(contents: Mapping[str, Mapping[str, Any]], out: Path) -> list[Block]:
    """Headings and tables of all evaluations (label -> eval/reward.json) that have what they show; also as files.

    Of a row of several seeds: see `content_over_seeds`. An evaluation that was written without facts of its pairs has
    none.
    """
    known = {label: content for label, content in contents.items() if "longer_accuracy" in content.get("metrics", {})}
    lengths = [_length_row(label, content["metrics"]) for label, content in known.items()]
    parts = [_part_row(label, part) for label, content in known.items() for part in content["subsets"]]
    styled = {label: content for label, content in known.items() if content["styles"]}
    size = max((len(content["styles"]) for content in styled.values()), default=0)
    styles = [row for label, content in styled.items() for row in _style_rows(label, content, size)]
    return [
        *headed_table("reward_subsets", _filled(parts), SUBSET_NOTE, out, heading="Parts of the pairs"),
        *headed_table("reward_styles", _filled(styles), STYLE_NOTE, out, heading="Styles of the replies"),
        *headed_table("reward_length", _filled(lengths), LENGTH_NOTE, out, heading="Length"),
    ]


def _headline(label: str, metrics: Mapping[str, float]) -> dict[str, Cell]:
    return {
        MODEL: label,
        "accuracy": _interval(metrics, "accuracy", digits=1, percent=True),
        "margin": _interval(metrics, "margin", digits=3),
        "calibration error": metrics["calibration_error"],
        "loss": metrics["loss"],
        "pairs": int(metrics["num_pairs"]),
    }


def _length_row(label: str, metrics: Mapping[str, float]) -> dict[str, Cell]:
    return {
        MODEL: label,
        "longer wins": metrics["longer_accuracy"],
        "accuracy": metrics["accuracy"],
        "chosen longer": metrics.get("accuracy_chosen_longer"),
        "pairs longer": int(metrics["num_chosen_longer"]),
        "chosen shorter": metrics.get("accuracy_chosen_shorter"),
        "pairs shorter": int(metrics["num_chosen_shorter"]),
        "correlation": metrics.get("margin_length_correlation"),
    }


def _part_row(label: str, part: Mapping[str, Any]) -> dict[str, Cell]:
    metrics = part["metrics"]
    return {
        MODEL: label,
        "part": part["name"],
        "pairs": int(metrics["num_pairs"]),
        "accuracy": metrics["accuracy"],
        "low": metrics.get("accuracy_low"),
        "high": metrics.get("accuracy_high"),
        "longer wins": metrics["longer_accuracy"],
        "margin": metrics["margin"],
        "easy": metrics.get("easy_accuracy"),
        "normal": metrics.get("normal_accuracy"),
        "hard": metrics.get("hard_accuracy"),
    }


def _style_rows(label: str, content: Mapping[str, Any], size: int) -> list[dict[str, Cell]]:
    """The matrix of all pairs, then of each part; a line per style of the chosen reply."""
    matrices = [("all", content["styles"], content["metrics"])]
    matrices += [(part["name"], part["styles"], part["metrics"]) for part in content["subsets"] if part["styles"]]
    rows = []
    for part, matrix, metrics in matrices:
        for style in range(len(matrix)):
            cells = {f"rejected {j}": matrix[style][j] if j < len(matrix) else None for j in range(size)}
            ends = {
                name: metrics.get(f"{name}_accuracy") if style == 0 else None for name in ("easy", "normal", "hard")
            }
            rows.append({MODEL: label, "part": part, "chosen": f"style {style}", **cells, **ends})
    return rows


def _filled(rows: Sequence[dict[str, Cell]]) -> list[dict[str, Cell]]:
    """The rows without the columns that none of them has a value for, and without the model where there is but one."""
    used = [name for name in (rows[0] if rows else ()) if any(row[name] is not None for row in rows)]
    if len({row[MODEL] for row in rows}) == 1:
        used.remove(MODEL)
    return [{name: row[name] for name in used} for row in rows]


def _interval(metrics: Mapping[str, float], name: str, *, digits: int, percent: bool = False) -> str:
    text = shown(metrics[name], digits=digits, percent=percent)
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    if low is None or high is None:
        return text
    scale = 100 if percent else 1
    return f"{text} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
