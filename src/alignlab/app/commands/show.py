"""What the command prints: plans, lists of runs, summaries. Plain text in columns, so that it can be piped."""

import shlex
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from alignlab.app.planning.targets import Target
from alignlab.app.runs import record, runfolder

_STATES = {"missing": "to build", "interrupted": "interrupted", "stale": "to build", "failed": "failed"}
_KINDS = {
    "evaluate": ("evaluation", "evaluations"),
    "sample": ("set of samples", "sets of samples"),
    "table": ("table", "tables"),
    "reward": ("reward model", "reward models"),
}


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart; the last one ragged."""
    widths = [max(len(row[i]) for row in rows) for i in range(max(map(len, rows)))] if rows else []
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def plan_text(targets: Sequence[Target]) -> str:
    """A line per target, parents first: state, folder, what it needs, the command that builds it; then the count."""
    rows = [
        [_state(t), t.folder.name, _needs(t), f"alignlab {' '.join(map(shlex.quote, t.overrides))}"] for t in targets
    ]
    changed = {t.folder.name: record.version_changes(runfolder.read(t.folder).get("versions", {})) for t in targets}
    notes = [f"{name}: made with other versions: {', '.join(what)}" for name, what in changed.items() if what]
    return "\n".join([columns(rows), *notes, plan_sentence(targets)])


def plan_sentence(targets: Sequence[Target]) -> str:
    """Like `17 targets: 2 done, 1 SFT and 14 DPO to build`."""
    states = {id(target): _state(target) for target in targets}
    done = sum(state == "done" for state in states.values())
    running = sum(state == "running" for state in states.values())
    open_ = Counter(_label(t) for t in targets if states[id(t)] not in ("done", "running"))
    parts = [f"{done} done"] if done else []
    parts += [f"{running} running"] if running else []
    if open_:
        names = [f"{count} {_plural(label, count)}" for label, count in open_.items()]
        parts.append((" and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]) + " to build")
    elif done == len(targets):
        parts = ["all done"]
    return f"{len(targets)} target{'s' if len(targets) != 1 else ''}: {', '.join(parts)}"


HEADLINES = (
    *("exact/share", "exact/regret", "exact/kl", "exact/reward"),
    *("test/gold_reward", "test/proxy_reward", "test/kl", "test/accuracy", "test/margin", "test/loss"),
)


def headline(metrics: dict[str, Any], most: int = 4) -> str:
    """The few metrics that say most: those of HEADLINES first, then test figures, then the others as they come."""
    numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    rank = {name: place for place, name in enumerate(HEADLINES)}
    first = sorted(numbers, key=lambda name: (rank.get(name, len(rank)), not name.startswith("test/")))
    return "  ".join(f"{name} {_number(numbers[name])}" for name in first[:most])


def runs_text(runs: Path) -> str:
    """A table of the run folders below `runs`, the latest last."""
    rows = []
    for folder in sorted(runs.glob("*-*"), key=_time_of):
        found = runfolder.read(folder)
        if found:
            told = found.get("error") or headline(found.get("metrics") or {}, 3)
            shown = told.splitlines()[0][:100] if told else ""
            rows.append(
                [
                    runfolder.state(folder),
                    folder.name,
                    str(found.get("method") or found.get("task")),
                    age(folder),
                    shown,
                ]
            )
    if not rows:
        return f"no runs in {runs}"
    return columns([["STATE", "RUN", "METHOD", "AGE", "METRICS"], *rows])


def age(folder: Path) -> str:
    """How long ago a run last changed its state, in one unit."""
    seconds = max(0.0, time.time() - _time_of(folder))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def describe_time(folder: Path) -> str:
    """The same as a date."""
    return datetime.fromtimestamp(_time_of(folder)).isoformat(sep=" ", timespec="seconds")


def _time_of(folder: Path) -> float:
    found = folder / runfolder.RUN_JSON
    return found.stat().st_mtime if found.exists() else 0.0


def _state(target: Target) -> str:
    state = target.state
    if state == "done" and target.cfg.fresh:
        return "to build"
    return _STATES.get(state, state)


def _needs(target: Target) -> str:
    """The needs by their own names, with the first digits of the key; a grid by its size."""
    shown = [
        f"{name} {parents[0].key[:4]}" if len(parents) == 1 else f"{name} x{len(parents)}"
        for name, parents in target.needs.items()
    ]
    return "needs " + ", ".join(shown) if shown else ""


def _label(target: Target) -> str:
    method = str(target.method)
    return target.kind if target.kind != "train" else method.upper() if len(method) <= 4 else method


def _plural(label: str, count: int) -> str:
    one, many = _KINDS.get(label, (label, label))
    return one if count == 1 else many


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
