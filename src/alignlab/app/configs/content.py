"""A config as plain containers: all faults at once where it cannot be resolved, and the part that makes a run's key."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignlab.app.configs.files import by_content
from alignlab.app.configs.nearest import hint

MISSING = "???"
_NEVER_KEYED = ("needs", "experiments", "fresh", "overrides")
_ENV = re.compile(r"\$\{\s*oc\.env\s*:")


class Plain(NamedTuple):
    """Resolved containers; what could not be resolved stands as '???' and has a fault: path -> what is wrong."""

    node: dict[str, Any]
    faults: dict[str, str]
    missing: list[str]


def plain(cfg: DictConfig) -> Plain:
    """`cfg` resolved leaf by leaf, so that one broken interpolation does not hide the others."""
    faults: dict[str, str] = {}
    missing: list[str] = []

    def walk(node: Any, at: str) -> Any:
        if isinstance(node, DictConfig):
            return {str(k): leaf(node, k, f"{at}.{k}" if at else str(k)) for k in node}
        if isinstance(node, ListConfig):
            return [leaf(node, i, f"{at}[{i}]") for i in range(len(node))]
        return node

    def leaf(parent: Any, key: Any, at: str) -> Any:
        if OmegaConf.is_missing(parent, key) and not OmegaConf.is_interpolation(parent, key):
            missing.append(at)
            return MISSING
        try:
            value = parent[key]
        except OmegaConfBaseException as error:
            faults[at] = _unresolved(cfg, raw(parent, key), error)
            return MISSING
        return walk(value, at)

    return Plain(walk(cfg, ""), faults, missing)


def keyed_content(node: dict[str, Any]) -> dict[str, Any]:
    """What of a resolved config may change its result: without the inert parts, local files by content.

    An evaluation or a table is its own settings: what it is made of stands in the keys of its parents.
    """
    task = node.get("task") or {}
    inert = [*(node.get("inert") or []), *_NEVER_KEYED]
    if task.get("kind") == "train":
        kept = dict(node)
    else:
        kept = {"task": {k: v for k, v in task.items() if k != "run"}, "hardware": node.get("hardware")}
        if task.get("kind") == "evaluate":
            inert = [path for path in inert if path != "evaluation"]
            kept["evaluation"] = {k: v for k, v in (node.get("evaluation") or {}).items() if k != "needs"}
    for path in inert:
        kept = _without(kept, path.split("."))
    for name in ("model", "adapter", "method", "data", "evaluation", "task"):
        if name in kept:
            kept[name] = by_content(kept[name])
    return kept


def raw(parent: Any, key: Any) -> Any:
    """A child as it is written: interpolations unresolved, containers as plain ones."""
    node = parent._get_node(key)
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node)
    return node._value() if node is not None else None


def raw_at(cfg: Any, path: str) -> tuple[bool, Any]:
    """Whether there is something at a dotted path, and it as it is written."""
    node = cfg
    *up, last = path.split(".")
    for part in up:
        node = child(node, part)
    return (True, raw(node, last)) if child(node, last) is not None else (False, None)


def saved(cfg: DictConfig) -> dict[str, Any]:
    """The config resolved for a file, but for what comes from the environment: a secret must not reach the disk."""
    hidden: dict[str, str] = {}

    def each(node: Any, change: Callable[[str], str]) -> Any:
        if isinstance(node, dict):
            return {key: each(value, change) for key, value in node.items()}
        if isinstance(node, list):
            return [each(value, change) for value in node]
        return change(node) if isinstance(node, str) else node

    def hide(text: str) -> str:
        if not _ENV.search(text):
            return text
        token = f"<environment {len(hidden)}>"
        hidden[token] = text
        return token

    def show(text: str) -> str:
        for token, written in hidden.items():
            text = text.replace(token, written)
        return text

    written = OmegaConf.create(each(OmegaConf.to_container(cfg), hide))
    return each(OmegaConf.to_container(written, resolve=True), show)


def child(node: Any, key: str) -> Any:
    """The node below a mapping, unresolved; None where there is no mapping or no such key."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing() or node._is_interpolation():
        return None
    return node._get_node(key, validate_access=False)


def _without(node: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """A copy without what stands at `path`."""
    head, *rest = path
    if head not in node:
        return node
    if not rest:
        return {k: v for k, v in node.items() if k != head}
    below = node[head]
    return {**node, head: _without(below, rest)} if isinstance(below, dict) else node


def _unresolved(cfg: DictConfig, text: Any, error: Exception) -> str:
    """Why `${...}` has no value, and the nearest name."""
    first = str(error).splitlines()[0]
    for path in re.findall(r"\$\{([A-Za-z_][\w.]*)\}", str(text)):
        node: Any = cfg
        parts = path.split(".")
        for depth, part in enumerate(parts):
            if child(node, part) is None:
                names = list(node) if isinstance(node, DictConfig) and not node._is_none() else []
                prefix = "".join(f"{p}." for p in parts[:depth])
                return f"{text} names nothing here{hint(part, map(str, names), prefix=prefix)}"
            if OmegaConf.is_missing(node, part):
                return f"it says {text}, and {path} is not set: type {path}=..."
            node = node._get_node(part)
    return f"{text} cannot be resolved ({first})"
