"""The reward model's loss: scores of which the difference is the log-odds of being preferred (Bradley-Terry)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from alignlab.kernels.precision import autocast_off, upcast
from alignlab.losses.base import LossOutput, require_between


class BradleyTerryLoss(nn.Module):
    """mean of -log sigmoid(r_chosen - r_rejected - margin) + center * (r_chosen + r_rejected)^2.

    `margin` asks for a gap (Touvron et al. 2023, sec. 3.2.2, with one gap for all pairs). `center` holds the scores
    around 0, which the difference alone leaves free (Eisenstein et al. 2023); 0.01 is enough.
    """

    def __init__(self, margin: float = 0.0, center: float = 0.0):
        super().__init__()
        require_between(self, 0.0, math.inf, margin=margin, center=center)
        self.margin, self.center = margin, center

    def forward(self, chosen_scores: Float[Tensor, "P"], rejected_scores: Float[Tensor, "P"]) -> LossOutput:
        """Mean over pairs. Metrics: `accuracy` (a tie counts half), `margin` and the mean scores."""
        with autocast_off(chosen_scores):
            chosen, rejected = upcast(chosen_scores), upcast(rejected_scores)
            loss = -F.logsigmoid(chosen - rejected - self.margin).mean()
            if self.center:
                loss = loss + self.center * (chosen + rejected).square().mean()
            return LossOutput(loss, _metrics(chosen.detach(), rejected.detach()))


def _metrics(chosen: Float[Tensor, "P"], rejected: Float[Tensor, "P"]) -> dict[str, Float[Tensor, ""]]:
    gap = chosen - rejected
    return {
        "accuracy": pair_accuracy(gap),
        "margin": gap.mean(),
        "chosen_score": chosen.mean(),
        "rejected_score": rejected.mean(),
    }


def pair_accuracy(gap: Float[Tensor, "P"]) -> Float[Tensor, ""]:
    """Share of pairs whose chosen side is ahead; a tie is a coin toss and counts half."""
    return torch.heaviside(gap, gap.new_tensor(0.5)).mean()
