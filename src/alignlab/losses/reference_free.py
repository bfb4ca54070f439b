"""Pairwise losses without a reference model, held up by the likelihood of the chosen reply: CPO and ORPO.

SimPO, which has neither, is in `losses.preference`.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from alignlab.losses.base import require_between
from alignlab.losses.preference import PairLogprobs, PreferenceLoss
from alignlab.losses.sft_term import Per, chosen_nll, require_per

_MAX_MEAN_LOGPROB = -1e-6  # a reply more certain than this per token counts as this certain in its odds


class CPOLoss(PreferenceLoss):
    """-log sigmoid(beta (log pi(c) - log pi(r))) + nll_coefficient * NLL(c).

    Eq. 3 of Xu et al. 2024 and their behaviour-cloning term: DPO with a uniform reference. Log-probs are *sums* in the
    margin. The paper writes the NLL as a sum too, while its authors' trainer averages over tokens: nll_per="sequence"
    is the one, "token" (each reply divided by its own length) the other, which is the default.
    """

    needs_reference = False
    shift_invariant = False
    antisymmetric = False

    def __init__(self, beta: float, nll_coefficient: float = 1.0, nll_per: Per = "token"):
        super().__init__(beta)
        require_between(self, 0.0, math.inf, nll_coefficient=nll_coefficient)
        require_per(self, nll_per)
        self.nll_coefficient = nll_coefficient
        self.nll_per: Per = nll_per
        if nll_coefficient == 0:
            self.shift_invariant = self.antisymmetric = True

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None = None) -> Float[Tensor, "P"]:
        contrast = -F.logsigmoid(self.beta * (policy.chosen - policy.rejected))
        return contrast + self.nll_coefficient * chosen_nll(policy, self.nll_per)


class ORPOLoss(PreferenceLoss):
    """-log pi(c) / |c| - beta log sigmoid(log odds(c) - log odds(r)), odds(y) = p / (1 - p), p = pi(y)^(1 / |y|).

    Eq. 6 and 7 of Hong et al. 2024; beta is the paper's lambda, the weight of the odds ratio, and does not scale the
    margin. p is the geometric mean probability per token. The NLL is per token of each chosen reply, prompt left out,
    then a mean over pairs; TRL takes the mean over all tokens of the batch, prompts included. In the odds, the mean
    log-prob is clamped to at most -1e-6, above which the odds are infinite to float32. The implied reward is log odds.
    """

    needs_reference = False
    shift_invariant = False
    antisymmetric = False

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None = None) -> Float[Tensor, "P"]:
        chosen, rejected = self.implied_rewards(policy, reference)
        return chosen_nll(policy, "token") - self.beta * F.logsigmoid(chosen - rejected)

    def implied_rewards(
        self, policy: PairLogprobs, reference: PairLogprobs | None
    ) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        return (
            _log_odds(policy.chosen / policy.chosen_length),
            _log_odds(policy.rejected / policy.rejected_length),
        )


def _log_odds(logprob: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
    logprob = logprob.clamp(max=_MAX_MEAN_LOGPROB)
    return logprob - torch.log(-torch.expm1(logprob))
