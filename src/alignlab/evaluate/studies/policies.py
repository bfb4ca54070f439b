"""A policy some way from its reference, with no network in between: free logits after every prefix."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from alignlab.worlds.exact import ExactWorld


class PrefixPolicy(nn.Module):
    """The reference's next-token log-probs plus normal noise of standard deviation `distance`, as free logits."""

    def __init__(self, world: ExactWorld, *, distance: float, seed: int = 0):
        super().__init__()
        self._tree = world.tree
        generator = torch.Generator().manual_seed(seed)
        tables = [
            table + distance * torch.randn(table.shape, generator=generator, dtype=table.dtype)
            for table in world.tree.conditionals(world.ref_logprobs)
        ]
        self.logits = nn.ParameterList(tables)  # one per depth: [*K, prefixes, V]

    def forward(self) -> Float[Tensor, "*K N L"]:
        """log pi of each token of each response, 0 after its end."""
        return self._tree.on_responses([logits.log_softmax(-1) for logits in self.logits])


def token_logprobs(world: ExactWorld, logprobs: Float[Tensor, "*K N"]) -> Float[Tensor, "*K N L"]:
    """log pi of each token of each response, 0 after its end, for a policy given by its responses."""
    return world.tree.on_responses(world.tree.conditionals(logprobs))


def token_mask(world: ExactWorld) -> Bool[Tensor, "*K N L"]:
    """True on the tokens of a response, its EOS included."""
    mask = torch.arange(world.max_length) < world.lengths.unsqueeze(1)
    return mask.expand(*world.rewards.shape, world.max_length)
