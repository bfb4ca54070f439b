"""Preference pairs as the pairwise losses see them: four log-probs and two lengths each."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from alignlab.contracts.subjects import EXTREME, Rows, Subject, joined, num_rows, take, uniform
from alignlab.losses.base import LossOutput, Normalizer
from alignlab.losses.preference import PairLogprobs

_SWAPPED = {"chosen": "rejected", "rejected": "chosen"}


class Pairs(Subject):
    """A `PreferenceLoss`."""

    differentiable = ("policy_chosen", "policy_rejected")

    def draw(self, num_rows: int, *, seed: int = 0) -> Rows:
        """Replies of 1 to 20 tokens at 0.05 to 3 nats a token: log-ratios of tens of nats, as in training."""
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 21, (2, num_rows), generator=generator)
        per_token = -uniform(generator, 2, 2, num_rows, low=0.05, high=3.0)
        policy, reference = per_token * lengths
        return {
            "policy_chosen": policy[0],
            "policy_rejected": policy[1],
            "reference_chosen": reference[0],
            "reference_rejected": reference[1],
            "chosen_length": lengths[0],
            "rejected_length": lengths[1],
        }

    def call(self, loss: Any, rows: Rows, *, normalizer: Normalizer = None, **labels: Tensor) -> LossOutput:
        """`labels`: preference and weight, where they are tested."""
        return loss(policy_of(rows), reference_of(rows) if loss.needs_reference else None, **labels)

    def extremes(self) -> Iterable[tuple[str, Rows]]:
        """Log-ratios of +-EXTREME on either reply, one token long (a mean is then as extreme as a sum)."""
        for chosen, rejected in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, -1), (-1, 1), (1, 1), (-1, -1)):
            yield f"log-ratios {chosen * EXTREME:g} and {rejected * EXTREME:g}", _pair(chosen, rejected)
        certain = {**_pair(0, 0), "policy_chosen": torch.zeros(1, dtype=torch.float64)}
        yield "a chosen reply of probability 1", certain
        yield "a rejected reply of probability 1", swapped(certain)

    def unusual(self) -> Iterable[Rows]:
        """One pair; no pair right and all right; ties."""
        rows = self.draw(6, seed=5)
        better = torch.maximum(rows["policy_chosen"], rows["policy_rejected"])
        worse = torch.minimum(rows["policy_chosen"], rows["policy_rejected"])
        right = at_reference(rows) | {"policy_chosen": better, "policy_rejected": worse}
        right |= {"reference_chosen": worse, "reference_rejected": better, "rejected_length": rows["chosen_length"]}
        return [take(rows, slice(1)), right, swapped(right), at_reference(rows)]

    def values(self, rows: Rows, *, among: Rows | None = None) -> Tensor:
        """The loss of each pair, running state standing still: `per_pair`; where pairs are coupled, the loss of a batch
        of this pair and three others (`among`)."""
        loss = self.still(rows)
        if not self.is_coupled:
            return loss.per_pair(policy_of(rows), self.reference_given(rows)).detach()
        others = self.draw(3, seed=99) if among is None else among
        batches = [joined([take(rows, slice(i, i + 1)), others]) for i in range(num_rows(rows))]
        return torch.stack([self.call(loss, batch).loss.detach() for batch in batches])

    def margins(self, rows: Rows) -> Tensor:
        """Chosen less rejected implied reward of each pair."""
        chosen, rejected = self.still(rows).implied_rewards(policy_of(rows), self.reference_given(rows))
        return (chosen - rejected).detach()

    def swapped(self, rows: Rows) -> Rows:
        """The same pairs with the other label."""
        return swapped(rows)

    def reference_given(self, rows: Rows) -> PairLogprobs | None:
        """The reference as `forward` hands it on: None where the loss says that it needs none."""
        return reference_of(rows) if self.loss.needs_reference else None


def policy_of(rows: Rows) -> PairLogprobs:
    """The policy's half of the rows."""
    return _half(rows, "policy")


def reference_of(rows: Rows) -> PairLogprobs:
    """The reference's half of the rows."""
    return _half(rows, "reference")


def swapped(rows: Rows) -> Rows:
    """The same pairs with the other label."""
    turned = {}
    for name in rows:
        for side, other in _SWAPPED.items():
            if side in name:
                turned[name] = rows[name.replace(side, other)]
    return turned


def at_reference(rows: Rows) -> Rows:
    """The same pairs read by a policy that is the reference."""
    return rows | {"policy_chosen": rows["reference_chosen"], "policy_rejected": rows["reference_rejected"]}


def _half(rows: Rows, whose: str) -> PairLogprobs:
    lengths = (rows["chosen_length"], rows["rejected_length"])
    return PairLogprobs(rows[f"{whose}_chosen"], rows[f"{whose}_rejected"], *lengths)


def _pair(chosen: int, rejected: int) -> Rows:
    """One pair of one-token replies with log-ratios of so many EXTREMEs; every log-prob is below 0."""

    def at(ratio: int) -> tuple[Tensor, Tensor]:
        low, high = -1.0 - EXTREME, -1.0
        policy, reference = (high if ratio >= 0 else low), (high if ratio <= 0 else low)
        return torch.tensor([policy], dtype=torch.float64), torch.tensor([reference], dtype=torch.float64)

    one = torch.ones(1, dtype=torch.int64)
    (policy_chosen, reference_chosen), (policy_rejected, reference_rejected) = at(chosen), at(rejected)
    return {
        "policy_chosen": policy_chosen,
        "policy_rejected": policy_rejected,
        "reference_chosen": reference_chosen,
        "reference_rejected": reference_rejected,
        "chosen_length": one,
        "rejected_length": one,
    }
