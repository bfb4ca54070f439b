"""The reward model's loss: scores of which the difference is the log-odds of being preferred (Bradley-Terry)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from alignlab.kernels.precision import autocast_off, upcast
from alignlab.losses.base import LossOutput, require_between, weighted_mean


class BradleyTerryLoss(nn.Module):
    """mean of -[p log sigmoid(d - margin) + (1 - p) log sigmoid(-d - margin)] + center * (r_chosen + r_rejected)^2,

    d = r_chosen - r_rejected, p the probability that the chosen reply is the better one (1 unless told otherwise).
    `margin` asks for a gap (Touvron et al. 2023, sec. 3.2.2, with one gap for all pairs). `center` holds the scores
    around 0, which the difference alone leaves free (Eisenstein et al. 2023); 0.01 is enough.
    """

    def __init__(self, margin: float = 0.0, center: float = 0.0):
        super().__init__()
        require_between(self, 0.0, math.inf, margin=margin, center=center)
        self.margin, self.center = margin, center

    def forward(
        self,
        chosen_scores: Float[Tensor, "P"],
        rejected_scores: Float[Tensor, "P"],
        *,
        preference: Float[Tensor, "P"] | None = None,
        weight: Float[Tensor, "P"] | None = None,
    ) -> LossOutput:
        """Mean over pairs by `weight` (None: all alike); `preference` is p (None: all 1).

        Metrics, the same mean over pairs and labels: `accuracy` (a tie counts half), `margin` and the mean scores.
        """
        with autocast_off(chosen_scores):
            chosen, rejected = upcast(chosen_scores), upcast(rejected_scores)
            loss = -F.logsigmoid(chosen - rejected - self.margin)
            metrics = _metrics(chosen.detach(), rejected.detach())
            if preference is not None:
                p, swapped = preference.to(chosen), _metrics(rejected.detach(), chosen.detach())
                loss = p * loss - (1 - p) * F.logsigmoid(rejected - chosen - self.margin)
                metrics = {name: p * value + (1 - p) * swapped[name] for name, value in metrics.items()}
            if self.center:
                loss = loss + self.center * (chosen + rejected).square()
            return LossOutput(
                weighted_mean(loss, weight), {name: weighted_mean(value, weight) for name, value in metrics.items()}
            )


def _metrics(chosen: Float[Tensor, "P"], rejected: Float[Tensor, "P"]) -> dict[str, Float[Tensor, "P"]]:
    gap = chosen - rejected
    return {"accuracy": wins(gap), "margin": gap, "chosen_score": chosen, "rejected_score": rejected}


def wins(gap: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
    """1 for a pair whose chosen side is ahead, 0 where it is behind; a tie is a coin toss and counts half."""
    return torch.heaviside(gap, gap.new_tensor(0.5))
