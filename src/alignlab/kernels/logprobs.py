"""Log-probabilities of given tokens, in two forms, and the one place where labels are shifted.

N scored positions, D hidden size, V vocabulary; B sequences of T positions.

`token_logprobs` takes logits and is the form to read and to test against. `linear_logprobs` takes hidden states and
the output head, walks over the positions in chunks, and so never holds [N, V]: the logits of a chunk live until its
log-probs are taken, and the backward pass makes them again. With z the logits over the temperature and p = softmax(z):

    log p(y) = z_y - logsumexp(z)          d log p(y) / d z_j = [j = y] - p_j
    H = -sum_j p_j log p_j                 d H / d z_j = -p_j (log p_j + H)
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignlab.batches import IGNORE
from alignlab.errors import ConfigError
from alignlab.kernels.precision import autocast_off, upcast

_CHUNK_ELEMENTS = 2**24  # logits of one chunk: 64 MiB in float32; smaller ones spend their time on overhead
_MIN_CHUNK_ROWS = 64  # below this a matrix product is all memory traffic


class LinearLogprobs(NamedTuple):
    """What `linear_logprobs` returns; both in nats, 0.0 at ignored rows."""

    logprobs: Float[Tensor, "N"]
    entropy: Float[Tensor, "N"] | None  # None unless asked for


def shift_labels(labels: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Labels moved one place to the left, so that entry t names the token at t + 1, which position t predicts.

    The last column is IGNORE. This is the only place of the shift: masks of per-token results are
    `shift_labels(labels) != IGNORE`.
    """
    shifted = torch.full_like(labels, IGNORE)
    shifted[:, :-1] = labels[:, 1:]
    return shifted


