"""Scores of a reward model, two per pair."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from alignlab.contracts.subjects import EXTREME, Rows, Subject, uniform
from alignlab.losses.base import LossOutput, Normalizer


class Scores(Subject):
    """A `BradleyTerryLoss`."""

    differentiable = ("chosen", "rejected")

    def draw(self, num_rows: int, *, seed: int = 0) -> Rows:
        """Scores of a few units, the chosen ones ahead on average."""
        generator = torch.Generator().manual_seed(seed)
        chosen, rejected = uniform(generator, 2, num_rows, low=-3.0, high=3.0)
        return {"chosen": chosen + 0.5, "rejected": rejected}

    def call(self, loss: Any, rows: Rows, *, normalizer: Normalizer = None, **labels: Tensor) -> LossOutput:
        """`labels`: preference and weight, where they are tested."""
        return loss(rows["chosen"], rows["rejected"], **labels)

    def extremes(self) -> Iterable[tuple[str, Rows]]:
        """Scores of +-EXTREME on either side."""
        for chosen, rejected in ((EXTREME, 0.0), (-EXTREME, 0.0), (EXTREME, -EXTREME), (-EXTREME, EXTREME)):
            yield f"scores of {chosen:g} and {rejected:g}", _scores(chosen, rejected)

    def unusual(self) -> Iterable[Rows]:
        """One pair; a tie; all right, all wrong."""
        return [_scores(1.0, 1.0), _scores(2.0, 1.0), _scores(1.0, 2.0)]

    def swapped(self, rows: Rows) -> Rows:
        """The same pairs with the other label."""
        return {"chosen": rows["rejected"], "rejected": rows["chosen"]}


def _scores(chosen: float, rejected: float) -> Rows:
    return {name: torch.tensor([x], dtype=torch.float64) for name, x in (("chosen", chosen), ("rejected", rejected))}
