"""Masked statistics of the list of values that count, and divergences term by term."""

import torch
from torch import Tensor


def kept(x: Tensor, mask: Tensor) -> list[Tensor]:
    """The values that count, in a list."""
    return [value for value, counts in zip(x.flatten(), mask.flatten().tolist(), strict=True) if counts]


def total(values: list[Tensor]) -> Tensor:
    """Their sum, 0 for none."""
    result = torch.zeros((), dtype=torch.float64)
    for value in values:
        result = result + value
    return result


def mean(values: list[Tensor]) -> Tensor:
    """Their mean, 0 for none."""
    return total(values) / max(len(values), 1)


def variance(values: list[Tensor]) -> Tensor:
    """Unbiased; 0 for fewer than two."""
    center = mean(values)
    return total([(value - center) ** 2 for value in values]) / max(len(values) - 1, 1)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool) -> Tensor:
    """(x - mean) / std, plus the mean unless it is shifted away; 0 where nothing counts."""
    values = kept(x, mask)
    center, spread = mean(values), torch.sqrt(variance(values))
    zero = torch.zeros((), dtype=torch.float64)
    flat = [
        (value - center) / spread + (0 if shift_mean else center) if counts else zero
        for value, counts in zip(x.flatten(), mask.flatten().tolist(), strict=True)
    ]
    return torch.stack(flat).view_as(x)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """By the ratio q / p = exp(ref - log p): -log of it, half the square of that log, or ratio - 1 - log ratio."""
    log_ratio = ref_logprobs - logprobs
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return log_ratio**2 / 2
    return torch.exp(log_ratio) - 1 - log_ratio


def full_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """sum_j p_j log(p_j / q_j) for each row of a matrix."""
    rows = []
    for z, ref_z in zip(logits, ref_logits, strict=True):
        p = torch.exp(z) / torch.exp(z).sum()
        q = torch.exp(ref_z) / torch.exp(ref_z).sum()
        rows.append(total([p[j] * torch.log(p[j] / q[j]) for j in range(len(p))]))
    return torch.stack(rows)
