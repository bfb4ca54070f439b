"""Scalar heads: the value head that PPO learns, and how a reward head starts.

Huang et al. 2023, "The N Implementation Details of RLHF with PPO": the value head starts at zero, so that the first
values are exactly 0; the reward head starts with standard deviation 1 / sqrt(d + 1) and no bias.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ValueHead(nn.Module):
    """hidden -> value: one linear layer that starts at zero and computes in float32 whatever comes in."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Float[Tensor, "*positions D"]) -> Float[Tensor, "*positions"]:
        """Values in float32 (autocast is off inside)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.float()).squeeze(-1)


@torch.no_grad()
def init_reward_head(linear: nn.Linear, *, seed: int) -> None:
    """Fresh reward head weights from `seed` alone: std 1 / sqrt(d + 1), bias 0."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(linear.weight.shape, generator=generator) / (linear.in_features + 1) ** 0.5
    linear.weight.copy_(weight)
    if linear.bias is not None:
        linear.bias.zero_()
