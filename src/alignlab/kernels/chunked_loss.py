"""A loss taken inside the output head, part by part, with its gradients in the same pass.

`linear_logprobs` makes the logits of a chunk twice: for its log-probs, and again in the backward pass, when it is known
what the loss makes of them. Where the loss is a sum over parts (SFT and PPO: tokens; DPO: pairs), it is known as soon
as a part's log-probs are: the tile that holds their logits is turned into gradients while it is there. Per scored row
that is 6 V D operations instead of 8, and one exp instead of two. The backward pass only scales what was found.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignlab.kernels.head import Gradients, Head, LogitSettings, Softmax, operand_dtype, tile_rows, whole_rows
from alignlab.kernels.logprobs import LinearLogprobs, logit_settings
from alignlab.kernels.precision import autocast_off

Metrics = dict[str, Float[Tensor, ""]]
PartLoss = Callable[[int, LinearLogprobs], tuple[Float[Tensor, ""], Metrics]]
"""(number of a part, log-probs and entropy of its rows) -> the part's *share* of loss and metrics, which are added up.

Called once a part, in order, with gradients on. It must divide by the count of the whole step itself; other tensors
that require gradients get none.
"""


def linear_loss(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    labels: Int[Tensor, "N"],
    parts: Sequence[Int[Tensor, "C"]],
    loss: PartLoss,
    *,
    bias: Float[Tensor, "V"] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    entropy: bool = False,
) -> tuple[Float[Tensor, ""], Metrics]:
    """(sum of the parts' losses, sums of their metrics), never holding [N, V]; gradients to hidden, weight and bias.

    `parts`: row numbers, no row twice; every row's label is a token. A part of more than `chunk_size` rows (None: by
    vocabulary) goes the way of `linear_logprobs`: its logits are made a second time, once its loss is known. Equal to
    `loss` over the parts of `linear_logprobs` up to rounding. The gradients are used up by one backward pass.
    ConfigError for a temperature or a soft cap that is not positive.
    """
    settings = _Settings(
        logit_settings("linear_loss", temperature, scale, softcap),
        operand_dtype(hidden, weight),
        chunk_size or whole_rows(weight),
        entropy,
        torch.is_grad_enabled(),
    )
    metrics: Metrics = {}

    def add(number: int, scored: LinearLogprobs) -> Tensor:
        value, found = loss(number, scored)
        for name, share in found.items():
            metrics[name] = metrics[name] + share if name in metrics else share
        return value

    return _LinearLoss.apply(hidden, weight, bias, labels, list(parts), add, settings), metrics


def grouped(lengths: Sequence[int], weight: Float[Tensor, "V D"]) -> list[range]:
    """Runs of neighbours whose lengths (scored rows of each unit) together fill a tile; a longer one stands alone."""
    most, runs, start, filled = tile_rows(weight), [], 0, 0
    for number, length in enumerate(lengths):
        if filled and filled + length > most:
            runs.append(range(start, number))
            start, filled = number, 0
        filled += length
    return [*runs, range(start, len(lengths))] if len(lengths) else []


class _Settings(NamedTuple):
    logits: LogitSettings
    operand: torch.dtype
    chunk_size: int
    entropy: bool
    wants_gradients: bool


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        parts: list[Tensor],
        loss: Callable[[int, LinearLogprobs], Tensor],
        settings: _Settings,
    ) -> Tensor:
        wanted = [needed and settings.wants_gradients for needed in ctx.needs_input_grad[:3]]
        largest = min(settings.chunk_size, max((len(part) for part in parts), default=0))
        with autocast_off(hidden):
            head = Head(hidden, weight, bias, settings.logits, settings.operand, largest)
            gradients = Gradients.zeros(head, *wanted)
            total = torch.zeros((), dtype=head.dtype, device=hidden.device)
            for number, part in enumerate(parts):
                pieces = part.split(max(largest, 1))
                found = [_softmax(head, piece, labels, settings) for piece in pieces]
                logprobs, entropy = _leaves(found, settings)
                with torch.set_grad_enabled(settings.wants_gradients):
                    value = loss(number, LinearLogprobs(logprobs, entropy))
                total += value.detach()
                if any(wanted):
                    upstream, upstream_entropy = _upstream(value, logprobs, entropy)
                    done = 0
                    for piece, softmax in zip(pieces, found, strict=True):
                        where, done = slice(done, done + len(piece)), done + len(piece)
                        rows = head.rows(piece)
                        tile = head.exps(len(piece))
                        if len(pieces) > 1:  # the tile has held other rows since
                            tile = head.logits(rows, differentiable=True)
                            head.softmax_(tile, labels[piece], entropy=upstream_entropy is not None)
                        of_entropy = None if upstream_entropy is None else upstream_entropy[where]
                        grad = head.gradient_(tile, labels[piece], softmax, upstream[where], of_entropy)
                        gradients.add(head, piece, rows, grad)
        ctx.gradients, ctx.dtypes = gradients, [None if x is None else x.dtype for x in (hidden, weight, bias)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "linear_loss: its gradients were used up by an earlier backward pass"
        gradients, ctx.gradients = ctx.gradients, None  # nobody else holds them, so autograd need not copy them
        for grad in gradients:
            if grad is not None:
                grad.mul_(upstream)
        return *gradients.to(ctx.dtypes), None, None, None, None


def _softmax(head: Head, piece: Tensor, labels: Tensor, settings: _Settings) -> Softmax:
    logits = head.logits(head.rows(piece), differentiable=settings.wants_gradients)
    return head.softmax_(logits, labels[piece], entropy=settings.entropy)


def _leaves(found: list[Softmax], settings: _Settings) -> tuple[Tensor, Tensor | None]:
    """Log-probs and entropies of a part, as what its loss is differentiated by."""
    logprobs = torch.cat([piece.logprobs for piece in found])
    entropy = torch.cat([piece.entropy for piece in found if piece.entropy is not None]) if settings.entropy else None
    for leaf in (logprobs, entropy):
        if leaf is not None:
            leaf.requires_grad_(settings.wants_gradients)
    return logprobs, entropy


def _upstream(value: Tensor, logprobs: Tensor, entropy: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """d loss / d log-prob, and d loss / d entropy (None where the loss does not depend on it)."""
    if not value.requires_grad:
        return torch.zeros_like(logprobs), None
    leaves = [logprobs] if entropy is None else [logprobs, entropy]
    by_logprob, *by_entropy = torch.autograd.grad(value, leaves, allow_unused=True)
    by_logprob = torch.zeros_like(logprobs) if by_logprob is None else by_logprob
    return by_logprob, by_entropy[0] if by_entropy else None
