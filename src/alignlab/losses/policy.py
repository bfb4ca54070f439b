"""PPO's two losses: the clipped policy objective and the clipped value error (Schulman et al. 2017).

Both are means over counted tokens; the policy's may be a weighted one, which is all that RLOO, GRPO and their kin
change. "Old" is what the policy and the critic said when the batch was collected.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from alignlab.errors import ConfigError
from alignlab.kernels.divergence import kl_estimate
from alignlab.kernels.masked import masked_mean
from alignlab.kernels.precision import autocast_off, upcast
from alignlab.losses.base import LossOutput, Normalizer, require_between, require_positive, token_mean

_MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: far outside any clip range, yet its products stay finite in float32


class PPOPolicyLoss(nn.Module):
    """mean of -min(ratio A, clip(ratio, 1 - clip_range, 1 + clip_range_high) A) - entropy_coefficient * entropy.

    Eq. 7 of Schulman et al. 2017, with ratio = exp(logprobs - old_logprobs) of each token. `clip_range_high` above
    `clip_range` is the clip-higher of DAPO (Yu et al. 2025); None is the symmetric clip. Advantages and old
    log-probs are constants. The gradient is 0 where the ratio has left e^+-20, which only a collapsed policy reaches.
    """

    def __init__(self, clip_range: float, *, clip_range_high: float | None = None, entropy_coefficient: float = 0.0):
        super().__init__()
        clip_range_high = clip_range if clip_range_high is None else clip_range_high
        require_positive(self, clip_range=clip_range, clip_range_high=clip_range_high)
        require_between(self, 0.0, math.inf, entropy_coefficient=entropy_coefficient)
        self.clip_range, self.clip_range_high = clip_range, clip_range_high
        self.entropy_coefficient = entropy_coefficient

    def forward(
        self,
        logprobs: Float[Tensor, "B T"],
        old_logprobs: Float[Tensor, "B T"],
        advantages: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        *,
        entropy: Float[Tensor, "B T"] | None = None,
        normalizer: Normalizer = None,
        weights: Float[Tensor, "B T"] | None = None,
    ) -> LossOutput:
        """`normalizer`: number of counted tokens of the whole optimizer step (None: of this call).

        `weights`: the loss is sum of weight * term over counted tokens / normalizer, the bonus included; constants.
        The denominator stays a number of tokens, so a mean over replies has its share of tokens in the weights.
        Metrics, over this call's tokens, unweighted: `clip_fraction` (share whose ratio is outside the range),
        `ratio_mean`, `approx_kl` (k3 of old against new), and `entropy` if it was given. ConfigError if a bonus has
        no entropy.
        """
        if self.entropy_coefficient and entropy is None:
            raise ConfigError(
                f"PPOPolicyLoss: entropy_coefficient={self.entropy_coefficient} needs the policy's entropy; pass "
                "entropy=..., or set the coefficient to 0"
            )
        with autocast_off(logprobs):
            # selected before exp: whatever stands at uncounted places must not reach the gradient
            log_ratio = torch.where(mask, upcast(logprobs) - upcast(old_logprobs).detach(), 0.0)
            ratio = log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
            advantages = torch.where(mask, upcast(advantages).detach(), 0.0)
            weights = None if weights is None else torch.where(mask, upcast(weights).detach(), 0.0)
            clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range_high)
            terms = _weighted(-torch.minimum(ratio * advantages, clipped * advantages), weights)
            loss = token_mean(terms, mask, normalizer)
            if self.entropy_coefficient and entropy is not None:
                loss = loss - self.entropy_coefficient * token_mean(_weighted(entropy, weights), mask, normalizer)
            return LossOutput(loss, self._metrics(log_ratio.detach(), ratio.detach(), mask, entropy))

    def _metrics(self, log_ratio: Tensor, ratio: Tensor, mask: Tensor, entropy: Tensor | None) -> dict[str, Tensor]:
        outside = (ratio - 1 > self.clip_range_high) | (1 - ratio > self.clip_range)
        metrics = {
            "clip_fraction": masked_mean(outside, mask),
            "ratio_mean": masked_mean(ratio, mask),
            "approx_kl": masked_mean(kl_estimate(-log_ratio, torch.zeros_like(log_ratio), kind="k3"), mask),
        }
        if entropy is not None:
            metrics["entropy"] = masked_mean(entropy.detach(), mask)
        return metrics


def _weighted(x: Float[Tensor, "B T"], weights: Float[Tensor, "B T"] | None) -> Float[Tensor, "B T"]:
    return x if weights is None else upcast(x) * weights


class ValueLoss(nn.Module):
    """0.5 * mean of max((V - R)^2, (clip(V, V_old - clip_range, V_old + clip_range) - R)^2).

    The larger of two squares: a value may not win by leaving the range around what it was (OpenAI Baselines' ppo2;
    Huang et al. 2024). `clip_range=inf` is the plain squared error.
    """

    def __init__(self, clip_range: float):
        super().__init__()
        require_positive(self, clip_range=clip_range)
        self.clip_range = clip_range

    def forward(
        self,
        values: Float[Tensor, "B T"],
        old_values: Float[Tensor, "B T"],
        returns: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        *,
        normalizer: Normalizer = None,
    ) -> LossOutput:
        """`normalizer` as in `PPOPolicyLoss`. Metric `clip_fraction`: share of this call's values outside the range."""
        with autocast_off(values):
            values = torch.where(mask, upcast(values), 0.0)
            old_values = torch.where(mask, upcast(old_values).detach(), 0.0)
            returns = torch.where(mask, upcast(returns).detach(), 0.0)
            clipped = values.clamp(old_values - self.clip_range, old_values + self.clip_range)
            squares = torch.maximum((values - returns).square(), (clipped - returns).square())
            outside = (values.detach() - old_values).abs() > self.clip_range
            return LossOutput(
                0.5 * token_mean(squares, mask, normalizer), {"clip_fraction": masked_mean(outside, mask)}
            )
