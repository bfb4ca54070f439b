"""Tokens of replies: the losses that see a number per position and a mask of the positions that count."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignlab.contracts.finding import SAME, Finding, difference
from alignlab.contracts.subjects import EXTREME, Rows, Subject, uniform
from alignlab.losses.base import LossOutput, Normalizer

_LENGTH = 7


class Tokens(Subject):
    """A loss over `mask`ed positions; a subclass names what else stands at each of them."""

    ranges: ClassVar[dict[str, tuple[float, float]]]
    """What the loss is given per token, in the order of its arguments, and from where to where it is drawn."""
    options: ClassVar[tuple[str, ...]] = ()
    """Which of these are given by keyword."""
    far: ClassVar[tuple[dict[str, float], ...]]
    """Values that stand at every token in the extremes."""

    def draw(self, num_rows: int, *, seed: int = 0) -> Rows:
        """`_LENGTH` positions a row, of which a prompt in front, padding behind and one in the middle do not count."""
        generator = torch.Generator().manual_seed(seed)
        rows = {n: uniform(generator, num_rows, _LENGTH, low=a, high=b) for n, (a, b) in self.ranges.items()}
        columns = torch.arange(_LENGTH).expand(num_rows, _LENGTH)
        start = torch.randint(0, 3, (num_rows, 1), generator=generator)
        end = torch.randint(4, _LENGTH + 1, (num_rows, 1), generator=generator)
        return {**rows, "mask": (columns >= start) & (columns < end) & (columns != start + 1)}

    def call(self, loss: Any, rows: Rows, *, normalizer: Normalizer = None) -> LossOutput:
        """All of the rows' tensors, the mask after those that are given by position."""
        given = [rows[name] for name in self.ranges if name not in self.options]
        return loss(*given, rows["mask"], **{name: rows[name] for name in self.options}, normalizer=normalizer)

    def extremes(self) -> Iterable[tuple[str, Rows]]:
        """Every combination of `far`, at every token."""
        for values in self.far:
            rows = self.draw(2)
            yield (
                ", ".join(f"{name} {x:g}" for name, x in values.items()),
                rows | {name: torch.full_like(rows[name], x) for name, x in values.items()},
            )

    def unusual(self) -> Iterable[Rows]:
        """One row; a batch in which nothing counts."""
        rows = self.draw(2, seed=5)
        return [self.draw(1, seed=5), rows | {"mask": torch.zeros_like(rows["mask"])}]

    def count(self, rows: Rows) -> float:
        """Counted tokens."""
        return float(rows["mask"].sum())


class ReplyTokens(Tokens):
    """An `SFTLoss`."""

    differentiable = ("logprobs",)
    ranges: ClassVar = {"logprobs": (-4.0, -0.01)}
    far: ClassVar = ({"logprobs": -EXTREME}, {"logprobs": 0.0})


class PolicyTokens(Tokens):
    """A `PPOPolicyLoss`."""

    differentiable = ("logprobs", "entropy")
    ranges: ClassVar = {
        "logprobs": (-4.0, -0.01),
        "old_logprobs": (-4.0, -0.01),
        "advantages": (-2.0, 2.0),
        "entropy": (0.1, 2.0),
        "weights": (0.2, 3.0),
    }
    options = ("entropy", "weights")
    far: ClassVar = tuple(
        {"logprobs": new, "old_logprobs": old, "advantages": advantage}
        for new, old in ((-EXTREME, -1.0), (-1.0, -EXTREME))
        for advantage in (3.0, -3.0)
    )


class ValueTokens(Tokens):
    """A `ValueLoss`."""

    differentiable = ("values",)
    ranges: ClassVar = {"values": (-2.0, 2.0), "old_values": (-2.0, 2.0), "returns": (-2.0, 2.0)}
    far: ClassVar = ({"values": EXTREME, "returns": -EXTREME}, {"values": -EXTREME, "returns": EXTREME})


def masked_positions(tokens: Tokens) -> Iterator[Finding]:
    """Nothing where the mask is off reaches loss or gradient, not NaN."""
    rows = tokens.draw(6)
    whole, hidden = tokens.evaluate(rows), ~rows["mask"]
    for junk in (float("nan"), float("inf"), -1e30, 7.0):
        spoilt = {name: x.masked_fill(hidden, junk) if x.is_floating_point() else x for name, x in rows.items()}
        found = tokens.evaluate(spoilt)
        apart = [difference(found.gradients[name], x) for name, x in whole.gradients.items()]
        yield Finding(
            f"{junk:g} at positions that do not count changes the loss or a gradient by",
            max(difference(found.loss, whole.loss), *apart),
            SAME,
            "multiplying by the mask (0 * NaN is NaN) or a mean over all positions: select with torch.where before "
            "anything else, and divide by the number of counted tokens",
        )
        yield Finding(
            f"{junk:g} at positions that do not count changes a metric by",
            max([_apart(found.metrics.get(name), x) for name, x in whole.metrics.items()] or [0.0]),
            SAME,
            "a metric is a mean over all positions instead of masked_mean",
        )


def _apart(x: Tensor | None, other: Tensor) -> float:
    return float("inf") if x is None else difference(x, other)
