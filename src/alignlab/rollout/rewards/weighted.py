"""Several rewards as one: their weighted sum."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.rollout.scoring import Reward, checked_scores
from alignlab.rows import Prompt


class WeightedReward:
    """sum over names of weights[name] * rewards[name](prompts, responses)."""

    def __init__(self, *, rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        """ConfigError unless both have the same names, at least one."""
        if not rewards or set(rewards) != set(weights):
            raise ConfigError(
                f"method.reward: rewards are {sorted(rewards)}, weights are for {sorted(weights)}; the names must agree"
            )
        self.rewards, self.weights = dict(rewards), dict(weights)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, "B"]:
        """The weighted sum."""
        parts = self.parts(prompts, responses)
        return torch.stack([self.weights[name] * scores for name, scores in parts.items()]).sum(0)

    def parts(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, Float[Tensor, "B"]]:
        """Each reward's own scores, unweighted."""
        return {name: checked_scores(reward, prompts, responses).cpu() for name, reward in self.rewards.items()}

    def to(self, device: torch.device | str) -> "WeightedReward":
        """Moves those rewards that have weights."""
        for reward in self.rewards.values():
            if hasattr(reward, "to"):
                reward.to(device)  # pyright: ignore[reportFunctionMemberAccess]
        return self
