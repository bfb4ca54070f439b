"""What is steered by the measured KL: the price of leaving the starting model, and the learning rate.

`FixedKL` keeps the coefficient. `AdaptiveKL` is the proportional controller of Ziegler et al. 2019, section 2.2:
    error = clip(KL / target - 1, -0.2, 0.2);   coefficient *= 1 + error * n / horizon
with KL in nats per sequence and n the number of sequences just seen. `KLAdaptiveLR` is of the kind of Schulman et al.
2017, section 4 (there for the penalty: above 1.5 times the target doubled, below a 1.5th of it halved), applied to the
step size: above twice the target KL of one update the rate is divided by `factor`, below half of it multiplied.
"""

from dataclasses import dataclass
from typing import Protocol

from alignlab.errors import ConfigError


class KLController(Protocol):
    """Holds `coefficient`, the price of a nat of KL in units of the reward."""

    coefficient: float

    def update(self, kl: float, num_sequences: int) -> None:
        """Tell it the mean sequence KL (nats) of a rollout of `num_sequences`."""
        ...


@dataclass(kw_only=True)
class FixedKL:
    """A constant penalty."""

    coefficient: float

    def __post_init__(self) -> None:
        if self.coefficient < 0:
            raise ConfigError(f"method.kl.coefficient={self.coefficient}: must not be negative")

    def update(self, kl: float, num_sequences: int) -> None:
        """Nothing moves."""


@dataclass(kw_only=True)
class AdaptiveKL:
    """A penalty that is steered so that the sequence KL comes to `target`."""

    coefficient: float  # where it starts
    target: float  # nats per sequence
    horizon: float = 1000.0  # sequences: smaller reacts faster
    max_error: float = 0.2

    def __post_init__(self) -> None:
        if self.coefficient <= 0 or self.target <= 0 or self.horizon <= 0 or not 0 < self.max_error < 1:
            raise ConfigError(
                f"method.kl: coefficient={self.coefficient}, target={self.target} and horizon={self.horizon} "
                f"must be positive, max_error={self.max_error} between 0 and 1"
            )

    def update(self, kl: float, num_sequences: int) -> None:
        """One proportional step towards the target."""
        error = min(max(kl / self.target - 1.0, -self.max_error), self.max_error)
        # bounded below: a large batch against a short horizon must not turn the penalty into a reward
        self.coefficient *= max(1.0 + error * num_sequences / self.horizon, 1.0 - self.max_error)


@dataclass(kw_only=True)
class KLAdaptiveLR:
    """Keeps the KL between the policy before and after an iteration's updates near `target` by the step size."""

    target: float  # nats per token, old policy against new
    factor: float = 1.5
    minimum: float = 0.05  # bounds of the scale on method.lr
    maximum: float = 5.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.target <= 0 or self.factor <= 1 or not 0 < self.minimum <= self.scale <= self.maximum:
            raise ConfigError(
                f"method.adaptive_lr: target={self.target} must be positive, factor={self.factor} above 1, "
                f"and minimum={self.minimum} <= scale={self.scale} <= maximum={self.maximum}"
            )

    def update(self, kl: float) -> None:
        """Adjust `scale` after an iteration that moved the policy by `kl`."""
        if kl > 2.0 * self.target:
            self.scale = max(self.scale / self.factor, self.minimum)
        elif kl < 0.5 * self.target:
            self.scale = min(self.scale * self.factor, self.maximum)
