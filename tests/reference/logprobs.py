"""log-probs and entropies of rows of logits, one row and one token at a time."""

import torch
from torch import Tensor

IGNORED = -100


def row_logprob(logits: Tensor, label: int) -> Tensor:
    """log of exp(z_y) / sum_j exp(z_j)."""
    top = max(logits.tolist())
    normalizer = sum((torch.exp(z - top) for z in logits), torch.zeros((), dtype=torch.float64))
    return logits[label] - top - torch.log(normalizer)


def row_entropy(logits: Tensor) -> Tensor:
    """-sum_j p_j log p_j."""
    total = torch.zeros((), dtype=torch.float64)
    for j in range(len(logits)):
        logprob = row_logprob(logits, j)
        total = total - torch.exp(logprob) * logprob
    return total


def token_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """By a double loop over rows and positions."""
    zero = torch.zeros((), dtype=torch.float64)
    return torch.stack(
        [
            torch.stack([zero if y == IGNORED else row_logprob(z, y) for z, y in zip(row, row_labels, strict=True)])
            for row, row_labels in zip(logits, labels.tolist(), strict=True)
        ]
    )


def linear_logprobs(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """(logprobs, entropies), the logits being a matrix product written as dot products."""
    zero = torch.zeros((), dtype=torch.float64)
    logprobs, entropies = [], []
    for row, label in zip(hidden, labels.tolist(), strict=True):
        if label == IGNORED:
            logprobs.append(zero)
            entropies.append(zero)
            continue
        logits = torch.stack([(row * column).sum() for column in weight])
        if bias is not None:
            logits = logits + bias
        logits = logits / temperature
        logprobs.append(row_logprob(logits, label))
        probs = torch.exp(logits - logits.max()) / torch.exp(logits - logits.max()).sum()
        entropies.append(-(probs * torch.log(probs)).sum())
    return torch.stack(logprobs), torch.stack(entropies)
