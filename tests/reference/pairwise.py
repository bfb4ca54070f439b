"""The pairwise losses of the papers written naively: one pair in plain formulas, and loops where a batch is coupled.

`policy` and `reference` are (chosen, rejected) of one pair, summed log-probs; `lengths` its two lengths.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.reference.losses import dpo, log_ratio_difference, sigmoid

Pair = tuple[Tensor, Tensor]
PairTwin = Callable[[Pair, Pair, Sequence[int]], Tensor]
BatchTwin = Callable[[list[Pair], list[Pair], list[tuple[int, int]]], Tensor]


def mean_of(per_pair: PairTwin) -> BatchTwin:
    """The batch as a loop over its pairs."""

    def twin(policy, reference, lengths):
        losses = [per_pair(*row) for row in zip(policy, reference, lengths, strict=True)]
        return sum(losses) / len(losses)

    return twin


def dpo_per_token(policy, reference, lengths, beta):
    """DPO after each log-ratio was divided by its reply's length."""
    ratios = [(p - r) / n for p, r, n in zip(policy, reference, lengths, strict=True)]
    return -torch.log(sigmoid(beta * (ratios[0] - ratios[1])))


def exo(policy, reference, beta, label_smoothing):
    """KL of two two-way distributions, term by term."""
    scores = [beta * (p - r) for p, r in zip(policy, reference, strict=True)]
    shares = [torch.exp(s) / (torch.exp(scores[0]) + torch.exp(scores[1])) for s in scores]
    targets = (1 - label_smoothing, label_smoothing)
    return sum(q * torch.log(q / p) for q, p in zip(shares, targets, strict=True))


def discopop(policy, reference, beta, tau):
    """A logistic and an exponential loss, mixed."""
    margin = beta * log_ratio_difference(policy, reference)
    mixed = sigmoid(margin / tau)
    return (1 - mixed) * torch.log(1 + torch.exp(-margin)) + mixed * torch.exp(-margin)


def f_dpo(policy, reference, beta, slope):
    """DPO with f' of the two probability ratios."""
    chosen, rejected = (slope(torch.exp(p) / torch.exp(r)) for p, r in zip(policy, reference, strict=True))
    return -torch.log(sigmoid(beta * chosen - beta * rejected))


def rewards(policy, reference, beta):
    """beta log pi/ref of both replies."""
    return [beta * (p - r) for p, r in zip(policy, reference, strict=True)]


def nca(policy, reference, beta):
    """One positive, and half a negative for each reply."""
    chosen, rejected = rewards(policy, reference, beta)
    negatives = torch.log(sigmoid(-chosen)) + torch.log(sigmoid(-rejected))
    return -torch.log(sigmoid(chosen)) - negatives / 2


def sppo_hard(policy, reference, beta):
    """eta = 1 / beta, win rates 1 and 0: (log ratio - eta (P - 1/2))^2."""
    log_ratios = [p - r for p, r in zip(policy, reference, strict=True)]
    return sum((x - (win - 0.5) / beta) ** 2 for x, win in zip(log_ratios, (1, 0), strict=True))


def apo_zero(policy, reference, beta):
    """Up with the chosen reply, down with the other."""
    chosen, rejected = rewards(policy, reference, beta)
    return (1 - sigmoid(chosen)) + sigmoid(rejected)


def apo_down(policy, reference, beta):
    """Down with both, the rejected reply first."""
    chosen, rejected = rewards(policy, reference, beta)
    return sigmoid(chosen) + (1 - sigmoid(chosen - rejected))


def bco(policy, reference, lengths, beta):
    """First batch in training: the baseline is the mean of this batch's own rewards, as plain numbers."""
    pairs = [rewards(p, r, beta) for p, r in zip(policy, reference, strict=True)]
    delta = sum(x.item() for pair in pairs for x in pair) / (2 * len(pairs))
    losses = [-torch.log(sigmoid(c - delta)) - torch.log(1 - sigmoid(r - delta)) for c, r in pairs]
    return sum(losses) / len(losses)


def aot(policy, reference, lengths, beta):
    """The k-th smallest margin of the policy against the k-th smallest of the reference."""
    ours = sorted((c - r for c, r in policy), key=Tensor.item)
    theirs = sorted((c - r for c, r in reference), key=Tensor.item)
    return sum(-torch.log(sigmoid(beta * (a - b))) for a, b in zip(ours, theirs, strict=True)) / len(ours)


def aot_unpaired(policy, reference, lengths, beta):
    """The k-th smallest log-ratio of chosen replies against the k-th smallest of rejected ones."""
    ratios = [(p[0] - r[0], p[1] - r[1]) for p, r in zip(policy, reference, strict=True)]
    chosen, rejected = (sorted((pair[side] for pair in ratios), key=Tensor.item) for side in (0, 1))
    return sum(-torch.log(sigmoid(beta * (a - b))) for a, b in zip(chosen, rejected, strict=True)) / len(chosen)


def cpo(policy, lengths, beta, coefficient, per):
    """DPO against a reference that gives every reply the same, and the chosen reply's likelihood."""
    nothing = (torch.zeros_like(policy[0]), torch.zeros_like(policy[1]))
    return dpo(policy, nothing, beta) + coefficient * nll(policy, lengths, per)


def orpo(policy, lengths, beta):
    """Odds of the geometric mean probability per token."""
    p_chosen, p_rejected = (torch.exp(p / n) for p, n in zip(policy, lengths, strict=True))
    odds_ratio = (p_chosen / (1 - p_chosen)) / (p_rejected / (1 - p_rejected))
    return nll(policy, lengths, "token") - beta * torch.log(sigmoid(torch.log(odds_ratio)))


def nll(policy, lengths, per):
    """Of the chosen reply."""
    return -policy[0] / (lengths[0] if per == "token" else 1)
