"""The losses of the papers for one pair, one score or one token, and their means."""

import torch
from torch import Tensor

from tests.reference.statistics import kept, mean


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + torch.exp(-x))


def log_ratio_difference(policy: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> Tensor:
    """log [pi(c) ref(r) / (pi(r) ref(c))] of one pair."""
    return policy[0] - policy[1] - (reference[0] - reference[1])


def dpo(policy, reference, beta, label_smoothing=0.0):
    """Two-outcome cross-entropy with the label 1 - e."""
    p = sigmoid(beta * log_ratio_difference(policy, reference))
    return -(1 - label_smoothing) * torch.log(p) - label_smoothing * torch.log(1 - p)


def robust_dpo(policy, reference, beta, label_smoothing):
    """[(1 - e) L(c, r) - e L(r, c)] / (1 - 2e) with L = DPO."""
    swapped = [(side[1], side[0]) for side in (policy, reference)]
    straight = dpo(policy, reference, beta)
    return ((1 - label_smoothing) * straight - label_smoothing * dpo(*swapped, beta)) / (1 - 2 * label_smoothing)


def ipo(policy, reference, beta):
    """(h - 1 / (2 tau))^2."""
    return (log_ratio_difference(policy, reference) - 0.5 / beta) ** 2


def ipo_per_token(policy, reference, beta, chosen_length, rejected_length):
    """The same with each reply's log-ratio over its length."""
    h = (policy[0] - reference[0]) / chosen_length - (policy[1] - reference[1]) / rejected_length
    return (h - 0.5 / beta) ** 2


def hinge(policy, reference, beta):
    """What is missing to a margin of 1."""
    gap = 1 - beta * log_ratio_difference(policy, reference)
    return gap if gap.item() > 0 else gap * 0


def simpo(policy, beta, gamma, chosen_length, rejected_length):
    """Per-token rewards with a target margin."""
    return -torch.log(sigmoid(beta / chosen_length * policy[0] - beta / rejected_length * policy[1] - gamma))


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: float, center: float) -> Tensor:
    """Mean over pairs, the centering term added pair by pair."""
    terms = [-torch.log(sigmoid(c - r - margin)) + center * (c + r) ** 2 for c, r in zip(chosen, rejected, strict=True)]
    return mean(terms)


def ppo_policy(logprobs, old_logprobs, advantages, mask, clip_range, entropy, coefficient) -> Tensor:
    """Token by token: the worse of the plain and the clipped objective."""
    terms = []
    for new, old, advantage in zip(*(kept(x, mask) for x in (logprobs, old_logprobs, advantages)), strict=True):
        ratio = torch.exp(new - old.detach())
        low, high = 1 - clip_range, 1 + clip_range
        clipped = torch.full_like(ratio, low) if ratio.item() < low else ratio
        clipped = torch.full_like(ratio, high) if ratio.item() > high else clipped
        plain, bounded = ratio * advantage.detach(), clipped * advantage.detach()
        terms.append(-(plain if plain.item() < bounded.item() else bounded))
    return mean(terms) - coefficient * mean(kept(entropy, mask))


def value(values, old_values, returns, mask, clip_range) -> Tensor:
    """Token by token: half the larger of the plain and the clipped squared error."""
    terms = []
    for new, old, target in zip(*(kept(x, mask) for x in (values, old_values, returns)), strict=True):
        moved = (new - old).item()
        clipped = old.detach() + max(-clip_range, min(clip_range, moved)) if abs(moved) > clip_range else new
        plain, bounded = (new - target.detach()) ** 2, (clipped - target.detach()) ** 2
        terms.append(0.5 * (plain if plain.item() >= bounded.item() else bounded))
    return mean(terms)
