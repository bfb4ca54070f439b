"""The policy: a causal LM whose forward gives log-probs of scored tokens, never logits.

The body runs once over all positions; the head is applied to the hidden states at scored positions only, inside
`linear_logprobs`, which never holds a [positions, vocabulary] tensor. Results are in shifted coordinates: entry
[b, t] belongs to the token at t + 1, and the mask says which count.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from alignlab.batches import IGNORE, Sequences
from alignlab.kernels.chunked_loss import Metrics, linear_loss
from alignlab.kernels.logprobs import LinearLogprobs, linear_argmax, linear_logprobs, shift_labels
from alignlab.models.adapter_state import adapter_off, is_adapted
from alignlab.models.backbone import Head, device_of, lm_head
from alignlab.models.decoding import Decoder
from alignlab.models.embeddings import head_after_body
from alignlab.models.heads import ValueHead
from alignlab.models.origins import Origin
from alignlab.models.packing import Layout, hidden_at


class PolicyOutput(NamedTuple):
    """Per-token results in shifted coordinates, float32 (or float64 for float64 weights), 0 where `mask` is False."""

    logprobs: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    entropy: Float[Tensor, "B T"] | None  # of the tempered distribution
    values: Float[Tensor, "B T"] | None  # of the state before each scored token
    greedy: Bool[Tensor, "B T"] | None  # whether the scored token is the most likely one


class LossInParts(NamedTuple):
    """What `Policy.loss_in_parts` returns; values as in `PolicyOutput`."""

    loss: Float[Tensor, ""]
    metrics: Metrics
    values: Float[Tensor, "B T"] | None


PartLoss = Callable[[int, PolicyOutput], tuple[Float[Tensor, ""], Metrics]]
"""(number of a part, what the policy says of its sequences) -> the part's share of loss and metrics."""


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
        self.layout: Layout = "auto"
        self.decoder: Decoder = "auto"  # which loop `rollout.generate` takes
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
        hidden, head = self._read(sequences, mask)
        settings = head._asdict()
        scored = linear_logprobs(hidden, labels=labels[mask], temperature=temperature, entropy=entropy, **settings)
        return PolicyOutput(
            logprobs=scatter(scored.logprobs, mask),
            mask=mask,
            entropy=None if scored.entropy is None else scatter(scored.entropy, mask),
            values=self._values(hidden, mask) if values else None,
            greedy=scatter(linear_argmax(hidden, **settings) == labels[mask], mask) if greedy else None,
        )

    def loss_in_parts(
        self,
        sequences: Sequences,
        parts: Sequence[tuple[Int[Tensor, "b"], Sequences]],
        loss: PartLoss,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        values: bool = False,
    ) -> "LossInParts":
        """The sum of the losses of parts of a batch, each taken as soon as its log-probs are known.

        `parts`: rows of `sequences` with those rows as sequences of their own. Equal to one `forward` and a loss over
        it, in about three quarters of the head's work (see `linear_loss`); what `loss` is given has no values.
        """
        labels = shift_labels(sequences.labels)
        mask = labels != IGNORE
        hidden, head = self._read(sequences, mask)
        place = torch.zeros(mask.shape, dtype=torch.int64, device=mask.device)
        place[mask] = torch.arange(len(hidden), device=mask.device)  # of each scored token among the scored
        masks = [shift_labels(part.labels) != IGNORE for _, part in parts]

        def loss_of(number: int, scored: LinearLogprobs) -> tuple[Tensor, Metrics]:
            own = masks[number]
            of_tokens = None if scored.entropy is None else scatter(scored.entropy, own)
            return loss(number, PolicyOutput(scatter(scored.logprobs, own), own, of_tokens, None, None))

        total, metrics = linear_loss(
            hidden,
            labels=labels[mask],
            parts=[place[rows][mask[rows]] for rows, _ in parts],
            loss=loss_of,
            temperature=temperature,
            entropy=entropy,
            **head._asdict(),
        )
        return LossInParts(total, metrics, self._values(hidden, mask) if values else None)

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

    def _read(self, sequences: Sequences, mask: Bool[Tensor, "B T"]) -> tuple[Float[Tensor, "scored D"], Head]:
        """The hidden states at scored positions, and the head that belongs to them."""
        with head_after_body(self.model) as head:
            hidden = hidden_at(self.model, sequences, mask, layout=self.layout)
        return hidden, head()

    def _values(self, hidden: Float[Tensor, "scored D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        assert self.value_head is not None, "values=True needs policy.value_head = ValueHead(policy.hidden_size)"
        return scatter(self.value_head(hidden), mask)


def scatter(values: Float[Tensor, "N"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Puts N values where `mask` is True, row by row, and 0 elsewhere; differentiable."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
