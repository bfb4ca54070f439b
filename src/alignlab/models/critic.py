"""A value network of its own: a decoder body and a value head. (The other kind shares the policy's trunk.)"""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignlab.batches import IGNORE, Sequences
from alignlab.errors import ModelError
from alignlab.kernels.logprobs import shift_labels
from alignlab.models.backbone import body_of, positions_of, takes_positions, unwrapped
from alignlab.models.heads import ValueHead
from alignlab.models.policy import Policy, scatter
from alignlab.models.reward_model import RewardModel


class Critic(nn.Module):
    """Values of the states before scored tokens."""

    def __init__(self, body: nn.Module, *, value_head: ValueHead) -> None:
        super().__init__()
        self.body = body
        self.value_head = value_head

    def forward(self, sequences: Sequences) -> Float[Tensor, "B T"]:
        """Values in float32, in shifted coordinates: entry t is of the state from which token t + 1 was drawn."""
        mask = shift_labels(sequences.labels) != IGNORE
        attention = sequences.attention_mask
        extra = {"position_ids": positions_of(attention)} if takes_positions(self.body) else {}
        out = self.body(input_ids=sequences.input_ids, attention_mask=attention.long(), use_cache=False, **extra)
        return scatter(self.value_head(out.last_hidden_state[mask]), mask)

    @classmethod
    def from_policy(cls, policy: Policy) -> "Critic":
        """A copy of the policy's body (of its adapter too, then only that is trained) and a head that starts at 0."""
        head = ValueHead(policy.hidden_size).to(policy.device)
        return cls(copy.deepcopy(body_of(policy.model)), value_head=head)

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
        body = copy.deepcopy(body_of(reward_model.model))
        if not reward_model.has_adapter and reward_model.quantization is None:
            body.requires_grad_(True)
        return cls(body, value_head=head)
