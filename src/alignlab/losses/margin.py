"""Pairwise losses that see a pair through its margin alone, as DPO does, and bend it along another curve.

h is the difference of the two log-ratios to the reference, as in `losses.preference`.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.losses.base import require_positive
from alignlab.losses.preference import PairLogprobs, PreferenceLoss, log_ratio_difference

_LEAST_MONOTONE_TAU = 0.1098  # below it the curve has a bump near 0; found by bisection on its slope


class LengthNormalizedDPOLoss(PreferenceLoss):
    """-log sigmoid(beta (log [pi(c)/ref(c)] / |c| - log [pi(r)/ref(r)] / |r|)).

    DPO on log-ratios per token, as in Tulu 3 (Lambert et al. 2024). |y| counts the scored tokens, the end token
    included. beta is of another size than DPO's (5 in that paper), and the optimum is no longer DPO's.
    """

    shift_invariant = False
    value_at_reference = math.log(2)

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        chosen, rejected = self.implied_rewards(policy, reference)
        return -F.logsigmoid(chosen - rejected)

    def implied_rewards(
        self, policy: PairLogprobs, reference: PairLogprobs | None
    ) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        chosen, rejected = super().implied_rewards(policy, reference)
        return chosen / policy.chosen_length, rejected / policy.rejected_length


class EXOLoss(PreferenceLoss):
    """KL(q || p): q log [q / (1 - e)] + (1 - q) log [(1 - q) / e], q = sigmoid(beta h), e = label_smoothing.

    EXO for pairs, eq. 16 of Ji et al. 2024: the *reverse* KL from the policy's choice between the two replies to the
    label's; conservative DPO is, up to a constant, the forward one. Both rest at the margin logit(1 - e), and e = 0
    would be infinite; the paper takes 0.001. Where the policy is sure and wrong the curve is flat. Of a pair whose
    label is drawn with probability p it rests at (2p - 1) logit(1 - e): at e = 0.001 that is 2.5 to 3.5 times DPO's
    logit(p) for p up to 0.9, so noisy labels are trusted too much.
    """

    monotone = False

    def __init__(self, beta: float, label_smoothing: float):
        super().__init__(beta)
        if not 0 < label_smoothing < 0.5:
            raise ConfigError(f"EXOLoss: label_smoothing={label_smoothing} must be above 0 and below 0.5")
        self.label_smoothing = label_smoothing
        self.value_at_reference = -math.log(2) - 0.5 * math.log(label_smoothing * (1 - label_smoothing))

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        margin = self.beta * log_ratio_difference(policy, reference)
        kept, flipped = F.logsigmoid(margin), F.logsigmoid(-margin)  # log q and log (1 - q)
        return kept.exp() * (kept - math.log1p(-self.label_smoothing)) + flipped.exp() * (
            flipped - math.log(self.label_smoothing)
        )


class DiscoPOPLoss(PreferenceLoss):
    """(1 - s) * -log sigmoid(beta h) + s exp(-beta h), s = sigmoid(beta h / tau).

    The log-ratio-modulated loss, eq. 5 of Lu et al. 2024: logistic where the margin is negative, exponential where it
    is positive, blended over a width of tau (0.05 in the paper). tau must be below 1: then s exp(-beta h), computed as
    one exponential, cannot overflow. Below tau = 0.1098 the curve has a bump near a margin of 0 and is not monotone.
    """

    value_at_reference = 0.5 * math.log(2) + 0.5

    def __init__(self, beta: float, tau: float = 0.05):
        super().__init__(beta)
        require_positive(self, tau=tau)
        if not tau < 1:
            raise ConfigError(f"DiscoPOPLoss: tau={tau} must be below 1")
        self.tau = tau
        self.monotone = tau > _LEAST_MONOTONE_TAU

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        margin = self.beta * log_ratio_difference(policy, reference)
        exponential = torch.exp(F.logsigmoid(margin / self.tau) - margin)  # s exp(-margin), at most about 1
        return torch.sigmoid(-margin / self.tau) * -F.logsigmoid(margin) + exponential
