"""DPO with another divergence to the reference than the reverse KL (Wang et al. 2024).

With u = pi(y) / ref(y), reinforcement learning under beta * D_f(pi || ref), D_f = E_ref[f(u)], has an optimum at which
r(y) = beta f'(u) + constant. So beta f' takes the place of beta log u as the implied reward; it is written here such
that it is 0 at u = 1, which changes no margin.
"""

import math
from abc import ABC, abstractmethod

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.losses.preference import Optimum, PairLogprobs, PreferenceLoss

_MAX_EXPONENT = 20.0  # exp(20) = 5e8: its square, in a gradient norm, is finite in float32


class Divergence(ABC):
    """An f-divergence by the derivative of its f."""

    shift_invariant: bool = False
    """f' is linear in log u, so that a shift of both log-probs cancels in a margin."""

    optimum: Optimum | None = None
    """As in `PreferenceLoss`."""

    @abstractmethod
    def slope(self, log_ratio: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        """f'(u) - f'(1) at u = exp(log_ratio); rises with u."""


class ReverseKL(Divergence):
    """f'(u) = log u: plain DPO."""

    shift_invariant = True
    optimum: Optimum | None = "rlhf"

    def slope(self, log_ratio: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        return log_ratio


class ForwardKL(Divergence):
    """f'(u) = 1 - 1 / u.

    The exponential goes on as a straight line where u is below exp(-20), so that values and gradients stay finite.
    """

    def slope(self, log_ratio: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        return 1 - _bounded_exp(-log_ratio)


class JensenShannon(Divergence):
    """f'(u) = log [2 u / (1 + u)]."""

    def slope(self, log_ratio: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        return math.log(2) + F.logsigmoid(log_ratio)


class AlphaDivergence(Divergence):
    """f'(u) = (1 - u^-alpha) / alpha, 0 < alpha < 1; alpha to 0 is the reverse KL, alpha to 1 the forward one.

    alpha as in the paper; a library that writes f'(u) = (u^(a - 1) - 1) / (a - 1) has a = 1 - alpha. The power goes on
    as a straight line in log u where u^-alpha is above exp(20), so that values and gradients stay finite.
    """

    def __init__(self, alpha: float):
        if not 0 < alpha < 1:
            raise ConfigError(f"AlphaDivergence: alpha={alpha} must be above 0 and below 1")
        self.alpha = alpha

    def slope(self, log_ratio: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        return (1 - _bounded_exp(-self.alpha * log_ratio)) / self.alpha


class FDivergenceDPOLoss(PreferenceLoss):
    """-log sigmoid(beta f'(pi(c)/ref(c)) - beta f'(pi(r)/ref(r))).

    f-DPO, Wang et al. 2024, with the f' of `divergence`. Log-probs are summed over the reply, so u is a ratio of
    probabilities of whole replies. The optimum is that of reinforcement learning under the same divergence, which is
    the closed form with exp(reward / beta) for the reverse KL alone.
    """

    value_at_reference = math.log(2)

    def __init__(self, beta: float, divergence: Divergence):
        super().__init__(beta)
        self.divergence = divergence
        self.shift_invariant, self.optimum = divergence.shift_invariant, divergence.optimum

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        chosen, rejected = self.implied_rewards(policy, reference)
        return -F.logsigmoid(chosen - rejected)

    def implied_rewards(
        self, policy: PairLogprobs, reference: PairLogprobs | None
    ) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        assert reference is not None  # needs_reference
        chosen = self.divergence.slope(policy.chosen - reference.chosen)
        rejected = self.divergence.slope(policy.rejected - reference.rejected)
        return self.beta * chosen, self.beta * rejected


def _bounded_exp(x: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
    """exp(x) up to x = 20, and from there on the tangent: finite, and still a gradient."""
    return x.clamp(max=_MAX_EXPONENT).exp() * (1 + (x - _MAX_EXPONENT).clamp(min=0))
