"""Choosing the next token: explicit temperature, top-k and top-p, and no setting that a model brings along.

One uniform number per row decides (the inverse of the cumulative distribution, in float64), so that a row's choice
depends on its own number and its own logits only, and the generator is the single source of randomness.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignlab.errors import ConfigError


class Choice(NamedTuple):
    """The chosen tokens and their log-probs in the distribution they were drawn from."""

    tokens: Int[Tensor, "B"]
    logprobs: Float[Tensor, "B"]


def check_sampling(*, temperature: float, top_k: int, top_p: float) -> None:
    """ConfigError for settings that make no distribution."""
    if not temperature > 0:
        raise ConfigError(f"temperature={temperature} must be positive; for the most likely token set greedy=True")
    if top_k < 0:
        raise ConfigError(f"top_k={top_k} must be 0 (off) or positive")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p={top_p} must be in (0, 1]; 1 is off")


def log_distribution(
    logits: Float[Tensor, "B V"], *, temperature: float, top_k: int, top_p: float
) -> Float[Tensor, "B V"]:
    """Log-probs at this temperature, renormalised over the top_k most likely tokens and then over the smallest set of
    them that holds at least top_p of the mass (Holtzman et al. 2020); -inf elsewhere.
    """
    scaled = logits.float() / temperature
    if top_k and top_k < scaled.shape[-1]:
        lowest = scaled.topk(top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < lowest, -torch.inf)
    if top_p < 1:
        ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
        mass = ordered.softmax(-1).cumsum(-1)
        beyond = (mass - ordered.softmax(-1)) >= top_p  # the mass before a token already suffices
        scaled = scaled.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return scaled.log_softmax(-1)


def sample(logprobs: Float[Tensor, "B V"], uniform: Float[Tensor, "B"]) -> Choice:
    """The tokens at which the cumulative distributions pass `uniform`, numbers in [0, 1)."""
    cumulative = logprobs.double().exp().cumsum(-1)
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    threshold = (uniform.double()[:, None] * total).minimum(below_total)
    tokens = torch.searchsorted(cumulative, threshold, right=True)
    return Choice(tokens[:, 0], logprobs.gather(-1, tokens)[:, 0])


def most_likely(logprobs: Float[Tensor, "B V"]) -> Choice:
    """The tokens of highest probability (the first of equals)."""
    tokens = logprobs.argmax(-1, keepdim=True)
    return Choice(tokens[:, 0], logprobs.gather(-1, tokens)[:, 0])
