"""A value network of its own: a decoder body and a value head. (The other kind shares the policy's trunk.)"""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignlab.batches import IGNORE, Sequences
from alignlab.errors import ModelError
from alignlab.kernels.logprobs import shift_labels
from alignlab.models.backbone import body_of, unwrapped
from alignlab.models.heads import ValueHead
from alignlab.models.packing import Layout, body_hidden_at
from alignlab.models.policy import Policy, scatter
from alignlab.models.reward_model import RewardModel


class Critic(nn.Module):
    """Values of the states before scored tokens."""

    def __init__(self, body: nn.Module, *, value_head: ValueHead) -> None:
        super().__init__()
        self.body = body
        self.value_head = value_head
        self.layout: Layout = "auto"

    def forward(self, sequences: Sequences) -> Float[Tensor, "B T"]:
        """Values in float32, in shifted coordinates: entry t is of the state from which token t + 1 was drawn."""
        mask = shift_labels(sequences.labels) != IGNORE
        hidden = body_hidden_at(self.body, sequences, mask, layout=self.layout)  # (scored, D)
        return scatter(self.value_head(hidden), mask)

    @classmethod
    def from_policy(cls, policy: Policy) -> "Critic":
        """A copy of the policy's body and a head that starts at 0; beside an adapter, of which it has its own, the
        frozen weights are the policy's very own."""
        head = ValueHead(policy.hidden_size).to(policy.device)
        critic = cls(copied(body_of(policy.model), share_frozen=policy.has_adapter), value_head=head)
        critic.layout = policy.layout
        return critic

    @classmethod
    def from_reward_model(cls, reward_model: RewardModel, *, tokenizer: Any) -> "Critic":
        """A copy of a decoder reward model: the value at a reply's last token starts as its normalised score.

        `tokenizer` is the policy's; ModelError if the reward model reads other token ids, or is an encoder.
        """
        if not reward_model.is_decoder:
            raise ModelError("a critic cannot start from an encoder reward model: it has no value for a prefix")
        if tokenizer.get_vocab() != reward_model.tokenizer.get_vocab():
            raise ModelError(
                "a critic cannot start from this reward model: it reads other token ids than the policy; choose "
                "method.critic=separate or shared"
            )
        score = unwrapped(reward_model.model).score
        head = ValueHead(score.in_features).to(reward_model.device)
        with torch.no_grad():
            head.linear.weight.copy_(reward_model.gain * score.weight.float())
            head.linear.bias.copy_(reward_model.bias + reward_model.gain * (0 if score.bias is None else score.bias))
        body = copied(body_of(reward_model.model), share_frozen=reward_model.has_adapter)
        if not reward_model.has_adapter and reward_model.quantization is None:
            body.requires_grad_(True)
        critic = cls(body, value_head=head)
        critic.layout = reward_model.layout
        return critic


def copied(body: nn.Module, *, share_frozen: bool) -> nn.Module:
    """A copy of a network; with `share_frozen` its frozen weights are the original's own tensors, not copies.

    So four roles on one base cost the memory of one base and of their adapters.
    """
    frozen = {id(p): p for p in body.parameters() if not p.requires_grad} if share_frozen else {}
    return copy.deepcopy(body, frozen)  # what the memo has is taken as it is
