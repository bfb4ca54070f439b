"""Advantages by their definitions: sums over the future of one unpadded row, means over one group."""

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float, bootstrap: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A_i = sum_k (gamma lambda)^k delta_(i + k) over the counted steps of a row, which are first taken out of it."""
    zero = torch.zeros((), dtype=torch.float64)
    advantages = [[zero] * mask.shape[1] for _ in range(len(mask))]
    returns = [[zero] * mask.shape[1] for _ in range(len(mask))]
    for b in range(len(mask)):
        steps = [t for t in range(mask.shape[1]) if mask[b, t]]
        row_values = [values[b, t] for t in steps] + [zero if bootstrap is None else bootstrap[b]]
        deltas = [rewards[b, t] + gamma * row_values[i + 1] - row_values[i] for i, t in enumerate(steps)]
        for i, t in enumerate(steps):
            advantages[b][t] = sum(
                ((gamma * gae_lambda) ** k * delta for k, delta in enumerate(deltas[i:])), torch.zeros_like(zero)
            )
            returns[b][t] = advantages[b][t] + values[b, t]
    return _table(advantages), _table(returns)


def gae_step_by_step(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float, bootstrap: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The recursion as papers write it: backwards over time, all rows at once, uncounted steps stepped over."""
    advantages = torch.zeros_like(values)
    advantage = values.new_zeros(len(values))
    next_value = advantage if bootstrap is None else bootstrap
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(mask[:, t], delta + gamma * gae_lambda * advantage, advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(mask[:, t], advantage, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def group_advantages(scores: Tensor, group_size: int, kind: str) -> Tensor:
    """A score less the mean of the others (rloo), or less the group's mean and over its standard deviation (grpo)."""
    result = []
    for i in range(len(scores)):
        start = i // group_size * group_size
        group = [scores[j] for j in range(start, start + group_size)]
        mean = sum(group, torch.zeros((), dtype=torch.float64)) / group_size
        if kind == "rloo":
            others = [scores[j] for j in range(start, start + group_size) if j != i]
            result.append(scores[i] - sum(others, torch.zeros((), dtype=torch.float64)) / len(others))
        else:
            squares = sum(((s - mean) ** 2 for s in group), torch.zeros((), dtype=torch.float64))
            result.append((scores[i] - mean) / (torch.sqrt(squares / (group_size - 1)) + 1e-4))
    return torch.stack(result)


def _table(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row) for row in rows])
