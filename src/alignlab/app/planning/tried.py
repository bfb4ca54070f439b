"""All of a plan's small objects, made once before anything is built.

A signature cannot say that a rank must be at least 1: the class does, when it is made. Without the trial a PPO would
find out after its SFT and its reward model have been trained.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from alignlab.app.configs.made import make
from alignlab.app.planning.targets import Target
from alignlab.errors import ConfigError

TRIED = {"train": ("adapter", "method"), "evaluate": ("evaluation",), "sample": ("task",)}
"""Nodes that each kind of target makes objects of, below which all are small enough to be made twice."""

NOT_TRIED = ("method.reward", "task.reward", "task.judge", "task.data", "evaluation.data", "evaluation.judge")
"""Nodes that read files or load models when they are made."""


def value_faults(targets: Iterable[Target]) -> list[str]:
    """What the classes of a plan's small objects say to their settings; a line each. Imports torch."""
    faults: dict[str, None] = {}
    for target in targets:
        for root in TRIED.get(target.kind, ()):
            for at, node in _whole(target.plain.node.get(root), root):
                try:
                    make(node, at)
                except ConfigError as error:
                    faults |= dict.fromkeys(_placed(line, at) for line in str(error).splitlines())
    return list(faults)


def _whole(node: Any, at: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The nodes from `node` down that can be made as they stand: nothing is missing and nothing comes from a need."""
    if not isinstance(node, dict) or at.startswith(NOT_TRIED):
        return
    if "_target_" in node and not node.get("_partial_") and _is_known(node):
        yield at, node
        return
    for name, value in node.items():
        yield from _whole(value, f"{at}.{name}")


def _is_known(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_known, value.values()))
    if isinstance(value, list):
        return all(map(_is_known, value))
    return not (isinstance(value, str) and (value == "???" or value.startswith("need:")))


def _placed(line: str, at: str) -> str:
    """The line with the path in front, unless it names it."""
    return line if line.startswith(at) else f"{at}: {line}"
