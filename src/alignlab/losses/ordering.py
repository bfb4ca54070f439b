"""Alignment via optimal transport (Melnyk et al. 2024): compare sorted batches, so that one sample lies above another.

First-order stochastic dominance asks for every quantile of one sample to be above that of the other. In one dimension
the best matching of two samples is the sorted one, so the loss of a batch compares the i-th smallest with the i-th
smallest; whose pairs they are is forgotten. So labels must be certain and weights equal (a ConfigError otherwise).
"""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.losses.base import LossOutput
from alignlab.losses.preference import PairLogprobs, PreferenceLoss


class AOTLoss(PreferenceLoss):
    """mean over i of -log sigmoid(beta (m_(i) - n_(i))), m = log pi(c)/pi(r), n = log ref(c)/ref(r), each sorted.

    Paired AOT, sec. 3 of Melnyk et al. 2024, with the logistic loss: the policy's margins are to dominate
    the reference's. Larger batches compare finer quantiles. It sees m and n, not pair by pair their difference h, so it
    is not antisymmetric.
    """

    batch_coupled = True
    antisymmetric = False
    value_at_reference = math.log(2)

    def forward(
        self,
        policy: PairLogprobs,
        reference: PairLogprobs | None = None,
        *,
        preference: Float[Tensor, "P"] | None = None,
        weight: Float[Tensor, "P"] | None = None,
    ) -> LossOutput:
        _require_plain_pairs(self, preference, weight)
        return super().forward(policy, reference)

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        """Entry i is the loss of the i-th smallest margins, not of pair i."""
        assert reference is not None  # needs_reference
        margins = (policy.chosen - policy.rejected).sort().values
        reference_margins = (reference.chosen - reference.rejected).sort().values
        return -F.logsigmoid(self.beta * (margins - reference_margins))


class UnpairedAOTLoss(PreferenceLoss):
    """mean over i of -log sigmoid(beta (a_(i) - b_(i))), a = log pi(c)/ref(c), b = log pi(r)/ref(r), each sorted.

    Unpaired AOT, sec. 3 of Melnyk et al. 2024, with the logistic loss: the log-ratios of chosen replies are to
    dominate those of rejected ones, whatever the prompts. Shifting one pair moves it in both orders, so it is not
    shift-invariant.
    """

    batch_coupled = True
    shift_invariant = False
    antisymmetric = False
    value_at_reference = math.log(2)

    def forward(
        self,
        policy: PairLogprobs,
        reference: PairLogprobs | None = None,
        *,
        preference: Float[Tensor, "P"] | None = None,
        weight: Float[Tensor, "P"] | None = None,
    ) -> LossOutput:
        _require_plain_pairs(self, preference, weight)
        return super().forward(policy, reference)

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        """Entry i is the loss of the i-th smallest log-ratios, not of pair i."""
        assert reference is not None  # needs_reference
        chosen = (policy.chosen - reference.chosen).sort().values
        rejected = (policy.rejected - reference.rejected).sort().values
        return -F.logsigmoid(self.beta * (chosen - rejected))


def _require_plain_pairs(loss: PreferenceLoss, preference: Tensor | None, weight: Tensor | None) -> None:
    if preference is not None or weight is not None:
        given = "preference" if preference is not None else "weight"
        raise ConfigError(
            f"{type(loss).__name__}: {given} was given, but a loss that sorts its batch has no pairs to weigh; use "
            "data without soft labels and weights, or another method/loss"
        )
