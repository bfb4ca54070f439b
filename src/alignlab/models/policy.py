"""The policy: a causal LM whose forward gives log-probs of scored tokens, never logits.

The body runs once over all positions; the head is applied to the hidden states at scored positions only, inside
`linear_logprobs`, which never holds a [positions, vocabulary] tensor. Results are in shifted coordinates: entry
[b, t] belongs to the token at t + 1, and the mask says which count.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from alignlab.batches import IGNORE, Sequences
from alignlab.kernels.logprobs import linear_argmax, linear_logprobs, shift_labels
from alignlab.models.adapter_state import adapter_off, is_adapted
from alignlab.models.backbone import device_of, hidden_states, lm_head
from alignlab.models.heads import ValueHead
from alignlab.models.origins import Origin


class PolicyOutput(NamedTuple):
    """Per-token results in shifted coordinates, float32 (or float64 for float64 weights), 0 where `mask` is False."""

    logprobs: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    entropy: Float[Tensor, "B T"] | None  # of the tempered distribution
    values: Float[Tensor, "B T"] | None  # of the state before each scored token
    greedy: Bool[Tensor, "B T"] | None  # whether the scored token is the most likely one


class Policy(nn.Module):
    """A causal LM with its tokenizer and stop tokens, and, where one was put there, a value head."""

    value_head: ValueHead | None

    def __init__(
        self,
        model: nn.Module,
        *,
        tokenizer: Any,
        stop_token_ids: tuple[int, ...],
        origin: Origin | None = None,
        quantization: dict[str, Any] | None = None,
    ) -> None:
        """`origin`: where the frozen weights under an adapter can be had again (None: saved with it)."""
        super().__init__()
        self.model = model
        self.value_head = None
        self.tokenizer = tokenizer
        self.stop_token_ids = stop_token_ids
        self.origin = origin
        self.quantization = quantization

    def forward(
        self,
        sequences: Sequences,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        values: bool = False,
        greedy: bool = False,
    ) -> PolicyOutput:
        """Log-probs of the scored tokens under softmax(logits / temperature); entropy, values, greedy where asked for.

        `values` needs a value head, which reads the same hidden states (so its gradient reaches the body). `greedy`
        costs another pass over the head.
        """
        labels = shift_labels(sequences.labels)
        mask = labels != IGNORE
        hidden = hidden_states(self.model, sequences.input_ids, sequences.attention_mask)[mask]  # (scored, D)
        weight, bias = lm_head(self.model)
        scored = linear_logprobs(hidden, weight, labels[mask], bias=bias, temperature=temperature, entropy=entropy)
        valued = None
        if values:
            assert self.value_head is not None, "values=True needs policy.value_head = ValueHead(policy.hidden_size)"
            valued = scatter(self.value_head(hidden), mask)
        return PolicyOutput(
            logprobs=scatter(scored.logprobs, mask),
            mask=mask,
            entropy=None if scored.entropy is None else scatter(scored.entropy, mask),
            values=valued,
            greedy=scatter(linear_argmax(hidden, weight, bias=bias) == labels[mask], mask) if greedy else None,
        )

    @property
    def hidden_size(self) -> int:
        """D: the width of the hidden states that the head reads."""
        return lm_head(self.model).weight.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return device_of(self.model)

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained, so that the reference is this very network with the adapter off."""
        return is_adapted(self.model)

    def adapter_off(self) -> AbstractContextManager[None]:
        """Inside, the network is the one training started from (its own business for a policy without an adapter)."""
        return adapter_off(self.model) if self.has_adapter else nullcontext()


def scatter(values: Float[Tensor, "N"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Puts N values where `mask` is True, row by row, and 0 elsewhere; differentiable."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
