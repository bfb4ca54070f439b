"""PPO's two losses: the clipped policy objective and the clipped value error (Schulman et al. 2017).

Both are means over counted tokens. "Old" is what the policy and the critic said when the batch was collected.
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
    """mean of -min(ratio A, clip(ratio, 1 - clip_range, 1 + clip_range) A), minus entropy_coefficient * mean entropy.

    Eq. 7 of Schulman et al. 2017, with ratio = exp(logprobs - old_logprobs). Advantages and old log-probs are
    constants. The gradient is 0 where the ratio has left e^+-20, which only a policy that has collapsed reaches.
    """

    def __init__(self, clip_range: float, *, entropy_coefficient: float = 0.0):
        super().__init__()
        require_positive(self, clip_range=clip_range)
        require_between(self, 0.0, math.inf, entropy_coefficient=entropy_coefficient)
        self.clip_range, self.entropy_coefficient = clip_range, entropy_coefficient

    def forward(
        self,
        logprobs: Float[Tensor, "B T"],
        old_logprobs: Float[Tensor, "B T"],
        advantages: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        *,
        entropy: Float[Tensor, "B T"] | None = None,
        normalizer: Normalizer = None,
    ) -> LossOutput:
        """`normalizer`: number of counted tokens of the whole optimizer step (None: of this call).

        Metrics, over this call's tokens: `clip_fraction` (share with |ratio - 1| > clip_range), `ratio_mean`,
        `approx_kl` (k3 of old against new), and `entropy` if it was given. ConfigError if a bonus has no entropy.
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
            clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
            loss = token_mean(-torch.minimum(ratio * advantages, clipped * advantages), mask, normalizer)
            if self.entropy_coefficient and entropy is not None:
                loss = loss - self.entropy_coefficient * token_mean(entropy, mask, normalizer)
            return LossOutput(loss, self._metrics(log_ratio.detach(), ratio.detach(), mask, entropy))

    def _metrics(self, log_ratio: Tensor, ratio: Tensor, mask: Tensor, entropy: Tensor | None) -> dict[str, Tensor]:
        metrics = {
            "clip_fraction": masked_mean((ratio - 1).abs() > self.clip_range, mask),
            "ratio_mean": masked_mean(ratio, mask),
            "approx_kl": masked_mean(kl_estimate(-log_ratio, torch.zeros_like(log_ratio), kind="k3"), mask),
        }
        if entropy is not None:
            metrics["entropy"] = masked_mean(entropy.detach(), mask)
        return metrics


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
