"""What one PPO iteration learns from: a rollout with everything that is fixed while the policy moves.

All per-token tensors are in shifted coordinates (entry t belongs to the token at t + 1); `mask` is True on reply
tokens, the stop token included. Outside it everything is 0.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignlab.batches import Sequences


class Experience(NamedTuple):
    """B replies of up to T positions."""

    sequences: Sequences  # (B, T)
    mask: Bool[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"]  # of the policy that sampled, recomputed by the training forward
    values: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"]
    rows: Int[Tensor, "B"]

    def take(self, index: Tensor) -> "Experience":
        """Some of the replies; columns that are padding in all of them are cut off everywhere alike."""
        used = self.sequences.attention_mask[index].any(0).nonzero().flatten()
        columns = slice(int(used[0]), int(used[-1]) + 1)
        sequences = Sequences(*(x[index][:, columns] for x in self.sequences))
        per_token = [x[index][:, columns] for x in self[1:6]]
        return Experience(sequences, *per_token, rows=self.rows[index])

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator["Experience"]:
        """All replies once, in an order drawn from `generator`, `size` at a time."""
        order = torch.randperm(len(self.rows), generator=generator)
        for part in order.split(size):
            yield self.take(part.to(self.rows.device))

    def split(self, size: int) -> Iterator["Experience"]:
        """Micro-batches in order."""
        for part in torch.arange(len(self.rows), device=self.rows.device).split(size):
            yield self.take(part)


def token_rewards(
    scores: Float[Tensor, "B"], logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coefficient: float
) -> Float[Tensor, "B T"]:
    """The reward of each reply token: -kl_coefficient (log pi - log pi_ref), and the reply's score on its last token.

    Eq. 2 of Ouyang et al. 2022 spread over tokens (Ziegler et al. 2019). The penalty is the k1 estimate, whose
    gradient through the return is exact; the score stands on the last real token, not on the pad after it (P27).
    """
    rewards = -kl_coefficient * (logprobs - ref_logprobs) * mask
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (positions * mask).amax(-1)
    has_any = mask.any(-1)
    rows = torch.arange(len(scores), device=mask.device)
    rewards[rows, last] += scores.to(rewards.dtype) * has_any
    return rewards
