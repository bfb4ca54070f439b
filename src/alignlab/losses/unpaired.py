"""Losses over single replies that were called desirable or not: KTO and BCO.

r = beta log pi(y)/ref(y) is the implied reward of a reply, summed over its tokens. A loss compares it with a baseline
that the whole batch shares and the gradient does not see; s is +1 for a desirable reply and -1 for another, and
s (r - baseline) is what the reply has to its credit.

To add a loss: subclass `UnpairedLoss`, say what `baseline` and `per_reply` are, put a yaml beside
`conf/method/loss/kto.yaml`.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from alignlab.errors import ConfigError
from alignlab.kernels.precision import autocast_off, upcast
from alignlab.losses.base import LossOutput, require_positive
from alignlab.losses.reward import wins
from alignlab.losses.running import RunningMean


class UnpairedLogprobs(NamedTuple):
    """What one model says of B replies: log-probs summed over each reply's tokens, their number, and the labels."""

    logprobs: Float[Tensor, "B"]
    length: Int[Tensor, "B"]  # at least 1; counts the end token
    desirable: Bool[Tensor, "B"]


class UnpairedLoss(nn.Module, ABC):
    """Mean over replies of `per_reply`. The attributes say what a loss is, for methods, tests and tables."""

    needs_reference: bool = True
    """False: `reference` is never read and may be None."""

    needs_kl: bool = False
    """True: the log-probs of mismatched pairs (a prompt with the reply to another one) are read."""

    batch_coupled: bool = True
    """A reply's loss depends on the others of its batch, through the baseline."""

    coupled_by_kl_alone: bool = False
    """True: the mismatched pairs are all that couples a batch; given those of the whole step, replies may be scored in
    parts. Methods then allow micro-batches and several processes."""

    value_at_reference: float | None = None
    """The loss of every reply where policy and reference agree; None where that is no fixed number."""

    def __init__(self, beta: float):
        super().__init__()
        require_positive(self, beta=beta)
        self.beta = beta

    @abstractmethod
    def baseline(
        self, rewards: Float[Tensor, "B"], desirable: Bool[Tensor, "B"], kl: Float[Tensor, ""] | None
    ) -> Float[Tensor, ""]:
        """What implied rewards are compared with; all that comes in is detached. `kl` is given if `needs_kl`."""

    @abstractmethod
    def per_reply(self, credit: Float[Tensor, "B"], desirable: Bool[Tensor, "B"]) -> Float[Tensor, "B"]:
        """The loss of each reply from s (r - baseline)."""

    def forward(
        self,
        policy: UnpairedLogprobs,
        reference: UnpairedLogprobs | None = None,
        *,
        kl_policy: Float[Tensor, "B"] | None = None,
        kl_reference: Float[Tensor, "B"] | None = None,
    ) -> LossOutput:
        """Mean loss of the replies, computed in at least float32.

        `kl_policy`, `kl_reference`: summed log-probs of the mismatched pairs under both models. Metrics: means over
        all replies of `accuracy` (credit above 0; a tie counts half), `reward`, `credit`, `logprob` and `desirable`
        (their share), and the `baseline`. ConfigError if a needed input is missing.
        """
        if not self.needs_reference:
            reference = None
        elif reference is None:
            raise ConfigError(f"{type(self).__name__}: reference=None, but this loss compares with a reference model")
        with autocast_off(policy.logprobs):
            logprobs, desirable = upcast(policy.logprobs), policy.desirable
            rewards = self.beta * (logprobs if reference is None else logprobs - upcast(reference.logprobs))
            baseline = self.baseline(rewards.detach(), desirable, self._kl(kl_policy, kl_reference)).to(rewards)
            credit = torch.where(desirable, rewards - baseline, baseline - rewards)
            metrics = {
                "accuracy": wins(credit.detach()).mean(),
                "reward": rewards.detach().mean(),
                "credit": credit.detach().mean(),
                "logprob": logprobs.detach().mean(),
                "desirable": desirable.to(rewards).mean(),
                "baseline": baseline,
            }
            return LossOutput(self.per_reply(credit, desirable).mean(), metrics)

    def _kl(self, policy: Tensor | None, reference: Tensor | None) -> Float[Tensor, ""] | None:
        """max(0, mean log pi/ref of the mismatched pairs), detached: KL(pi || ref) as KTO estimates it, in nats."""
        if not self.needs_kl:
            return None
        if policy is None or reference is None:
            missing = "kl_policy" if policy is None else "kl_reference"
            raise ConfigError(
                f"{type(self).__name__}: {missing}=None, but this loss needs the mismatched pairs' log-probs"
            )
        return (upcast(policy) - upcast(reference)).detach().mean().clamp(min=0)


class KTOLoss(UnpairedLoss):
    """w (1 - sigmoid(s beta (log pi(y)/ref(y) - z))), z = max(0, mean log pi/ref of mismatched pairs).

    Eq. 7 of Ethayarajh et al. 2024, lambda_y - v(x, y), with w = desirable_weight or undesirable_weight: their ratio is
    to make up for unequal numbers of the two labels. z estimates KL(pi || ref) from prompts paired with replies to
    other prompts, over the batch, without a gradient; it is 0 where the estimate is negative. The mean is over all
    replies, whatever their label.
    """

    needs_kl = True
    coupled_by_kl_alone = True

    def __init__(self, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0):
        super().__init__(beta)
        require_positive(self, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
        self.desirable_weight, self.undesirable_weight = desirable_weight, undesirable_weight
        if desirable_weight == undesirable_weight:
            self.value_at_reference = desirable_weight / 2

    def baseline(
        self, rewards: Float[Tensor, "B"], desirable: Bool[Tensor, "B"], kl: Float[Tensor, ""] | None
    ) -> Float[Tensor, ""]:
        assert kl is not None  # needs_kl
        return self.beta * kl

    def per_reply(self, credit: Float[Tensor, "B"], desirable: Bool[Tensor, "B"]) -> Float[Tensor, "B"]:
        losses = torch.sigmoid(-credit)
        return torch.where(desirable, self.desirable_weight * losses, self.undesirable_weight * losses)


class UnpairedBCOLoss(UnpairedLoss):
    """-log sigmoid(s (beta log pi(y)/ref(y) - delta)), delta = mean of two running means, one per label.

    Binary classifier optimisation, sec. 4 of Jung et al. 2024, without its density ratio between the prompts of the two
    labels. Each label's mean is over all its replies so far (0 before the first), however many there are of the other.
    It takes in a batch before that batch is scored, in training mode alone, and is kept in buffers.
    """

    value_at_reference = math.log(2)

    def __init__(self, beta: float):
        super().__init__(beta)
        self.desirable_mean, self.undesirable_mean = RunningMean(), RunningMean()

    def baseline(
        self, rewards: Float[Tensor, "B"], desirable: Bool[Tensor, "B"], kl: Float[Tensor, ""] | None
    ) -> Float[Tensor, ""]:
        if self.training:
            self.desirable_mean.update(rewards, desirable.to(rewards))
            self.undesirable_mean.update(rewards, (~desirable).to(rewards))
        return (self.desirable_mean.value + self.undesirable_mean.value) / 2

    def per_reply(self, credit: Float[Tensor, "B"], desirable: Bool[Tensor, "B"]) -> Float[Tensor, "B"]:
        return -F.logsigmoid(credit)
