"""A run is a target, as in make: composed, keyed and planned here, built in `building`.

A target *is* a list of overrides. Its key is a hash of everything that may change its result; its folder is
`<runs>/<name>-<key>`, and the folder is the cache entry. So the same command leads to the same folder.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignlab.app.configs.compose import Composer
from alignlab.app.configs.content import Plain, keyed_content, plain
from alignlab.app.configs.files import path_digest
from alignlab.app.configs.paths import Roots, make_importable
from alignlab.app.configs.schema import UNSET
from alignlab.app.configs.source import Sources
from alignlab.app.configs.typed import check_typed
from alignlab.app.planning.needs import handed_up
from alignlab.app.runs import runfolder
from alignlab.app.runs.runfolder import State
from alignlab.errors import ConfigError

KEY_VERSION = 1  # raise it when the meaning of a config changes: every run is then built anew
_OF_DROPS = re.compile(r"[+~]*([\w/]+@)?(task|evaluation|fresh)\b")


class TypedError(ConfigError):
    """Overrides that do not fit, a line each; `right` are the others, or None where they cannot be judged alone."""

    def __init__(self, text: str, right: tuple[str, ...] | None) -> None:
        super().__init__(text)
        self.right = right


class Given:
    """A need that the user has already: a run folder, or a folder or hub name of something else."""

    overrides: tuple[str, ...] = ()
    kind = "given"
    state: State = "given"

    def __init__(self, path: str) -> None:
        self.folder = Path(path).expanduser()
        self.record = runfolder.read(self.folder)
        self.key = self.record.get("key") or (path_digest(self.folder) if self.folder.exists() else f"given:{path}")
        self.needs: dict[str, list[Given]] = {}

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def parents(self) -> list["Given"]:
        return []

    @property
    def faults(self) -> list[str]:
        """Why it cannot serve, a line each."""
        if not self.folder.exists():
            return [f"{self.folder}: there is no such folder"]
        status = runfolder.state(self.folder)
        return (
            [] if status in ("missing", "done", "stale") else [f"{self.folder}: this run is not done, it is {status}"]
        )


class Target:
    """One composed config with the targets it needs. Made by a `Planner`."""

    def __init__(self, planner: "Planner", overrides: tuple[str, ...], stack: tuple[tuple[str, ...], ...]) -> None:
        self.planner = planner
        self.overrides = overrides
        self.cfg, self.choices = planner.composer.compose(overrides)
        self.faults: list[str] = []
        self.needs: dict[str, list[Target | Given]] = {}
        self._wires: list[tuple[str, list[Target | Given]]] = []  # path of each need in the config -> what fills it
        for at, name, parents in self._find_needs((*stack, overrides)):
            self.needs[name] = parents
            self._wires.append((at, parents))
        self.key = self._key()

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """train | evaluate | sample | table | study"""
        return str(OmegaConf.select(self.cfg, "task.kind"))

    @property
    def method(self) -> str | None:
        """The option chosen in the group `method`; None for what is no training and no figures of one."""
        return self.choices.get("method") if self.kind in ("train", "evaluate") else None

    @cached_property
    def name(self) -> str:
        """For people: the experiment's path with - for /, or the method; letters, digits and ._- only."""
        named = OmegaConf.select(self.cfg, "name") or self.choices.get("experiments") or self.method or self.kind
        words = "+".join(named) if isinstance(named, (list, tuple)) else str(named)
        clean = re.sub(r"[^A-Za-z0-9._-]+", "-", words).strip("-.") or self.kind
        return f"{clean}.{self.kind}" if "of" in self.needs else clean

    @property
    def runs(self) -> Path:
        """The folder of run folders."""
        return Path(str(OmegaConf.select(self.cfg, "paths.runs"))).expanduser()

    @property
    def folder(self) -> Path:
        """Its run folder, there or not."""
        return runfolder.find(self.runs, self.key, self.name)

    @property
    def parents(self) -> "list[Target | Given]":
        """All that it needs, in order."""
        return [parent for parents in self.needs.values() for parent in parents]

    @property
    def parent_folders(self) -> dict[str, list[Path]]:
        """Run folders of the needs, by name."""
        return {name: [parent.folder for parent in parents] for name, parents in self.needs.items()}

    @property
    def state(self) -> State:
        """What is there of it on disk now."""
        found = runfolder.state(self.folder)
        if found == "done" and runfolder.is_stale(runfolder.read(self.folder), self.parent_folders):
            return "stale"
        return found

    # -- its config ----------------------------------------------------------------------------------------------

    def filled(self, *, paths: bool) -> DictConfig:
        """A copy of the config with each need's path filled in: by run folders, or by keys (`need:<key>`)."""
        cfg = self.cfg.copy()
        for at, parents in self._wires:
            shown = [str(parent.folder) if paths else f"need:{parent.key}" for parent in parents]
            need = OmegaConf.select(cfg, at)
            many = need.grid is not None or OmegaConf.is_list(need.path)
            need.path = shown if many else shown[0] if shown else UNSET
        return cfg

    @cached_property
    def plain(self) -> Plain:
        """The config resolved, its needs as keys, with the faults of what has no value."""
        return plain(self.filled(paths=False))

    @cached_property
    def content(self) -> dict[str, Any]:
        """What of the config is in the key."""
        return keyed_content(self.plain.node)

    @cached_property
    def code(self) -> dict[str, str | None]:
        """Digest of the code behind each `_target_` and each module of `task.source`; None where there is no such."""
        sources = self.planner.sources
        names = {*targets_in(self.content), *((self.content.get("task") or {}).get("source") or [])}
        return {name: sources.digest(name) for name in sorted(names) if sources.is_own(name)}

    def _key(self) -> str:
        """Hash of config, needs and code, as they are now: what was planned is what is built."""
        needs = {name: [parent.key for parent in parents] for name, parents in self.needs.items()}
        text = json.dumps([KEY_VERSION, self.content, needs, self.code], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    # -- its needs -----------------------------------------------------------------------------------------------

    def _find_needs(self, stack: tuple[tuple[str, ...], ...]) -> "Iterator[tuple[str, str, list[Target | Given]]]":
        names_a_need = self.kind == "sample" and self._of in (OmegaConf.select(self.cfg, "needs") or {})
        if self.kind not in ("evaluate", "sample") or (names_a_need and self._of != "train"):
            yield from self._named_needs("needs", stack)
            return
        trained = self._trained(stack)
        self.needs["of"] = [trained] if trained is not None else []
        for name, parents in trained.needs.items() if trained is not None else ():
            self._wires.append((f"needs.{name}", list(parents)))
        if self.kind == "evaluate":
            yield from self._named_needs("evaluation.needs", stack)

    @property
    def _of(self) -> str:
        """What an evaluation or samples are of: the task of the parent, or (samples) the name of a need."""
        return str(OmegaConf.select(self.cfg, "task.of"))

    def _trained(self, stack: tuple[tuple[str, ...], ...]) -> "Target | Given | None":
        """The run that is measured or sampled: this very config with another task, or the folder given by task.run."""
        run = OmegaConf.select(self.cfg, "task.run")
        if run:
            given = Given(str(run))
            self.faults += [f"task.run: {fault}" for fault in given.faults]
            return given
        mine = tuple(text for text in self.overrides if not _OF_DROPS.match(text))
        return self._parent((*mine, f"task={self._of}"), stack, "task.of")

    def _named_needs(
        self, root: str, stack: tuple[tuple[str, ...], ...]
    ) -> "Iterator[tuple[str, str, list[Target | Given]]]":
        for name, need in (OmegaConf.select(self.cfg, root) or {}).items():
            at = f"{root}.{name}"
            if name == "of":
                self.faults.append(f"{at}: this name is taken: it is the run that is measured or sampled")
                continue
            yield at, str(name), self._resolve_need(need, at, stack)

    def _resolve_need(self, need: DictConfig, at: str, stack: tuple[tuple[str, ...], ...]) -> "list[Target | Given]":
        fields = plain(need).node
        if fields["path"] != UNSET:
            given = [
                Given(str(path)) for path in (fields["path"] if isinstance(fields["path"], list) else [fields["path"]])
            ]
            self.faults += [f"{at}.path: {fault}" for parent in given for fault in parent.faults]
            return list(given)
        try:
            asked = handed_up(
                self.planner.composer, self.planner.composer.compose(self.overrides), self.overrides, fields, at
            )
        except ConfigError as error:
            self.faults.append(str(error))
            return []
        found = [self._parent(overrides, stack, at) for overrides in asked]
        return [parent for parent in found if parent is not None]

    def _parent(self, overrides: tuple[str, ...], stack: tuple[tuple[str, ...], ...], at: str) -> "Target | None":
        try:
            return self.planner.target(overrides, stack)
        except ConfigError as error:
            self.faults += [f"{at}: {line}" for line in str(error).splitlines()]
            return None


class Planner:
    """Turns overrides into targets, each made once."""

    def __init__(self, roots: Roots) -> None:
        make_importable(roots)
        self.roots = roots
        self.composer = Composer(roots)
        self.sources = Sources(roots)
        self._targets: dict[tuple[str, ...], Target] = {}

    def target(self, overrides: Iterable[str], stack: tuple[tuple[str, ...], ...] = ()) -> Target:
        """The target of a list of overrides. ConfigError, a line per fault, where they cannot be composed."""
        asked = tuple(overrides)
        if asked in stack:
            raise ConfigError("a target needs itself: " + " -> ".join(" ".join(o) for o in (*stack, asked)))
        if asked not in self._targets:
            typed = check_typed(self.composer, self.sources, asked)
            if typed.faults:
                raise TypedError("\n".join(typed.faults), typed.right)
            self._targets[asked] = Target(self, asked, stack)
        return self._targets[asked]

    def expand(self, overrides: Sequence[str]) -> list[tuple[str, ...]]:
        """The jobs of a sweep. ConfigError where there are none."""
        jobs = self.composer.expand(overrides)
        if not jobs:
            raise ConfigError(f"{' '.join(overrides)}: this asks for 0 runs (a glob that matches nothing?)")
        return jobs


def plan(asked: Iterable[Target]) -> list[Target]:
    """Every target that is asked for or needed, once, parents first."""
    ordered: dict[str, Target] = {}

    def visit(target: Target | Given) -> None:
        if isinstance(target, Given) or target.key in ordered:
            return
        for parent in target.parents:
            visit(parent)
        ordered[target.key] = target

    for target in asked:
        visit(target)
    return list(ordered.values())


def targets_in(node: Any) -> Iterator[str]:
    """All `_target_` names in plain containers."""
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from targets_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets_in(value)
