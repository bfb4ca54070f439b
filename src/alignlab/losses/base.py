"""What every loss returns, and how a mean over tokens is taken when a step is made of several parts."""

import math
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.kernels.masked import masked_mean, masked_sum

Normalizer = int | float | Float[Tensor, ""] | Int[Tensor, ""] | None
"""The count that a sum over tokens is divided by: that of the whole optimizer step, or None for one's own."""


class LossOutput(NamedTuple):
    """A loss to call backward on, and detached scalars that describe it (the same keys at every step)."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]


def token_mean(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], normalizer: Normalizer) -> Float[Tensor, ""]:
    """Sum over counted tokens, divided by `normalizer` (None: by their number; 0.0 if there are none).

    A step that is split over micro-batches or processes is exact only if each part divides by the count of the whole
    step and the parts are *added*; a mean of means weighs tokens of short parts more.
    """
    return masked_mean(x, mask) if normalizer is None else masked_sum(x, mask) / normalizer


def weighted_mean(x: Float[Tensor, "P"], weight: Float[Tensor, "P"] | None) -> Float[Tensor, ""]:
    """sum(weight * x) / sum(weight); the plain mean for None. Weights are positive (the rows are checked)."""
    if weight is None:
        return x.mean()
    weight = weight.to(x)
    return (weight * x).sum() / weight.sum()


def require_positive(loss: object, **settings: float) -> None:
    """ConfigError for a setting that is not a positive number (NaN is not)."""
    for name, value in settings.items():
        if not value > 0:
            raise ConfigError(f"{type(loss).__name__}: {name}={value} must be a positive number")


def require_between(loss: object, low: float, high: float, **settings: float) -> None:
    """ConfigError for a setting outside low <= value < high."""
    for name, value in settings.items():
        if not low <= value < high:
            limit = "finite" if math.isinf(high) else f"below {high}"
            raise ConfigError(f"{type(loss).__name__}: {name}={value} must be at least {low} and {limit}")
