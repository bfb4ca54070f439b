"""The gradient of the embedding matrix [V, D], of many networks the largest tensor there is.

One, not two. A matrix that both reads and writes tokens (tied embeddings) gets two gradients: that of the head, and
that of the lookup, as large and zero but for the rows of the batch's tokens. Autograd makes both, and adds them. Here
the lookup hands the matrix on to the head instead, so that the head's gradient comes back through the lookup, which
adds its few rows to it: the same numbers (to the bit, where a backward pass has one forward) without a second [V, D],
which is 297 MiB at a vocabulary of 151,936 and D = 512.

Not on top of what is over. A lookup alone (a reward model, a critic) makes its gradient last, when all activations have
been freed; but glibc keeps freed blocks below 32 MiB for the process, and one as large as this does not fit into them.
They are given back first.
"""

import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from alignlab.kernels.plain import is_plain
from alignlab.models.backbone import Head, lm_head, unwrapped

_LARGE = 2**26  # bytes: giving memory back and getting it again takes 2 % of a step whose gradient here is 297 MiB


@contextmanager
def head_after_body(model: nn.Module) -> Iterator[Callable[[], Head]]:
    """Run the body inside; what is yielded then gives the LM head, with the weight to be read by `linear_logprobs` or
    `linear_loss` and by nothing else.

    It is that of `lm_head`, unless embeddings are tied and trained.
    """
    head, embedding = lm_head(model), unwrapped(model).get_input_embeddings()
    if not _is_plainly_tied(embedding, head) or is_plain("tied_embedding"):
        yield lambda: head
        return
    handed_on: list[Tensor] = []
    padding = embedding.padding_idx

    def look_up(ids: Int[Tensor, "*axes"]) -> Float[Tensor, "*axes D"]:
        if not torch.is_grad_enabled():
            return F.embedding(ids, embedding.weight, padding)
        rows, weight = _LookUp.apply(embedding.weight, ids, -1 if padding is None else padding)
        handed_on.append(weight)
        return rows

    embedding.forward = look_up
    try:
        yield lambda: head._replace(weight=handed_on[0]) if handed_on else head
    finally:
        del embedding.forward  # the class has its own


@contextmanager
def room_for_gradient(body: Any) -> Iterator[None]:
    """Run the body inside: before a large gradient of its lookup is made, on a CPU, freed memory is given back.

    Nothing else happens, whatever the network is; where the lookup hands its matrix on, there is no such gradient.
    """
    embedding: Any = body.get_input_embeddings() if hasattr(body, "get_input_embeddings") else None
    if not _has_large_gradient(embedding) or is_plain("room_for_gradient") or _malloc_trim() is None:
        yield
        return

    def look_out(module: nn.Module, arguments: Any, rows: Tensor) -> None:
        if rows.requires_grad:
            rows.register_hook(_give_back)

    handle = embedding.register_forward_hook(look_out)
    try:
        yield
    finally:
        handle.remove()


def _has_large_gradient(embedding: Any) -> bool:
    """Whether a gradient as large as the matrix will be made for its lookup alone."""
    if type(embedding) is not nn.Embedding or "forward" in vars(embedding) or not torch.is_grad_enabled():
        return False
    weight = embedding.weight
    return weight.requires_grad and weight.device.type == "cpu" and weight.nbytes >= _LARGE


def _give_back(gradient: Tensor) -> None:
    """Called with the gradient of the embedded tokens, when everything above them is done."""
    trim = _malloc_trim()
    assert trim is not None  # see `room_for_gradient`
    trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3); None where the C library has none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def _is_plainly_tied(embedding: Any, head: Head) -> bool:
    """Whether the lookup is nothing but rows of the head's weight, which is trained."""
    if type(embedding) is not nn.Embedding or embedding.weight is not head.weight or not head.weight.requires_grad:
        return False
    is_replaced = "forward" in vars(embedding)
    return not (is_replaced or embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse)


class _LookUp(torch.autograd.Function):
    """(weight [V, D], ids, id whose row learns nothing from its lookups, or -1) -> (rows, the weight itself)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(ids)
        ctx.vocabulary, ctx.padding = len(weight), padding
        return F.embedding(ids, weight), weight.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rows: Tensor | None, of_weight: Tensor | None) -> tuple[Tensor | None, None, None]:
        (ids,) = ctx.saved_tensors
        if of_rows is None:
            return of_weight, None, None
        add_up = torch.ops.aten.embedding_dense_backward  # torch's own sum for embeddings, deterministic on GPUs too
        if of_weight is None:
            return add_up(of_rows, ids, ctx.vocabulary, ctx.padding, False), None, None
        tokens, place = ids.unique(return_inverse=True)
        sums = add_up(of_rows, place, len(tokens), -1, False)
        sums[tokens == ctx.padding] = 0
        # the head's backward made this gradient for us alone; and as no token comes twice, the sum has one order
        return of_weight.index_add_(0, tokens, sums), None, None
