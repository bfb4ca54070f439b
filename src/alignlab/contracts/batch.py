"""Which rows share a batch must not matter: permutation and partition, for values, gradients and metrics."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from alignlab.contracts.finding import SAME, Finding, difference
from alignlab.contracts.subjects import Evaluated, Rows, Subject, split, take

_NUM_ROWS = 9
_FLOAT32 = 1e-6  # a share of rows is often counted in float32
_PARTS = (4, 1, 2, 2)  # unequal, so that a mean of means is another number


def batches(subject: Subject) -> Iterator[Finding]:
    """Order and micro-batches do not matter (batch_coupled: they do).

    For a coupled loss the parts of a batch are seen in order by one copy, so that running state counts as coupling.
    """
    rows = subject.draw(_NUM_ROWS)
    whole, shuffled, added = subject.evaluate(rows), _shuffled(subject, rows), _added(subject, rows)
    if subject.is_coupled:
        yield Finding(
            "declared batch_coupled: shuffling the rows or cutting the batch changes the loss or a gradient by",
            max(_apart(whole, shuffled), _apart(whole, added)),
            SAME,
            "batch_coupled = True was copied from another loss; without it the batch may be cut into micro-batches and "
            "spread over processes",
            must_differ=True,
        )
        return
    yield Finding(
        "rows in another order change the loss or a gradient by",
        _apart(whole, shuffled),
        SAME,
        "rows are compared with their neighbours (roll, flip, pairing by position); if that is meant, declare "
        "batch_coupled = True and override forward",
    )
    yield Finding(
        "the batch cut into parts of 4, 1, 2 and 2 rows, weighed by their counts, changes the loss or a gradient by",
        _apart(whole, added),
        SAME,
        "a statistic of the batch (mean, standard deviation, maximum, running state) is in the loss, or a sum stands "
        "where a mean belongs; if coupling is meant, declare batch_coupled = True and override forward",
    )
    yield Finding(
        "another order, or the cut into parts, changes a metric by",
        max(_metrics_apart(whole, shuffled), _metrics_apart(whole, added)),
        _FLOAT32,
        "a metric is not a mean over rows (a sum, a maximum, a standard deviation): what is logged would depend on "
        "hardware.micro_batch_size",
    )


def normalizers(subject: Subject) -> Iterator[Finding]:
    """Parts divided by the step's token count add up to the whole."""
    rows = subject.draw(_NUM_ROWS)
    yield Finding(
        "parts that each divide by the token count of the whole step do not add up to it, but miss it by",
        _apart(subject.evaluate(rows), _added(subject, rows, normalizer=subject.count(rows))),
        SAME,
        "normalizer is ignored, or used for one of several terms only",
    )


def _shuffled(subject: Subject, rows: Rows) -> Evaluated:
    """The rows in another order, their gradients put back into the first one."""
    order = torch.randperm(_NUM_ROWS, generator=torch.Generator().manual_seed(1))
    found = subject.evaluate(take(rows, order))
    return found._replace(gradients={name: x[order.argsort()] for name, x in found.gradients.items()})


def _added(subject: Subject, rows: Rows, normalizer: float | None = None) -> Evaluated:
    """The parts of a batch put together as an optimizer step does: weighed by their share, or divided by the whole.

    One copy of the loss sees them in order, as in training, so that running state carries over.
    """
    loss, total = subject.fresh(), subject.count(rows)
    shares, found = [], []
    for part in split(rows, _PARTS):
        shares.append(subject.count(part) / total)
        found.append(subject.evaluate(part, loss=loss, normalizer=normalizer))
    weights = shares if normalizer is None else [1.0] * len(shares)
    return Evaluated(
        _weighted([one.loss for one in found], weights),
        {name: torch.cat([w * one.gradients[name] for w, one in zip(weights, found)]) for name in found[0].gradients},
        {
            name: _weighted([one.metrics[name] for one in found], shares)
            for name in found[0].metrics
            if all(name in one.metrics for one in found)
        },
    )


def _weighted(values: list[Tensor], weights: list[float]) -> Tensor:
    return sum((w * x.detach().double() for w, x in zip(weights, values)), torch.zeros((), dtype=torch.float64))


def _apart(one: Evaluated, other: Evaluated) -> float:
    """The largest difference in loss and gradients, these relative to their own largest."""
    scale = max([x.abs().max().item() for x in one.gradients.values()] + [1e-12])
    gradients = [difference(other.gradients[name] / scale, x / scale) for name, x in one.gradients.items()]
    return max(difference(other.loss, one.loss), *gradients)


def _metrics_apart(one: Evaluated, other: Evaluated) -> float:
    if one.metrics.keys() != other.metrics.keys():
        return math.inf
    return max([difference(other.metrics[name], x) for name, x in one.metrics.items()] or [0.0])
