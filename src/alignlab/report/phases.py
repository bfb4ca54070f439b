"""What each training of a report cost and how far it got: time, weights trained, memory; and its kept checkpoints.

Read from run.json (wall_seconds, tokens, peak_memory_mb, metrics "parameters/…") and metrics.jsonl of the trained runs
behind the rows. Runs that do not say are left out.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.report.cells import Cell, headed_table
from alignlab.report.collect import RunRecord, is_number
from alignlab.report.document import Block
from alignlab.report.summary import Row

PHASE_NOTE = (
    "Of the trainings behind the rows, without evaluation (of several seeds the mean): wall time of the whole phase, "
    "loading and validation included; tokens that it trained on; weights: all of its networks, and trained "
    "ones, of these in adapters and in scalar heads (value, reward); peak memory of the process in that phase (GPU: of "
    "the device), which on the CPU includes what earlier phases of the same process left allocated."
)
CHANGE_NOTE = (
    "Means over the first and the last tenth of the logged lines (one line at least); change: in percent of the first, "
    "where that is above 0."
)
CHECKPOINT_NOTE = (
    "Held-out validation figures of each checkpoint, not of the test split; best: by the run's own metric; handed on: "
    "the weights in model/ or adapter/. Others, where kept: task=evaluate evaluation.checkpoint=STEP."
)
CHANGES = ("policy_loss", "value_loss", "entropy", "score", "kl", "explained_variance")
"""Quantities of a critic's training that are reported from its start to its end."""


def phase_blocks(rows: Sequence[Row], out: Path) -> list[Block]:
    """The tables phases, changes and checkpoints, each where there is something to say."""
    first = {_training_of(row.records[0]).folder: row.label for row in reversed(rows)}  # two rows may be of one run
    rows = [row for row in rows if first[_training_of(row.records[0]).folder] == row.label]
    phases = [line for row in rows if (line := phase_line(row)) is not None]
    changes = [line for row in rows for line in change_lines(row)]
    checkpoints = [line for row in rows for line in checkpoint_lines(row)]
    return [
        *headed_table("phases", _used(phases), PHASE_NOTE, out, heading="Phases"),
        *headed_table("changes", changes, CHANGE_NOTE, out, heading="From the start of training to its end"),
        *headed_table("checkpoints", _filled(checkpoints), CHECKPOINT_NOTE, out, heading="Checkpoints"),
    ]


def phase_line(row: Row) -> dict[str, Cell] | None:
    """One line of the table of phases; None where the runs do not say how long they took."""
    records = [_training_of(record) for record in row.records]
    found = [_facts(record.folder) for record in records]
    found = [facts for facts in found if facts["time (s)"] is not None]
    if not found:
        return None
    names = list(found[0])
    return {"phase": row.label, "method": row.records[0].method or "-"} | {
        name: _mean([facts[name] for facts in found]) for name in names
    }


def change_lines(row: Row) -> list[dict[str, Cell]]:
    """From the first tenth of a critic's training to its last, a line per quantity; of the row's first run."""
    history = row.records[0].history
    if not any(is_number(line.get("train/value_loss")) for line in history):
        return []
    lines: list[dict[str, Cell]] = []
    for name in CHANGES:
        values = [float(line[f"train/{name}"]) for line in history if is_number(line.get(f"train/{name}"))]
        if len(values) < 2:
            continue
        part = max(1, len(values) // 10)
        first, last = math.fsum(values[:part]) / part, math.fsum(values[-part:]) / part
        change = 100 * (last - first) / first if first > 0 else None
        lines.append({"phase": row.label, "quantity": name, "first": first, "last": last, "change (%)": change})
    return lines


def checkpoint_lines(row: Row) -> list[dict[str, Cell]]:
    """The validations of the row's first run, where its checkpoints were meant to be chosen from."""
    record = _training_of(row.records[0])
    settings = record.settings
    if settings.get("task.export") != "best" and not settings.get("task.keep"):
        return []
    recorded = _content(record.folder).get("metrics", {})
    best, last = recorded.get("train/best_step"), recorded.get("train/steps")
    handed_on = best if settings.get("task.export") == "best" and best else last
    by_step: dict[float, dict[str, Any]] = {}
    for line in record.history:
        own = {
            name.removeprefix("validation/"): value for name, value in line.items() if name.startswith("validation/")
        }
        if own:
            by_step.setdefault(line["step"], {}).update(own)
    lines: list[dict[str, Cell]] = []
    for step, values in sorted(by_step.items()):
        said = [word for word, at in (("best", best), ("handed on", handed_on)) if at == step]
        shown: dict[str, Cell] = {"phase": row.label, "step": int(step), "chosen": ", ".join(said) or "-"}
        lines.append(shown | {name: value for name, value in sorted(values.items()) if is_number(value)})
    return lines


def _training_of(record: RunRecord) -> RunRecord:
    return record.trained or record


def _facts(folder: Path) -> dict[str, Cell]:
    content = _content(folder)
    metrics, memory = content.get("metrics", {}), content.get("peak_memory_mb") or {}
    facts = {
        "steps": metrics.get("train/steps"),
        "time (s)": content.get("wall_seconds"),
        "tokens": metrics.get("tokens"),
        "weights": metrics.get("parameters/total"),
        "trained": metrics.get("parameters/trained"),
        "in adapters": metrics.get("parameters/adapter"),
        "in heads": metrics.get("parameters/heads"),
        "peak memory (MB)": max(memory.get("rss", 0), memory.get("child_rss", 0)) or None,
        "peak GPU memory (MB)": memory.get("gpu"),
    }
    return {name: float(value) if is_number(value) else None for name, value in facts.items()}


def _content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def _mean(values: Sequence[Any]) -> Cell:
    """The mean, whole where it is; None where some run does not say."""
    if any(value is None for value in values):
        return None
    mean = math.fsum(values) / len(values)
    return int(mean) if mean == int(mean) else mean


def _filled(lines: Sequence[Mapping[str, Cell]]) -> list[dict[str, Cell]]:
    """The same columns in every line, in the order in which they come up."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    return [{name: line.get(name) for name in names} for line in lines]


def _used(lines: Sequence[Mapping[str, Cell]]) -> list[dict[str, Cell]]:
    """The lines without the columns that none of them has a value for."""
    return [{name: line[name] for name in line if any(each[name] is not None for each in lines)} for line in lines]
