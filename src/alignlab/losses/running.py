"""A mean over everything seen so far, for losses that compare with it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RunningMean(nn.Module):
    """sum(weight * x) / sum(weight) over all updates; 0 before the first.

    Two float64 buffers: saved with the module's state, so that a resumed run goes on from the same number.
    """

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @property
    def value(self) -> Float[Tensor, ""]:
        """The mean, detached."""
        return self.total / torch.where(self.count > 0, self.count, 1.0)

    @torch.no_grad()
    def update(self, x: Float[Tensor, "N"], weight: Float[Tensor, "N"] | None = None) -> None:
        """Take in `x`, each entry as often as `weight` says (None: once)."""
        weight = torch.ones_like(x) if weight is None else weight
        self.total += (weight.double() * x.double()).sum()
        self.count += weight.double().sum()
