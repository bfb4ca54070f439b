"""Watches a training of ours from outside: a Lightning logger that reads the clock whenever a step's metrics come."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from benchmarks.meter import Meter


class Measured(Exception):
    """All steps are done. What a run does after them (checkpoint, export) is no part of the measurement."""

    def __init__(self, meter: Meter, metrics: list[dict[str, float]]) -> None:
        super().__init__("measured")
        self.meter, self.metrics = meter, metrics


class StepLog(Logger):
    """One tick per optimizer step (or iteration); made when the model is loaded, before the first step."""

    def __init__(self, *, folder: Path, warm: int, steps: int, threads: int, device: str) -> None:
        super().__init__()
        self._steps = warm + steps
        self._metrics: list[dict[str, float]] = []
        self._meter = Meter(warm, threads=threads, device=device)

    @property
    def name(self) -> str:
        return "steps"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """A step has ended. Raises Measured after the last."""
        if not any(name.startswith("train/") for name in metrics):
            return
        self._meter.tick()
        self._metrics.append(dict(metrics))
        if len(self._metrics) == self._steps:
            raise Measured(self._meter, self._metrics)


def loaded_reward(path: str, **settings: Any) -> Any:
    """`ModelReward`, its network loaded at once: it belongs to the loaded start, not to the growth."""
    from alignlab.rollout.rewards.model import ModelReward

    reward = ModelReward(path, **settings)
    assert reward.reward_model is not None
    return reward
