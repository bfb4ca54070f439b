"""What a reply's reward is compared with: from the rewards of one step's replies to their advantages.

A baseline that does not depend on the reply itself leaves the expected gradient as it is and takes variance away
(Williams 1992); `LeaveOneOut`, `GroupMean` (up to a factor) and `RunningMean` are of that kind, `GroupStandardized` is
not: it divides by the spread of the reply's own group. No other whitening is done to what comes out.

To add one: subclass `Baseline`, override `advantages`, name it in a yaml like conf/method/rloo.yaml.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.kernels.advantages import group_advantages

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


class Baseline(ABC):
    """Turns rewards into advantages. The B rewards are of this process, groups of one prompt's replies in a row."""

    smallest_group: ClassVar[int] = 2  # replies per prompt that it needs

    @abstractmethod
    def advantages(self, rewards: Float[Tensor, "B"], group_size: int, total: Total) -> Float[Tensor, "B"]:
        """One advantage per reply; called once a step, on every process."""

    def state(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {}

    def load_state(self, state: dict[str, float]) -> None:  # noqa: B027 - most have none
        """Undo of `state`."""


class LeaveOneOut(Baseline):
    """Reward less the mean of the *other* replies to the prompt: RLOO (Kool et al. 2019; Ahmadian et al. 2024)."""

    def advantages(self, rewards: Float[Tensor, "B"], group_size: int, total: Total) -> Float[Tensor, "B"]:
        return group_advantages(rewards, group_size, kind="rloo")


class GroupMean(Baseline):
    """Reward less the mean of the group, itself included: Dr. GRPO (Liu et al. 2025).

    Leave-one-out times (group_size - 1) / group_size, so unbiased up to that factor.
    """

    def advantages(self, rewards: Float[Tensor, "B"], group_size: int, total: Total) -> Float[Tensor, "B"]:
        return group_advantages(rewards, group_size, kind="rloo") * ((group_size - 1) / group_size)


class GroupStandardized(Baseline):
    """(Reward - group mean) / (group standard deviation + 1e-4): GRPO (Shao et al. 2024).

    The deviation is the unbiased one. Prompts whose replies score nearly alike weigh as much as those where they
    differ, which is a bias: the expected gradient is that of no expected reward.
    """

    def advantages(self, rewards: Float[Tensor, "B"], group_size: int, total: Total) -> Float[Tensor, "B"]:
        return group_advantages(rewards, group_size, kind="grpo")


class RunningMean(Baseline):
    """Reward less the mean of the rewards of *earlier* steps, over all processes (Williams 1992).

    `decay` in [0, 1): mean = decay * mean + (1 - decay) * this step's mean, started from the first step's. None: the
    plain mean over all earlier replies (b_MA of Ahmadian et al. 2024), which lags when rewards rise. The
    first step has no past: there each reply is compared with the mean of all others of the step.
    """

    smallest_group = 1

    def __init__(self, *, decay: float | None) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ConfigError(f"method.baseline.decay={decay}: from 0 to below 1, or null for a plain mean")
        self.decay = decay
        self.mean, self.count = 0.0, 0.0  # of earlier rewards, and the number of replies behind it

    def advantages(self, rewards: Float[Tensor, "B"], group_size: int, total: Total) -> Float[Tensor, "B"]:
        count = float(total(rewards.new_tensor(float(len(rewards))).double()))
        mean = float(total(rewards.double().sum())) / count
        is_first, past = self.count == 0, self.mean
        keep = self.count / (self.count + count) if self.decay is None or is_first else self.decay
        self.mean, self.count = keep * self.mean + (1 - keep) * mean, self.count + count
        if is_first:  # score - (sum - score) / (n - 1) = (score - mean) * n / (n - 1)
            return (rewards - mean) * (count / max(count - 1, 1))
        return rewards - past

    def state(self) -> dict[str, float]:
        return {"mean": self.mean, "count": self.count}

    def load_state(self, state: dict[str, float]) -> None:
        self.mean, self.count = state["mean"], state["count"]