def token_logprobs(logits: Float[Tensor, "*axes V"], labels: Int[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """log p(label) in nats at each position, 0.0 where the label is IGNORE.

    `logits[..., t, :]` scores `labels[..., t]`: labels come already shifted. Half precision is upcast before the
    log-softmax. Whatever stands at an ignored position, NaN included, reaches neither value nor gradient.
    """
    with autocast_off(logits):
        counted = labels != IGNORE
        # zeroed before the log-softmax, not after: 0 * NaN in its backward would be NaN
        safe = upcast(logits).masked_fill(~counted.unsqueeze(-1), 0.0)
        picked = safe.log_softmax(-1).gather(-1, labels.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1)
        return picked.masked_fill(~counted, 0.0)


def linear_logprobs(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    labels: Int[Tensor, "N"],
    *,
    bias: Float[Tensor, "V"] | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    entropy: bool = False,
) -> LinearLogprobs:
    """log p(label) under softmax((hidden @ weight.T + bias) / temperature), without ever holding [N, V].

    `chunk_size` is the number of positions whose logits exist at once (None: by vocabulary). `entropy=True` adds the
    entropy of the same tempered distribution, differentiable like the log-probs. Ignored rows give 0 and get zero
    gradient, whatever stands in them; N may be 0. Products and log-sum-exp run in the promoted dtype of hidden and
    weight, at least float32. Gradients are exact, go only to what requires them (a frozen head costs nothing) and are
    differentiable once. ConfigError for a temperature or a chunk size that is not positive.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ConfigError(
            f"linear_logprobs: temperature={temperature} must be positive; greedy choice has no log-probs"
        )
    if chunk_size is None:
        chunk_size = _chunk_rows(weight)
    elif chunk_size < 1:
        raise ConfigError(
            f"linear_logprobs: chunk_size={chunk_size} must be at least 1, or None to choose by vocabulary"
        )
    out = _LinearLogprobs.apply(hidden, weight, labels, bias, temperature, chunk_size, entropy)
    return LinearLogprobs(*out)


@torch.no_grad()
def linear_argmax(
    hidden: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], *, bias: Float[Tensor, "V"] | None = None
) -> Int[Tensor, "N"]:
    """The most likely token of each row, chunked and upcast like `linear_logprobs`; of equals the lowest id."""
    head = _Head(hidden, weight, bias, temperature=1.0)
    rows = torch.arange(len(hidden), device=hidden.device).split(_chunk_rows(weight))
    with autocast_off(hidden):
        best = [head.logits(head.rows(index)).argmax(-1) for index in rows]
    return torch.cat(best) if best else torch.zeros(0, dtype=torch.int64, device=hidden.device)


def _chunk_rows(weight: Float[Tensor, "V D"]) -> int:
    """How many positions' logits may exist at once."""
    return max(_MIN_CHUNK_ROWS, _CHUNK_ELEMENTS // weight.shape[0])


class _Head:
    """The output head in the dtype of the computation: logits of a few rows at a time."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float):
        self.dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
        self.hidden, self.temperature = hidden, temperature
        self.weight = weight.to(self.dtype)  # no copy for float32 weights
        self.bias = None if bias is None else bias.to(self.dtype)

    def rows(self, index: Int[Tensor, "C"]) -> Float[Tensor, "C D"]:
        """The hidden states of some rows."""
        return self.hidden[index].to(self.dtype)

    def logits(self, rows: Float[Tensor, "C D"]) -> Float[Tensor, "C V"]:
        """Their logits over the temperature."""
        logits = rows @ self.weight.T
        if self.bias is not None:
            logits += self.bias
        return logits if self.temperature == 1.0 else logits.div_(self.temperature)


class _LinearLogprobs(torch.autograd.Function):
    """Forward keeps the inputs and two numbers per row; backward makes each chunk's logits a second time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        temperature: float,
        chunk_size: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        with autocast_off(hidden):
            head = _Head(hidden, weight, bias, temperature)
            scored = (labels != IGNORE).nonzero().squeeze(1)  # ignored rows cost nothing and cannot leak
            logprobs, lse, entropies = (torch.zeros_like(labels, dtype=head.dtype) for _ in range(3))
            for index in scored.split(chunk_size):
                logits = head.logits(head.rows(index))  # (C, V), gone at the next turn
                lse[index] = normalizer = logits.logsumexp(-1)
                logprobs[index] = logits.gather(1, labels[index].unsqueeze(1)).squeeze(1) - normalizer
                if with_entropy:
                    entropies[index] = torch.special.entr(logits.sub_(normalizer.unsqueeze(1)).exp_()).sum(-1)
        ctx.save_for_backward(hidden, weight, labels, bias, scored, lse, entropies)
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        ctx.set_materialize_grads(False)
        return logprobs, entropies if with_entropy else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, bias, scored, lse, entropies = ctx.saved_tensors
        needs_hidden, needs_weight, _, needs_bias = ctx.needs_input_grad[:4]
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(lse)
        with autocast_off(hidden):
            head = _Head(hidden, weight, bias, ctx.temperature)
            grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
            grad_weight = torch.zeros_like(head.weight) if needs_weight else None
            grad_bias = torch.zeros_like(head.bias) if needs_bias and head.bias is not None else None
            for index in scored.split(ctx.chunk_size):
                rows = head.rows(index)
                logprobs = head.logits(rows).sub_(lse[index].unsqueeze(1))
                grad = _logit_gradient(logprobs, labels[index], grad_logprobs[index])
                if grad_entropy is not None:
                    grad += _entropy_gradient(logprobs, entropies[index], grad_entropy[index])
                grad /= ctx.temperature
                if grad_hidden is not None:
                    grad_hidden[index] = (grad @ head.weight).to(hidden.dtype)
                if grad_weight is not None:
                    grad_weight.addmm_(grad.T, rows)
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, None, grad_bias, None, None, None


def _logit_gradient(
    logprobs: Float[Tensor, "C V"], labels: Int[Tensor, "C"], upstream: Float[Tensor, "C"]
) -> Float[Tensor, "C V"]:
    """Of the labels' log-probs: upstream * ([j = y] - p_j)."""
    grad = logprobs.exp().mul_(-upstream.unsqueeze(1))
    return grad.scatter_add_(1, labels.unsqueeze(1), upstream.unsqueeze(1))


def _entropy_gradient(
    logprobs: Float[Tensor, "C V"], entropy: Float[Tensor, "C"], upstream: Float[Tensor, "C"]
) -> Float[Tensor, "C V"]:
    """Of the entropies: -upstream * p_j (log p_j + H); eats `logprobs`."""
    probs = logprobs.exp_()
    # -p log p through entr, which is 0 at p = 0 (a token whose logit is -inf), where p * log p would be NaN
    return torch.special.entr(probs).sub_(probs.mul_(entropy.unsqueeze(1))).mul_(upstream.unsqueeze(1))
