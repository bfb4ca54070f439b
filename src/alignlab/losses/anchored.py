"""Pairwise losses that judge each reply by its own log-ratio to the reference, not only by the other reply's.

a = log pi(c)/ref(c) and b = log pi(r)/ref(r), sums over tokens, so that h = a - b. DPO leaves the level of the two
free: both may fall as long as the rejected one falls faster. These losses say where each of them ought to go.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from alignlab.losses.base import LossOutput
from alignlab.losses.preference import PairLogprobs, PreferenceLoss, upcast_pairs
from alignlab.losses.running import RunningMean


class NCALoss(PreferenceLoss):
    """-log sigmoid(beta a) - 0.5 log sigmoid(-beta a) - 0.5 log sigmoid(-beta b).

    NCA for pairs, sec. 4 of Chen et al. 2024, where beta is called alpha: tell the chosen reply from noise drawn from
    the reference, for which both replies stand. It rises again once beta a is above ln 2. A reply by itself would rest
    at exp(beta a) = 2 p(y preferred to ref), which makes a distribution for beta = 1 only: no closed form in general.
    """

    shift_invariant = False
    monotone = False
    antisymmetric = False
    value_at_reference = 2 * math.log(2)

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        chosen, rejected = self.implied_rewards(policy, reference)
        return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


class SPPOHardLoss(PreferenceLoss):
    """(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2.

    SPPO with hard labels: eq. 4.7 of Wu et al. 2024 with win rates 1 and 0, and eta = 1 / beta. A reply by itself would
    rest at (p(y preferred to ref) - 1/2) / beta. The 1/2 stands for the log of IPO's normaliser, so the optimum is near
    that closed form without being it.
    """

    shift_invariant = False
    monotone = False
    antisymmetric = False

    def __init__(self, beta: float):
        super().__init__(beta)
        self.value_at_reference = 1 / (2 * beta**2)

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        assert reference is not None  # needs_reference
        target = 1 / (2 * self.beta)
        chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
        return (chosen - target).square() + (rejected + target).square()


class APOZeroLoss(PreferenceLoss):
    """1 - sigmoid(beta a) + sigmoid(beta b).

    Eq. 7 of D'Oosterlinck et al. 2024, plus 1 so that the least value is 0, as libraries have it: chosen replies are
    made likelier than under the reference and rejected ones less likely. For data better than the model.
    """

    shift_invariant = False
    antisymmetric = False
    value_at_reference = 1.0

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        chosen, rejected = self.implied_rewards(policy, reference)
        return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


class APODownLoss(PreferenceLoss):
    """sigmoid(beta a) + 1 - sigmoid(beta h).

    Eq. 8 of D'Oosterlinck et al. 2024, plus 1 as in `APOZeroLoss`: both replies are made less likely, the rejected one
    more so. For data worse than the model. At one margin it rises with the chosen log-prob, so it is not monotone.
    """

    shift_invariant = False
    monotone = False
    antisymmetric = False
    value_at_reference = 1.0

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        chosen, rejected = self.implied_rewards(policy, reference)
        return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


class BCOLoss(PreferenceLoss):
    """-log sigmoid(beta a - delta) - log sigmoid(-(beta b - delta)), delta = running mean of all implied rewards.

    Binary classifier optimisation on pairs, sec. 4 of Jung et al. 2024. delta is the mean over every chosen and
    rejected reply seen so far (pairs weighted as in the loss), a constant for the gradient. It takes in a batch before
    that batch is scored, in training mode alone; in evaluation it stands still. It is kept in buffers, so a checkpoint
    has it. TRL leaves delta out: this loss in evaluation mode before any training. `monotone` is meant at a given
    delta, `value_at_reference` at 0, where delta starts.
    """

    batch_coupled = True
    shift_invariant = False
    antisymmetric = False
    value_at_reference = 2 * math.log(2)

    def __init__(self, beta: float):
        super().__init__(beta)
        self.delta = RunningMean()

    def forward(
        self,
        policy: PairLogprobs,
        reference: PairLogprobs | None = None,
        *,
        preference: Float[Tensor, "P"] | None = None,
        weight: Float[Tensor, "P"] | None = None,
    ) -> LossOutput:
        if self.training and reference is not None:  # without one, the parent says what is wrong
            chosen, rejected = self.implied_rewards(upcast_pairs(policy), upcast_pairs(reference))
            self.delta.update((chosen + rejected) / 2, weight)  # either label counts both replies
        return super().forward(policy, reference, preference=preference, weight=weight)

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        chosen, rejected = self.implied_rewards(policy, reference)
        delta = self.delta.value.to(chosen)
        return -F.logsigmoid(chosen - delta) - F.logsigmoid(delta - rejected)
