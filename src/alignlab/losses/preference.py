"""Losses over preference pairs: the policy is its own reward model (DPO and its kin).

Notation: h = log pi(c)/ref(c) - log pi(r)/ref(r), the chosen reply's log-ratio less the rejected one's,
each summed over the reply's tokens (never averaged, unless a class says so: beta is per sequence). The implied reward
of a reply is beta * log pi/ref, and its *margin* beta * h.

To add a loss: subclass `PreferenceLoss`, override `per_pair`, put a yaml beside `conf/method/loss/dpo.yaml`.
The rest of the catalogue: `margin` (other curves of the same margin), `f_divergence`, `anchored` (each reply against
the reference), `ordering` (whole batches), `reference_free`, and `sft_term`, which is added to any of them.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignlab.errors import ConfigError
from alignlab.kernels.precision import autocast_off, upcast
from alignlab.losses.base import LossOutput, require_between, require_positive, weighted_mean
from alignlab.losses.reward import wins

Optimum = Literal["rlhf", "rlhf_under_flips", "ipo"]


class PairLogprobs(NamedTuple):
    """What one model says of P pairs: log-probs summed over each reply's tokens, and the number of those tokens."""

    chosen: Float[Tensor, "P"]
    rejected: Float[Tensor, "P"]
    chosen_length: Int[Tensor, "P"]  # at least 1; counts the end token
    rejected_length: Int[Tensor, "P"]

    def swapped(self) -> "PairLogprobs":
        """The same pairs with the other label."""
        return PairLogprobs(self.rejected, self.chosen, self.rejected_length, self.chosen_length)


class PreferenceLoss(nn.Module, ABC):
    """Mean over pairs of `per_pair`. The attributes say what a loss is, for methods, tests and tables.

    Where a setting changes one (label smoothing gives DPO's loss a target margin), the instance says so.
    """

    needs_reference: bool = True
    """False: `reference` is never read and may be None."""

    batch_coupled: bool = False
    """True: a pair's loss depends on the other pairs of its batch; such a loss overrides `forward`."""

    shift_invariant: bool = True
    """Adding one number to the policy's chosen *and* rejected log-prob, in any one pair, changes nothing."""

    monotone: bool = True
    """The loss never rises when the chosen log-prob rises or the rejected one falls (whatever runs along held fixed).
    False: somewhere it does, because it aims at a margin, or pulls a reply back to the reference."""

    antisymmetric: bool = True
    """The loss sees a pair through its margin alone, and swapping the two replies negates that margin."""

    value_at_reference: float | None = None
    """The loss of every pair where policy and reference agree; None where that is no fixed number."""

    optimum: Optimum | None = None
    """Which closed form minimises the expected loss over all pairs: `rlhf`, ref * exp(reward / beta) / Z under
    Bradley-Terry preferences; `rlhf_under_flips`, the same if labels are flipped at the rate the loss assumes;
    `ipo`, ref * exp(p(y preferred to ref) / beta) / Z; None: another one, or none."""

    def __init__(self, beta: float):
        super().__init__()
        require_positive(self, beta=beta)
        self.beta = beta

    @property
    def is_separable(self) -> bool:
        """Whether the loss of a batch may be taken pair by pair; a `forward` of one's own may do anything with it."""
        return not self.batch_coupled and type(self).forward is PreferenceLoss.forward

    @abstractmethod
    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        """The loss of each pair: the one thing that a new loss must say."""

    def implied_rewards(
        self, policy: PairLogprobs, reference: PairLogprobs | None
    ) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        """Rewards of the chosen and the rejected replies as the loss sees them; their difference is the margin."""
        if reference is None:
            return self.beta * policy.chosen, self.beta * policy.rejected
        return self.beta * (policy.chosen - reference.chosen), self.beta * (policy.rejected - reference.rejected)

    def forward(
        self,
        policy: PairLogprobs,
        reference: PairLogprobs | None = None,
        *,
        preference: Float[Tensor, "P"] | None = None,
        weight: Float[Tensor, "P"] | None = None,
    ) -> LossOutput:
        """sum_i w_i [p_i per_pair(c, r)_i + (1 - p_i) per_pair(r, c)_i] / sum_i w_i, computed in at least float32.

        `preference`, p: the probability that the chosen reply is the better one (None: the labels are certain).
        `weight`, w > 0 (None: all alike). Metrics, the same mean over pairs and labels: `accuracy` (of the implied
        rewards; a tie counts half), `margin`, `chosen_reward`, `rejected_reward`, `chosen_logprob`,
        `rejected_logprob`. ConfigError if a needed reference is missing.
        """
        if not self.needs_reference:
            reference = None
        elif reference is None:
            raise ConfigError(f"{type(self).__name__}: reference=None, but this loss compares with a reference model")
        with autocast_off(policy.chosen):
            policy = upcast_pairs(policy)
            reference = None if reference is None else upcast_pairs(reference)
            loss, metrics = self.per_pair(policy, reference), self._metrics(policy, reference)
            if preference is not None:
                policy, reference = policy.swapped(), None if reference is None else reference.swapped()
                other = self._metrics(policy, reference)
                loss = _mixed(preference, loss, self.per_pair(policy, reference))
                metrics = {name: _mixed(preference, value, other[name]) for name, value in metrics.items()}
            return LossOutput(
                weighted_mean(loss, weight), {name: weighted_mean(value, weight) for name, value in metrics.items()}
            )

    def _metrics(self, policy: PairLogprobs, reference: PairLogprobs | None) -> dict[str, Float[Tensor, "P"]]:
        policy = policy._replace(chosen=policy.chosen.detach(), rejected=policy.rejected.detach())
        chosen, rejected = (rewards.detach() for rewards in self.implied_rewards(policy, reference))
        return {
            "accuracy": wins(chosen - rejected),
            "margin": chosen - rejected,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "chosen_logprob": policy.chosen,
            "rejected_logprob": policy.rejected,
        }


