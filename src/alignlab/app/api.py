"""alignlab from Python: compose a config, run it, load what came out. No command line is read.

cfg = alignlab.compose(["experiments=quickstart/dpo", "method.loss.beta=0.3"])
run = alignlab.run(cfg)          # or alignlab.run([...]) at once
run.metrics, run.load_policy()
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from alignlab.app.building.build import build
from alignlab.app.configs.paths import roots
from alignlab.app.configs.spell import flat, spell
from alignlab.app.planning.asked import checked
from alignlab.app.planning.targets import Planner
from alignlab.app.runs import runfolder
from alignlab.app.runs.quiet import quiet
from alignlab.errors import ConfigError

if TYPE_CHECKING:
    from alignlab.models.policy import Policy
    from alignlab.models.reward_model import RewardModel

_ORIGIN = "overrides"  # the key under which a composed config remembers where it came from


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its final metrics."""

    path: Path
    metrics: dict[str, Any]

    def load_policy(self) -> "Policy":
        """The trained policy (sft, dpo, ppo), ready to sample from."""
        from alignlab.models.saving import load_policy

        return load_policy(self.path)

    def load_reward_model(self) -> "RewardModel":
        """The trained reward model, with its normalisation."""
        from alignlab.models.saving import load_reward_model

        return load_reward_model(self.path)


def compose(overrides: Sequence[str] = (), *, config_dir: str | Path | None = None) -> DictConfig:
    """The config of a list of overrides, interpolations unresolved, the paths of its needs filled in.

    It may be edited before it is run. ConfigError where the overrides do not fit.
    """
    cfg = Planner(roots(config_dir)).target(overrides).filled(paths=True)
    cfg[_ORIGIN] = list(overrides)
    return cfg


def run(config: DictConfig | Sequence[str], *, config_dir: str | Path | None = None) -> Run:
    """Build what `config` (from `compose`, or overrides) says, its needs first, in this process; or find it there.

    ConfigError holds all faults, a line each; RunFailed names the run folder and its log.
    """
    quiet()
    planner = Planner(roots(config_dir))
    overrides = _as_overrides(planner, config) if isinstance(config, DictConfig) else list(config)
    [target] = checked(planner, [overrides])
    folder = build(target, uuid.uuid4().hex)
    return Run(folder, runfolder.read(folder).get("metrics") or {})


def _as_overrides(planner: Planner, config: DictConfig) -> list[str]:
    """Where a config came from, and what was edited since, as overrides: its key is the one that typing gives."""
    written = OmegaConf.to_container(config)
    assert isinstance(written, dict)
    if _ORIGIN not in written:
        raise ConfigError("run: this config does not come from alignlab.compose; give the overrides, or compose it")
    origin = [str(text) for text in written.pop(_ORIGIN)]
    composed = OmegaConf.to_container(planner.target(origin).filled(paths=True))
    assert isinstance(composed, dict)
    before, after = dict(flat(_plain(composed))), dict(flat(_plain(written)))
    edits = [f"++{key}={spell(value)}" for key, value in after.items() if key not in before or before[key] != value]
    held = {key.rsplit(".", depth)[0] for key in after for depth in range(key.count(".") + 1)}
    edits += [f"~{key}" for key in before if key not in held]
    return [*origin, *edits]


def _plain(node: Any) -> dict[str, Any]:
    return {str(key): value for key, value in node.items()}
