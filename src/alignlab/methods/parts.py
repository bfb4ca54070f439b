"""The loss of a batch, cut where the output head is cut.

What a micro-batch is to the whole network, a part is to the head alone: some rows or pairs of a batch whose logits fill
one tile. The body runs once over all of them; each part's loss counts by its share of the count, so that the sum is the
mean over the batch, exactly as with micro-batches (see `base`).
"""

from collections.abc import Callable
from typing import Any, Protocol, Self

import torch
from jaxtyping import Int
from torch import Tensor

from alignlab.batches import IGNORE, Sequences
from alignlab.kernels.chunked_loss import Metrics, grouped
from alignlab.losses.base import LossOutput
from alignlab.models.backbone import lm_head
from alignlab.models.policy import Policy, PolicyOutput


class Divisible(Protocol):
    """A batch of N units (rows, replies, pairs), each of one or more sequences."""

    @property
    def sequences(self) -> Sequences:
        """(B, T), B a multiple of N."""
        ...

    @property
    def rows(self) -> Int[Tensor, "N"]:
        """Row numbers in the data set."""
        ...

    def take(self, index: Int[Tensor, "n"]) -> Self:
        """Some of the units."""
        ...

    def sequence_rows(self, index: Int[Tensor, "n"]) -> Int[Tensor, "b"]:
        """Which of `sequences` those units are, in the order that `take` gives them."""
        ...


def in_parts(
    policy: Policy,
    batch: Divisible,
    loss: Callable[[Any, PolicyOutput], LossOutput],
    count: Callable[[Any], Tensor],
    *,
    values: bool = False,
    **asked: Any,
) -> tuple[LossOutput, Tensor | None]:
    """`loss(batch, what the policy says of it)`, a mean over `count(batch)`, taken part by part; and the values."""
    index, parts = divided(batch, lm_head(policy.model).weight)
    counts = torch.stack([count(part).double() for part in parts])
    shares = counts / torch.where(counts.sum() > 0, counts.sum(), 1.0)

    def share_of(number: int, out: PolicyOutput) -> tuple[Tensor, Metrics]:
        value, metrics = loss(parts[number], out)
        share = shares[number].to(value.device)
        return value * share.to(value.dtype), {name: metric.double() * share for name, metric in metrics.items()}

    pieces = [(batch.sequence_rows(units), part.sequences) for units, part in zip(index, parts, strict=True)]
    out = policy.loss_in_parts(batch.sequences, pieces, share_of, values=values, **asked)
    return LossOutput(out.loss, out.metrics), out.values


def divided(batch: Divisible, weight: Tensor) -> tuple[list[Tensor], list[Any]]:
    """Runs of units whose scored tokens fill a tile of the head: their numbers, and the parts of the batch."""
    units = torch.arange(len(batch.rows), device=batch.sequences.labels.device)
    lengths = (batch.sequences.labels != IGNORE).sum(1)[batch.sequence_rows(units)].view(-1, len(units)).sum(0)
    runs = grouped(lengths.tolist(), weight)
    if len(runs) == 1:
        return [units], [batch]
    index = [units[run.start : run.stop] for run in runs]
    return index, [batch.take(own) for own in index]
