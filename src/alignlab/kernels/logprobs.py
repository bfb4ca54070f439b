"""Log-probabilities of given tokens, in two forms, and the one place where labels are shifted.

N scored positions, D hidden size, V vocabulary; B sequences of T positions.

`token_logprobs` takes logits and is the form to read and to test against. `linear_logprobs` takes hidden states and
the output head, walks over the positions in chunks, and so never holds [N, V]: the logits of a chunk live until its
log-probs are taken, and the backward pass makes them again. (`chunked_loss` does without the second time, for losses
that can be taken part by part.) The equations are in `head`.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignlab.batches import IGNORE
from alignlab.errors import ConfigError
from alignlab.kernels.head import Gradients, Head, LogitSettings, operand_dtype, tile_rows
from alignlab.kernels.precision import autocast_off, upcast


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
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    entropy: bool = False,
) -> LinearLogprobs:
    """log p(label) under softmax(z / temperature), without ever holding [N, V].

    z = scale x, or softcap tanh(scale x / softcap), with x = hidden @ weight.T + bias.

    `chunk_size` is the number of positions whose logits exist at once (None: by vocabulary). `entropy=True` adds the
    entropy of the same tempered distribution, differentiable like the log-probs. Ignored rows give 0 and get zero
    gradient, whatever stands in them; N may be 0. Products and log-sum-exp run in the promoted dtype of hidden and
    weight, at least float32 (see `head.Head`). Gradients are exact, go only to what requires them (a frozen head costs
    nothing) and are differentiable once. ConfigError for a temperature, soft cap or chunk size that is not positive.
    """
    settings = logit_settings("linear_logprobs", temperature, scale, softcap)
    if chunk_size is None:
        chunk_size = tile_rows(weight)
    elif chunk_size < 1:
        raise ConfigError(
            f"linear_logprobs: chunk_size={chunk_size} must be at least 1, or None to choose by vocabulary"
        )
    operand = operand_dtype(hidden, weight)
    out = _LinearLogprobs.apply(hidden, weight, labels, bias, settings, chunk_size, entropy, operand)
    return LinearLogprobs(*out)


def logit_settings(name: str, temperature: float, scale: float, softcap: float | None) -> LogitSettings:
    """The settings; ConfigError for a temperature or a soft cap that is not positive and finite."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ConfigError(f"{name}: temperature={temperature} must be positive; greedy choice has no log-probs")
    if softcap is not None and not (softcap > 0 and math.isfinite(softcap)):
        raise ConfigError(f"{name}: softcap={softcap} must be positive, or None for logits that are not capped")
    return LogitSettings(temperature, scale, softcap)


@torch.no_grad()
def linear_argmax(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    *,
    bias: Float[Tensor, "V"] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Int[Tensor, "N"]:
    """The most likely token of each row, chunked and upcast like `linear_logprobs`; of equals the lowest id."""
    settings = logit_settings("linear_argmax", 1.0, scale, softcap)
    if not len(hidden):
        return torch.zeros(0, dtype=torch.int64, device=hidden.device)
    chunks = torch.arange(len(hidden), device=hidden.device).split(tile_rows(weight))
    operand = operand_dtype(hidden, weight)
    with autocast_off(hidden):
        head = Head(hidden, weight, bias, settings, operand, len(chunks[0]))
        return torch.cat([head.logits(head.rows(index)).argmax(-1) for index in chunks])


class _LinearLogprobs(torch.autograd.Function):
    """Forward keeps the inputs; backward makes each chunk's logits a second time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        settings: LogitSettings,
        chunk_size: int,
        with_entropy: bool,
        operand: torch.dtype,
    ) -> tuple[Tensor, Tensor | None]:
        scored = (labels != IGNORE).nonzero().squeeze(1)  # ignored rows cost nothing and cannot leak
        ctx.save_for_backward(hidden, weight, labels, bias, scored)
        ctx.settings = settings, operand, min(chunk_size, len(scored))
        ctx.with_entropy = with_entropy
        ctx.set_materialize_grads(False)
        with autocast_off(hidden):
            head = Head(hidden, weight, bias, *ctx.settings)
            logprobs, entropies = (torch.zeros_like(labels, dtype=head.dtype) for _ in range(2))
            for index in scored.split(chunk_size):
                found = head.softmax_(head.logits(head.rows(index)), labels[index], entropy=with_entropy)
                logprobs[index] = found.logprobs
                if found.entropy is not None:
                    entropies[index] = found.entropy
        return logprobs, entropies if with_entropy else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, bias, scored = ctx.saved_tensors
        needs_hidden, needs_weight, _, needs_bias = ctx.needs_input_grad[:4]
        with autocast_off(hidden):
            head = Head(hidden, weight, bias, *ctx.settings)
            if grad_logprobs is None:
                grad_logprobs = torch.zeros_like(labels, dtype=head.dtype)
            gradients = Gradients.zeros(head, needs_hidden, needs_weight, needs_bias)
            for index in scored.split(max(head.largest, 1)):
                rows = head.rows(index)
                logits = head.logits(rows, differentiable=True)
                found = head.softmax_(logits, labels[index], entropy=grad_entropy is not None)
                upstream_entropy = None if grad_entropy is None else grad_entropy[index]
                grad = head.gradient_(logits, labels[index], found, grad_logprobs[index], upstream_entropy)
                gradients.add(head, index, rows, grad)
        dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        grad_hidden, grad_weight, grad_bias = gradients.to(dtypes)
        return grad_hidden, grad_weight, None, grad_bias, None, None, None, None
