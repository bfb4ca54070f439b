"""Local files and folders by content: moving data rebuilds nothing, changing it rebuilds what used it."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

PATH_KEYS = ("init_from", "tokenizer", "train", "validation", "test", "reference", "proxy", "path", "file", "folder")
"""Settings whose value may be a bare name (`data.train=rows.jsonl` needs no slash to be a file)."""


def by_content(node: Any, key: str = "") -> Any:
    """`node` (plain containers) with each string that names an existing file or folder replaced by its digest."""
    if isinstance(node, dict):
        return {k: by_content(v, str(k)) for k, v in node.items()}
    if isinstance(node, list):
        return [by_content(v, key) for v in node]
    if isinstance(node, str) and _may_be_path(node, key):
        path = Path(node).expanduser()
        if _exists(path):
            return path_digest(path)
    return node


def path_digest(path: Path) -> str:
    """What stands for a file or folder in a key: a run folder's own key, else a hash of the bytes and names in it."""
    run = path / "run.json"
    if run.is_file():
        key = json.loads(run.read_text()).get("key")
        if key:
            return f"need:{key}"
    if path.is_file():
        return f"file:{_file_digest(path)}"
    whole = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path)
        if not any(
            part.startswith(".") for part in name.parts
        ):  # a hub download's .cache says nothing about the content
            whole.update(f"{name.as_posix()}\0{_file_digest(file)}\n".encode())
    return f"folder:{whole.hexdigest()}"


def _may_be_path(text: str, key: str) -> bool:
    return 0 < len(text) < 1024 and "\n" not in text and ("/" in text or key in PATH_KEYS or key.endswith("_path"))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _digest(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@functools.cache
def _digest(path: str, _size: int, _mtime_ns: int) -> str:
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            whole.update(block)
    return whole.hexdigest()
