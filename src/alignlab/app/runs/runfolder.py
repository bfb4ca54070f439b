"""A run folder on disk: its run.json, its lock, its state. What every command reads and only `build` writes."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

State = Literal["missing", "running", "interrupted", "done", "stale", "failed", "given"]
"""`interrupted`: run.json says running, but nobody holds the lock. `stale`: done, but a parent was built anew since."""

RUN_JSON = "run.json"


def read(folder: Path) -> dict[str, Any]:
    """run.json, or {} where there is none."""
    try:
        return json.loads((folder / RUN_JSON).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}


def write(folder: Path, record: dict[str, Any]) -> None:
    """Replace run.json whole: a reader sees the old one or the new one, also after a power cut."""
    write_atomic(folder / RUN_JSON, as_json(record, indent=1) + "\n")


def as_json(record: Any, indent: int | None = None) -> str:
    """Strict JSON text; numbers of numpy and torch become plain ones, and what is not finite null."""
    return json.dumps(_strict(record), indent=indent, default=str, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomic(path: Path, text: str) -> None:
    """Write beside the target, flush to disk, rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def find(runs: Path, key: str, name: str) -> Path:
    """The folder of a key: the key is the identity, the name is for people."""
    found = sorted(path for path in runs.glob(f"*-{key}") if path.is_dir())
    return found[0] if found else runs / f"{name}-{key}"


def lock(runs: Path, key: str) -> FileLock:
    """The lock of a key (flock: it never outlives its process, so a killed builder leaves nothing behind)."""
    folder = runs / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / key)


def is_locked(runs: Path, key: str) -> bool:
    """Whether somebody builds this key now."""
    if not (runs / ".locks" / key).exists():
        return False
    probe = lock(runs, key)
    try:
        probe.acquire(timeout=0)
    except Timeout:
        return True
    probe.release()
    return False


def state(folder: Path) -> State:
    """What run.json says, with `interrupted` told from `running`."""
    record = read(folder)
    status = record.get("status", "missing")
    if status == "running" and not is_locked(folder.parent, record.get("key", "")):
        return "interrupted"
    return status


def is_stale(record: dict[str, Any], parents: dict[str, list[Path]]) -> bool:
    """Whether a parent that is there was built anew (`fresh=true` keeps its key) after this run used it."""
    for name, folders in parents.items():
        used = {entry["key"]: entry.get("stamp") for entry in record.get("parents", {}).get(name, [])}
        for folder in folders:
            now = read(folder)
            if now.get("status") == "done" and used.get(now.get("key"), now.get("stamp")) != now.get("stamp"):
                return True
    return False


def set_aside(folder: Path) -> Path:
    """Rename a folder to the first free `<folder>.old-N`, and give the new path."""
    taken = [int(m[1]) for p in folder.parent.glob(f"{folder.name}.old-*") if (m := re.search(r"\.old-(\d+)$", p.name))]
    old = folder.with_name(f"{folder.name}.old-{max(taken, default=0) + 1}")
    folder.rename(old)
    return old
