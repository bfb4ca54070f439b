"""Choosing the next token: explicit temperature, top-k and top-p, and no setting that a model brings along.

One uniform number per row decides (the inverse of the cumulative distribution), so that a row's choice depends on its
own number and its own logits only, and the generator is the single source of randomness.

A large vocabulary is searched in two steps, first for the block of tokens in which the number falls, then inside it:
the cumulative distribution in float64, which is exact to the last token, is of the block sums and of one block only.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.kernels.precision import upcast

_BLOCK = 512  # tokens; of 151936 (8 rows) a float64 pass over all takes 21 ms, over blocks 1.5 ms


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
    scaled = upcast(logits) / temperature
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
    sought = uniform.double()[:, None]
    if logprobs.shape[-1] <= 2 * _BLOCK:
        cumulative = logprobs.double().exp().cumsum(-1)
        tokens = _passing(cumulative, sought * cumulative[:, -1:])
    else:
        tokens = _blockwise(logprobs.exp(), sought)
    return Choice(tokens[:, 0], logprobs.gather(-1, tokens)[:, 0])


def _blockwise(probabilities: Float[Tensor, "B V"], sought: Float[Tensor, "B 1"]) -> Int[Tensor, "B 1"]:
    """The same search in a large vocabulary: the block of tokens first, then the token."""
    width = probabilities.shape[-1]
    cumulative = _block_sums(probabilities).cumsum(-1)
    sought = sought * cumulative[:, -1:]
    block = _passing(cumulative, sought)
    before = torch.where(block > 0, cumulative.gather(-1, (block - 1).clamp(min=0)), 0.0)
    columns = block * _BLOCK + torch.arange(_BLOCK, device=block.device)
    beyond = columns >= width  # the last block may be a shorter one
    inside = probabilities.gather(-1, columns.clamp(max=width - 1)).double().masked_fill(beyond, 0.0)
    return block * _BLOCK + _passing(inside.cumsum(-1), sought - before)


def _block_sums(x: Float[Tensor, "B V"]) -> Float[Tensor, "B K"]:
    """Sums over _BLOCK columns each, in float64."""
    num_rows, width = x.shape
    whole = width // _BLOCK * _BLOCK
    sums = x[:, :whole].reshape(num_rows, -1, _BLOCK).sum(-1, dtype=torch.float64)
    return sums if whole == width else torch.cat([sums, x[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)], 1)


def _passing(cumulative: Float[Tensor, "B K"], sought: Float[Tensor, "B 1"]) -> Int[Tensor, "B 1"]:
    """The first place at which a cumulative sum is above `sought`; the last one that adds to it if none is."""
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    return torch.searchsorted(cumulative, sought.minimum(below_total), right=True)


def most_likely(logprobs: Float[Tensor, "B V"]) -> Choice:
    """The tokens of highest probability (the first of equals)."""
    tokens = logprobs.argmax(-1, keepdim=True)
    return Choice(tokens[:, 0], logprobs.gather(-1, tokens)[:, 0])
