"""What a command line asks for: its jobs as targets, checked whole before anything is built."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from alignlab.app.configs.paths import roots
from alignlab.app.planning.preflight import preflight
from alignlab.app.planning.targets import Planner, Target, TypedError
from alignlab.errors import ConfigError

QUICKSTART = "experiments=quickstart"  # what a bare `alignlab` runs
_HYDRAS = ("hydra.", "hydra/")


@dataclass(frozen=True)
class Asked:
    """Jobs of one command, as targets; Hydra's own overrides apart."""

    planner: Planner
    targets: list[Target]
    overrides: list[str]  # as typed, sweeps unexpanded
    hydra_overrides: list[str]
    is_sweep: bool


def ask(args: argparse.Namespace) -> Asked:
    """Plan and check what `args` (Hydra's command line) ask for. ConfigError holds all faults, a line each."""
    hydras = [text for text in args.overrides if text.lstrip("+~").startswith(_HYDRAS)]
    mine = [text for text in args.overrides if text not in hydras] or [QUICKSTART]
    is_sweep = bool(args.multirun) or "hydra.mode=MULTIRUN" in hydras
    sweepers = [text for text in hydras if text.startswith("hydra/sweeper=") and text != "hydra/sweeper=basic"]
    if sweepers:
        raise ConfigError(f"{sweepers[0]}: alignlab plans a sweep before it runs, and knows only the basic sweeper")
    planner = Planner(roots(args.config_dir))
    jobs = planner.expand(mine) if is_sweep else [tuple(mine)]
    return Asked(planner, checked(planner, jobs), mine, hydras, is_sweep)


def checked(planner: Planner, jobs: Sequence[Sequence[str]]) -> list[Target]:
    """The targets of all jobs. ConfigError holds the faults of all of them and of what they need, each line once."""
    targets: list[Target] = []
    faults: dict[str, None] = {}
    for job in jobs:
        try:
            targets.append(planner.target(job))
        except TypedError as error:
            faults |= dict.fromkeys(str(error).splitlines())
            if error.right is not None:  # what else is wrong is told in the same breath
                targets.append(planner.target(error.right))
    faults |= dict.fromkeys(preflight(planner, targets))
    if faults:
        raise ConfigError("\n".join(faults))
    return targets