class DPOLoss(PreferenceLoss):
    """-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), e = label_smoothing.

    e = 0: DPO, eq. 7 of Rafailov et al. 2023. e > 0: conservative DPO (Mitchell 2023), which believes a share e of the
    labels to be wrong and so stops at the margin logit(1 - e) instead of pushing forever.
    """

    value_at_reference = math.log(2)
    optimum: Optimum | None = "rlhf"

    def __init__(self, beta: float, label_smoothing: float = 0.0):
        super().__init__(beta)
        require_between(self, 0.0, 0.5, label_smoothing=label_smoothing)
        self.label_smoothing = label_smoothing
        if label_smoothing:
            self.monotone, self.optimum = False, None

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        margin = self.beta * log_ratio_difference(policy, reference)
        return -(1 - self.label_smoothing) * F.logsigmoid(margin) - self.label_smoothing * F.logsigmoid(-margin)


class RobustDPOLoss(PreferenceLoss):
    """[-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2e), e = label_smoothing.

    Chowdhury et al. 2024: if a share e of the labels is flipped at random, its expectation is DPO's loss
    on the clean ones. Conservative DPO has the other sign and is biased.
    """

    value_at_reference = math.log(2)
    optimum: Optimum | None = "rlhf_under_flips"

    def __init__(self, beta: float, label_smoothing: float):
        super().__init__(beta)
        require_between(self, 0.0, 0.5, label_smoothing=label_smoothing)
        self.label_smoothing = label_smoothing

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        margin, flipped = self.beta * log_ratio_difference(policy, reference), self.label_smoothing
        kept = -(1 - flipped) * F.logsigmoid(margin) + flipped * F.logsigmoid(-margin)
        return kept / (1 - 2 * flipped)


class IPOLoss(PreferenceLoss):
    """(h - 1 / (2 beta))^2.

    Eq. 17 of Azar et al. 2023; beta is the tau of the paper. h is the difference of *sums*, as in the paper;
    `length_normalized=True` takes each log-ratio per token, which is what some libraries call IPO (another optimum,
    and a beta of another size).
    """

    def __init__(self, beta: float, length_normalized: bool = False):
        super().__init__(beta)
        self.length_normalized = length_normalized
        self.monotone = False
        self.shift_invariant = not length_normalized
        self.value_at_reference = 1 / (4 * beta**2)
        self.optimum = None if length_normalized else "ipo"

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        chosen, rejected = self._log_ratios(policy, reference)
        return (chosen - rejected - 1 / (2 * self.beta)).square()

    def implied_rewards(
        self, policy: PairLogprobs, reference: PairLogprobs | None
    ) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        chosen, rejected = self._log_ratios(policy, reference)
        return self.beta * chosen, self.beta * rejected

    def _log_ratios(
        self, policy: PairLogprobs, reference: PairLogprobs | None
    ) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        assert reference is not None  # needs_reference
        chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
        if self.length_normalized:
            return chosen / policy.chosen_length, rejected / policy.rejected_length
        return chosen, rejected


class HingeLoss(PreferenceLoss):
    """max(0, 1 - beta h).

    SLiC's calibration loss (Zhao et al. 2023, sec. 2) on log-ratios to a reference instead of log-probs, as in RSO (Liu
    et al. 2024). SLiC's own pull to the start, a likelihood term, is `sft_term.WithSFT`.
    """

    value_at_reference = 1.0

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        return F.relu(1 - self.beta * log_ratio_difference(policy, reference))


class SimPOLoss(PreferenceLoss):
    """-log sigmoid(beta (log pi(c) / |c| - log pi(r) / |r|) - gamma).

    Eq. 6 of Meng et al. 2024. Log-probs per token and no reference, so beta is of another size than DPO's (2 to 10)
    and the policy is held near its start by the learning rate alone. `gamma` is the target margin of the rewards.
    """

    needs_reference = False
    shift_invariant = False

    def __init__(self, beta: float, gamma: float):
        super().__init__(beta)
        require_between(self, 0.0, math.inf, gamma=gamma)
        self.gamma = gamma

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None = None) -> Float[Tensor, "P"]:
        chosen, rejected = self.implied_rewards(policy, reference)
        return -F.logsigmoid(chosen - rejected - self.gamma)

    def implied_rewards(
        self, policy: PairLogprobs, reference: PairLogprobs | None
    ) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        return (
            self.beta * policy.chosen / policy.chosen_length,
            self.beta * policy.rejected / policy.rejected_length,
        )


def log_ratio_difference(policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
    """h of the file's head. Exactly 0 where policy and reference are the same numbers."""
    assert reference is not None  # needs_reference
    return (policy.chosen - reference.chosen) - (policy.rejected - reference.rejected)


def _mixed(preference: Float[Tensor, "P"], kept: Float[Tensor, "P"], swapped: Float[Tensor, "P"]) -> Tensor:
    preference = preference.to(kept)
    return preference * kept + (1 - preference) * swapped


def upcast_pairs(pairs: PairLogprobs) -> PairLogprobs:
    """The log-probs in at least float32."""
    return pairs._replace(chosen=upcast(pairs.chosen), rejected=upcast(pairs.rejected))
