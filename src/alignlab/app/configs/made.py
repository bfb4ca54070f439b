"""Objects out of config nodes, with the class's own words where it refuses; all of a plan tried before it is built.

A signature cannot say that a rank must be at least 1: the class does, when it is made. Without the trial a PPO would
find out after its SFT and its reward model have been trained.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from alignlab.errors import AlignlabError, ConfigError

if TYPE_CHECKING:
    from alignlab.app.planning.targets import Target

TRIED = {"train": ("adapter", "method"), "evaluate": ("evaluation",), "sample": ("task",)}
"""Nodes that each kind of target makes objects of, below which all are small enough to be made twice."""

NOT_TRIED = ("method.reward", "task.reward", "task.judge", "task.data", "evaluation.data", "evaluation.judge")
"""Nodes that read files or load models when they are made."""


def make(node: Any, at: str) -> Any:
    """The object that the config node at path `at` describes. ConfigError, or the class's own error, if it refuses."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, AlignlabError):
            raise cause from None
        raise ConfigError(f"{at}: {type(cause).__name__}: {cause}" if cause is not None else f"{at}: {error}") from None


def value_faults(targets: Iterable["Target"]) -> list[str]:
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
