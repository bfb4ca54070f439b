"""The reference policy: the network that training starts from, asked for log-probs without gradients.

Both give `(sequences, *, temperature) -> log-probs[B, T]` in shifted coordinates, in eval mode whatever mode the policy
is in, so that dropout never makes policy and reference differ.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignlab.batches import Sequences
from alignlab.errors import ModelError
from alignlab.models.backbone import evaluating
from alignlab.models.policy import Policy


class AdapterOff:
    """The policy's own network with its adapter off: no second copy of the weights. Not a module: it owns none."""

    def __init__(self, policy: Policy) -> None:
        """ModelError for a policy without an adapter."""
        if not policy.has_adapter:
            raise ModelError("a reference by adapter-off needs an adapter; use a frozen copy for full fine-tuning")
        self._policy = policy

    @torch.no_grad()
    def __call__(self, sequences: Sequences, *, temperature: float = 1.0) -> Float[Tensor, "B T"]:
        """Log-probs of the network that training started from."""
        with evaluating(self._policy.model), self._policy.adapter_off():
            return self._policy(sequences, temperature=temperature).logprobs


class FrozenCopy(nn.Module):
    """A second, frozen copy of the policy as it is now (make it before the first step)."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = Policy(
            copy.deepcopy(policy.model), tokenizer=policy.tokenizer, stop_token_ids=policy.stop_token_ids
        )
        self.policy.layout = policy.layout
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, sequences: Sequences, *, temperature: float = 1.0) -> Float[Tensor, "B T"]:
        """Log-probs of the copy."""
        return self.policy(sequences, temperature=temperature).logprobs

    def train(self, mode: bool = True) -> "FrozenCopy":
        """Stays in eval mode, whatever the module around it is told."""
        return super().train(False)
