"""What leaving the starting model costs a reply, and where it is paid: in the reward or in the loss.

With d_t = log pi(y_t) - log pi_ref(y_t) and the estimators k of `kernels/divergence.py`, the price of a reply is
    per token:      sum over t of k(d_t)
    per sequence:   k(sum over t of d_t)
which is the same number for k1. What is meant to come out is the gradient of J = E[reward] - coefficient KL(pi || ref)
(KL of whole replies). Two choices give it exactly, for replies of the policy itself:
    reward, k1                 the price is a constant that is taken off the score (Ziegler et al. 2019)
    loss, k2, per sequence     0.5 d^2, whose gradient is d times that of log pi(y)
The others are conventions, some of them published and widely used:
    loss, k3, per token        GRPO (Shao et al. 2024): pulls to the reference, but along the gradient of sum_t
                               KL(ref || pi) at the states visited, and it drops what a token does to later KL
    loss, k2, per token        right for each token alone; it drops what a token does to later KL
    reward, k3 or k2           the right size (k3), another gradient
k1 in the loss is refused: its gradient is that of log pi, which is 0 on average.

In the loss the penalty stands beside the clipped objective without a ratio: once a rollout's updates have moved the
policy, its gradient is that of the mean price over *the sampler's* replies. It stays finite and pulls every reply's
log-ratio to 0, and is exact again at the next rollout's first update.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.kernels.divergence import kl_estimate


@dataclass(frozen=True, kw_only=True)
class KLPenalty:
    """Which estimate of the KL, and where its price is paid; the price per nat is the controller's `coefficient`."""

    where: Literal["reward", "loss"]
    estimator: Literal["k1", "k2", "k3"]
    per: Literal["token", "sequence"]

    def __post_init__(self) -> None:
        allowed = {"where": ("reward", "loss"), "estimator": ("k1", "k2", "k3"), "per": ("token", "sequence")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ConfigError(f"method.kl_penalty.{name}={getattr(self, name)}: allowed are {' and '.join(values)}")
        if self.where == "loss" and self.estimator == "k1":
            raise ConfigError(
                "method.kl_penalty: k1 in the loss has a gradient of 0 on average, so it holds nothing; "
                "set estimator=k2 with per=sequence (exact) or estimator=k3 with per=token (as GRPO), or where=reward"
            )

    def of_replies(
        self, logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B"]:
        """The estimated KL of each reply in nats, differentiable in `logprobs`; only tokens that `mask` counts."""
        logprobs, ref_logprobs = torch.where(mask, logprobs, 0.0), torch.where(mask, ref_logprobs, 0.0)
        if self.per == "sequence":
            return kl_estimate(logprobs.sum(-1), ref_logprobs.sum(-1), kind=self.estimator)
        return kl_estimate(logprobs, ref_logprobs, kind=self.estimator).sum(-1)  # every estimator of 0 is 0
