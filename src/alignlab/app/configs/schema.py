"""The types of the root config: what may stand at the top level, and what a need is made of."""

from dataclasses import dataclass, field
from typing import Any

UNSET = "<unset>"
"""Stands in `needs.<name>.path` until a run folder is known; filled in before anything is resolved."""


@dataclass
class Need:
    """Another target that this one is built from."""

    experiments: str | None = None  # the target's file in experiments/
    inherit: list[str] = field(
        default_factory=list
    )  # groups and values that are handed up to it; ~path: but not this one
    override: dict[str, Any] = field(default_factory=dict)  # settings of the parent alone
    grid: Any = None  # {key: [values]} or a list of such: the need becomes many targets
    path: Any = UNSET  # a run folder that is there already; else filled in when it is built


@dataclass
class Root:
    """Keys of conf/config.yaml. The groups are free: their own yaml files and `_target_`s say what they hold."""

    experiments: str | None = None  # a file that forgot `# @package _global_` fails here, loudly
    name: str | None = None
    seed: int = 0
    fresh: bool = False
    needs: dict[str, Need] = field(default_factory=dict)
    evaluation: Any = None
    inert: list[str] = field(default_factory=list)
    paths: Any = None
    model: Any = None
    adapter: Any = None
    method: Any = None
    data: Any = None
    hardware: Any = None
    logger: Any = None
    task: Any = None


GROUPS_PASSED_ON = ("hardware", "logger")
"""Groups that always go to the needs: where something is built says nothing about what it is."""
