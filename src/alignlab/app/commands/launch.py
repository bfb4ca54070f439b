"""The command without a verb: plan, check, build in this process or in a launcher's workers, and report.

What is asked for is planned and checked whole before Hydra launches its first job.
"""

import argparse
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from alignlab.app.building.build import build
from alignlab.app.commands.completion import complete
from alignlab.app.commands.show import columns, headline
from alignlab.app.configs.compose import job_overrides, parse_args, run_app
from alignlab.app.configs.paths import Roots, roots
from alignlab.app.planning.asked import Asked, ask
from alignlab.app.planning.targets import Given, Planner, Target, plan
from alignlab.app.planning.tried import value_faults
from alignlab.app.runs import runfolder, stop
from alignlab.errors import AlignlabError, ConfigError

log = logging.getLogger("alignlab")


def command(words: Sequence[str]) -> int:
    """Plan, check, build and report what a command line without a verb asks for."""
    args = parse_args(words)
    if args.shell_completion:
        complete(args, roots(args.config_dir))
        return 0
    if args.help or args.hydra_help or args.cfg or args.info:
        run_app(args, _nothing, roots(args.config_dir))
        return 0
    asked = ask(args)
    if all(target.state == "done" and not target.cfg.fresh for target in asked.targets):
        for target in asked.targets:
            _print_run(target, "already there: ")
        return 0
    faults = value_faults(target for target in plan(asked.targets) if target.state != "done")
    if faults:
        raise ConfigError("\n".join(faults))
    return _launch(args, asked)


@dataclass
class Job:
    """What Hydra runs for each job, in this process or in a launcher's worker."""

    roots: Roots
    launch: str
    planner: Planner | None = field(default=None, repr=False)

    def __call__(self, _cfg: Any) -> None:
        planner = self.planner or Planner(self.roots)
        target = planner.target(job_overrides())
        try:
            build(target, self.launch)
        except AlignlabError as error:  # told here and in run.json; the other jobs of a sweep go on
            log.error("%s", error)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "planner": None}  # a worker plans for itself


def _launch(args: argparse.Namespace, asked: Asked) -> int:
    launch = uuid.uuid4().hex
    job = Job(asked.planner.roots, launch, asked.planner)
    said = asked.planner.composer.launchable(asked.overrides) if asked.is_sweep else asked.overrides
    args = argparse.Namespace(**{**vars(args), "overrides": [*asked.hydra_overrides, *said]})
    broken = False
    with stop.stoppable():
        try:
            run_app(args, job, asked.planner.roots)
        except KeyboardInterrupt:
            _report(asked, launch)
            return stop.exit_code()
        except SystemExit as end:
            if stop.received() is not None:
                _report(asked, launch)
                return stop.exit_code()
            broken = end.code not in (0, None)
    return max(_report(asked, launch), int(broken))


def _report(asked: Asked, launch: str) -> int:
    """Print how each job ended; the exit code."""
    outcomes = [_outcome(target, launch) for target in asked.targets]
    if not asked.is_sweep:
        [target], [(_, code, _)] = asked.targets, outcomes
        if code == 0:
            _print_run(target)
        return code
    rows = []
    shared = set.intersection(*(set(target.overrides) for target in asked.targets))  # what differs tells jobs apart
    for target, (word, _, told) in zip(asked.targets, outcomes):
        own = [override for override in target.overrides if override not in shared]
        rows.append([word, target.folder.name, " ".join(own or target.overrides), told])
    print(columns([["JOB", "RUN", "OVERRIDES", ""], *rows]))
    good = sum(code == 0 for _, code, _ in outcomes)
    print(f"{len(outcomes)} jobs: {good} done" + (f", {len(outcomes) - good} not" if good < len(outcomes) else ""))
    return 0 if good == len(outcomes) else 1


def _outcome(target: Target, launch: str) -> tuple[str, int, str]:
    """How a job ended: a word, an exit code, and its metrics or what went wrong."""
    state, found = target.state, runfolder.read(target.folder)
    if state == "done":
        return "done", 0, headline(found.get("metrics") or {})
    if state == "failed" and found.get("launch") == launch:
        return "failed", found.get("exit_code", 1), str(found.get("error")).splitlines()[0]
    if state == "interrupted" and found.get("launch") == launch:
        return "interrupted", 1, "the same command goes on"
    for parent in _ancestors(target):
        below = runfolder.read(parent.folder)
        if below.get("status") == "failed" and below.get("launch") == launch:
            return "not built", below.get("exit_code", 1), f"needs {parent.folder.name}, which failed"
    return "not run", 1, ""


def _ancestors(target: Target) -> list[Target]:
    parents = [parent for parent in target.parents if not isinstance(parent, Given)]
    return [ancestor for parent in parents for ancestor in (parent, *_ancestors(parent))]


def _print_run(target: Target, before: str = "") -> None:
    print(f"{before}{target.folder}")
    if (target.folder / "report" / "report.json").exists():
        from alignlab.report.console import print_summary

        print_summary(target.folder)
        return
    shown = headline(runfolder.read(target.folder).get("metrics") or {}, 8)
    if shown:
        print(f"  {shown}")
    report = target.folder / "report" / "report.md"
    if report.exists():
        print(f"  report: {report}")


def _nothing(_cfg: Any) -> None:
    """The task of flags that run none."""
