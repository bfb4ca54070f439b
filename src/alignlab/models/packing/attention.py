"""Attention over rows that lie end to end, as one more attention implementation of transformers: `NAME`.

A packed batch is one row of tokens cut into pieces (`pieces.Piece`). A token attends to its piece up to itself and to
its piece's prefix, to nothing else.

`NAME` is transformers' own "sdpa" for every call that carries a mask or none. A packed batch announces its pieces for
the time of one forward (`running`); the mask function then returns them in place of a mask, and transformers hands
them to every layer, so that gradient checkpointing has them when it runs a layer again during backward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alignlab.errors import ModelError
from alignlab.models.packing.pieces import Piece

NAME = "alignlab_sdpa"
"""The implementation's name in transformers' registers (never saved: transformers leaves it out of config.json)."""

_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cache")  # what some layers hand on and `attend` does not know


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """The pieces of one packed row and what its layers need of them, made once per batch."""

    pieces: tuple[Piece, ...]
    masks: tuple[Tensor | None, ...]  # per piece: (length, prefix + length), True where it attends; None: causal
    block_mask: Any = None  # for flex_attention, on devices that use it

    @property
    def num_tokens(self) -> int:
        """N."""
        return sum(piece.length for piece in self.pieces)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, its prefix included."""
        return max(piece.prefix + piece.length for piece in self.pieces)


class _Run(NamedTuple):
    """A forward pass over a packed batch, as the mask function sees it."""

    segments: Segments
    windows: list[int]


_RUN: ContextVar[_Run | None] = ContextVar("packed_run", default=None)


def row_multiple(device: torch.device) -> int:
    """What the length of a packed row must be a multiple of."""
    if device.type != "cuda":
        return 1
    from alignlab.models.packing.flex import BLOCK

    return BLOCK


def make_segments(pieces: tuple[Piece, ...], device: torch.device) -> Segments:
    """The pieces with their masks on `device`."""
    masks = tuple(_continuation_mask(piece, device) if piece.prefix else None for piece in pieces)
    if device.type != "cuda":
        return Segments(pieces, masks)
    from alignlab.models.packing.flex import block_mask_of

    return Segments(pieces, masks, block_mask_of(pieces, device))


@contextmanager
def running(segments: Segments, windows: list[int] | None = None) -> Iterator[None]:
    """Inside, a forward of one body over one packed row; only a body whose attention is `NAME` takes notice.

    `windows` gathers the spans of the layers that attend to so many tokens only.
    """
    token = _RUN.set(_Run(segments, [] if windows is None else windows))
    try:
        yield
    finally:
        _RUN.reset(token)


def make_mask(*args: Any, **kwargs: Any) -> Any:
    """Transformers' mask function for `NAME`: the running batch's pieces, else what "sdpa" gets."""
    run = _RUN.get()
    if run is None:
        return sdpa_mask(*args, **kwargs)
    expected = (1, run.segments.num_tokens, run.segments.num_tokens)
    if tuple(kwargs.get(name) for name in ("batch_size", "q_length", "kv_length")) != expected:
        raise ModelError(f"a packed batch of {expected[1]} tokens reached a network that reads something else")
    if kwargs.get("use_vmap"):
        raise ModelError("this network changes its attention mask by a rule of its own, which packing does not know")
    if (window := kwargs.get("local_size")) is not None:
        run.windows.append(window)
    return run.segments


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention function for `NAME`: `attend` for a packed batch, else "sdpa" itself."""
    if not isinstance(attention_mask, Segments):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
        )
    if is_causal is False or not getattr(module, "is_causal", True):
        raise ModelError(f"{type(module).__name__} also looks ahead: its rows cannot be packed")
    if unknown := [name for name in _UNSUPPORTED if kwargs.get(name) is not None]:
        raise ModelError(f"{type(module).__name__} asks attention for {', '.join(unknown)}: its rows cannot be packed")
    if attention_mask.block_mask is not None and dropout == 0.0:  # flex_attention has no dropout
        from alignlab.models.packing.flex import flex

        return flex(query, key, value, attention_mask.block_mask, scaling), None
    return attend(query, key, value, attention_mask, dropout=dropout, scaling=scaling), None


def attend(
    query: Float[Tensor, "1 H N D"],
    key: Float[Tensor, "1 G N D"],
    value: Float[Tensor, "1 G N E"],
    segments: Segments,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> Float[Tensor, "1 N H E"]:
    """Attention piece by piece; G key heads serve H query heads in groups."""
    lengths = [piece.length for piece in segments.pieces]
    # split, not slices: its backward writes all gradients in one pass, where each slice would fill a tensor of size N
    queries, keys, values = (part.split(lengths, dim=2) for part in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for i, (piece, mask) in enumerate(zip(segments.pieces, segments.masks, strict=True)):
        k, v = keys[i], values[i]
        if mask is not None:
            k = torch.cat((keys[piece.source][:, :, : piece.prefix], k), dim=2)  # (1, G, prefix + length, D)
            v = torch.cat((values[piece.source][:, :, : piece.prefix], v), dim=2)
        output = scaled_dot_product_attention(
            queries[i], k, v, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
        outputs.append(output.transpose(1, 2))  # (1, length, H, E)
    return torch.cat(outputs, dim=1)


def _continuation_mask(piece: Piece, device: torch.device) -> Tensor:
    """[length, prefix + length]: the whole prefix, then causal."""
    shape = (piece.length, piece.prefix + piece.length)
    return torch.ones(shape, dtype=torch.bool, device=device).tril_(piece.prefix)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, make_mask)
