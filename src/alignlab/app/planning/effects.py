"""Does a typed override change anything? On a table `method.lr=7` would silently do nothing: that is a fault."""

from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from alignlab.app.planning.targets import Planner, Target
from alignlab.errors import ConfigError

_ALWAYS_READ = ("experiments", "fresh", "name", "needs", "task", "paths", "logger", "inert", "hardware")


def has_effect(planner: Planner, target: Target, override: str) -> bool:
    """Whether what `override` sets is read: by the target, by the run it evaluates, or by something it is handed up to.

    A value equal to the default counts as read; only where no path leads to it, the key without it decides.
    """
    path = override.partition("=")[0].lstrip("+~").replace("/", ".")
    if path.partition(".")[0] in _ALWAYS_READ:
        return True
    inert = [str(entry) for entry in target.cfg.inert if entry != "evaluation"]
    if any(_covers(entry, path) for entry in inert) or _is_in(target.content, path):
        return True
    if any(_is_in(parent.content, path) for parent in target.needs.get("of", []) if isinstance(parent, Target)):
        return True
    if any(_covers(handed, path) or _covers(path, handed) for handed in _inherited(target)):
        return True
    try:
        return planner.target(text for text in target.overrides if text != override).key != target.key
    except ConfigError:
        return True


def _inherited(target: Target) -> Iterator[str]:
    for root in ("needs", "evaluation.needs"):
        for need in (OmegaConf.select(target.cfg, root) or {}).values():
            yield from (str(path).replace("/", ".") for path in need.inherit if not str(path).startswith("~"))


def _is_in(content: dict[str, Any], path: str) -> bool:
    node: Any = content
    for part in path.split("."):
        if isinstance(node, list):
            return part.isdigit()
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _covers(path: str, other: str) -> bool:
    return other == path or other.startswith(path + ".")
