"""Kullback-Leibler divergence between a policy and its reference: estimated from samples, or in full."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.kernels.precision import autocast_off, upcast


def kl_estimate(
    logprobs: Float[Tensor, "*axes"], ref_logprobs: Float[Tensor, "*axes"], *, kind: Literal["k1", "k2", "k3"]
) -> Float[Tensor, "*axes"]:
    """Elementwise estimate of KL(p || p_ref) in nats, for samples of p with these log-probs.

    With d = log p - log p_ref (J. Schulman, "Approximating KL divergence", 2020):
    k1 = d: unbiased, noisy, of either sign; the one to put into a reward, detached.
    k2 = d^2 / 2: biased, never negative; as a loss its gradient is that of the KL, if d is the whole sample's.
    k3 = exp(-d) - 1 + d: unbiased, never negative; a metric: its gradient is not the KL's, nor is
        what it teaches as a reward.
    """
    with autocast_off(logprobs):
        difference = upcast(logprobs) - upcast(ref_logprobs)
        if kind == "k1":
            return difference
        if kind == "k2":
            return 0.5 * difference.square()
        if kind == "k3":
            return (-difference).expm1() + difference
    raise ConfigError(f"kl_estimate: kind={kind!r} is none of 'k1', 'k2', 'k3'")


def full_kl(logits: Float[Tensor, "*axes V"], ref_logits: Float[Tensor, "*axes V"]) -> Float[Tensor, "*axes"]:
    """KL(p || p_ref) in nats over the last axis, p = softmax(logits).

    A token that p never picks (logit -inf) adds nothing.
    """
    with autocast_off(logits):
        logprobs = upcast(logits).log_softmax(-1)
        probs = logprobs.exp()
        difference = (logprobs - upcast(ref_logits).log_softmax(-1)).masked_fill(probs == 0, 0.0)
        return (probs * difference).sum(-1)
