"""Soft labels and weights: what is known of a pair beside its two replies must reach the loss."""

from collections.abc import Iterator

import torch
from torch import Tensor

from alignlab.contracts.finding import SAME, Finding, difference, remark
from alignlab.contracts.pairs import Pairs
from alignlab.contracts.scores import Scores
from alignlab.contracts.subjects import Rows, num_rows, take, uniform
from alignlab.errors import ConfigError
from alignlab.losses.base import LossOutput

_NUM_PAIRS = 10


def labels(subject: Pairs | Scores) -> Iterator[Finding]:
    """Soft labels mix the two outcomes of a pair, weights weigh pairs.

    A batch-coupled loss uses each of them, or refuses it with a ConfigError.
    """
    rows, generator = subject.draw(_NUM_PAIRS, seed=8), torch.Generator().manual_seed(9)
    preference = uniform(generator, _NUM_PAIRS)
    weight = uniform(generator, _NUM_PAIRS, low=0.2, high=3.0)
    if subject.is_coupled:
        yield from _used_or_refused(subject, rows, "preference", preference)
        yield from _used_or_refused(subject, rows, "weight", weight)
        return
    found = subject.call(subject.still(rows), rows, preference=preference, weight=weight)
    kept, other = (_singles(subject, x) for x in (rows, subject.swapped(rows)))
    for what in kept.keys() & other.keys() & _named(found).keys():
        mixed = preference * kept[what] + (1 - preference) * other[what]
        yield Finding(
            f"{what} misses sum w [p (chosen, rejected) + (1 - p) (rejected, chosen)] / sum w, pair by pair, by",
            difference(_named(found)[what], (weight * mixed).sum() / weight.sum()),
            SAME,
            "forward was overridden and ignores preference or weight, or divides by the number of pairs",
        )


def _singles(subject: Pairs | Scores, rows: Rows) -> dict[str, Tensor]:
    """Loss and metrics of each pair by itself."""
    found = [subject.call(subject.still(rows), take(rows, slice(i, i + 1))) for i in range(num_rows(rows))]
    named = [_named(out) for out in found]
    return {what: torch.stack([one[what] for one in named]) for what in set.intersection(*map(set, named))}


def _named(out: LossOutput) -> dict[str, Tensor]:
    metrics = {f"the metric {name}": torch.as_tensor(x) for name, x in out.metrics.items()}
    return {what: x.detach().double() for what, x in {"the loss": out.loss, **metrics}.items()}


def _used_or_refused(subject: Pairs | Scores, rows: Rows, name: str, given: Tensor) -> Iterator[Finding]:
    plain = subject.call(subject.still(rows), rows).loss
    try:
        found = subject.call(subject.still(rows), rows, **{name: given}).loss
    except ConfigError:
        yield remark(f"{name} is refused")
        return
    yield Finding(
        f"{name} is taken without a ConfigError, and changes the loss by",
        difference(found, plain),
        SAME,
        f"forward was overridden and ignores {name}: use it, or raise a ConfigError that says so",
        must_differ=True,
    )
