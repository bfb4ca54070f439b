"""Packed attention on GPUs: flex_attention under a block mask that is made once per batch.

Imported only where a batch on such a device asks for it: the compiler behind flex_attention is slow to import. Its
backward exists on GPUs only (torch 2.13), so that on a CPU this file serves the tests of its masks.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from alignlab.models.packing.pieces import Piece

BLOCK = 128
"""Tokens per side of a block of the mask; a packed row is filled up to a multiple of it."""


def reach_of(pieces: Sequence[Piece]) -> Int[Tensor, "3 N"]:
    """Per token: where its piece begins, where its prefix begins, and where its prefix ends (both 0: it has none)."""
    starts, columns, begin = [], [], 0
    for piece in pieces:
        starts.append(begin)
        prefix = starts[piece.source] if piece.prefix else 0
        columns.append(torch.tensor([[begin], [prefix], [prefix + piece.prefix]]).expand(3, piece.length))
        begin += piece.length
    return torch.cat(columns, dim=1)


def mask_rule(reach: Int[Tensor, "3 N"]) -> Any:
    """flex_attention's mask_mod: whether query token q attends to key token k."""
    own, prefix_start, prefix_end = reach.contiguous()

    def mask_mod(b: Any, h: Any, q: Any, k: Any) -> Any:
        in_own = (k >= own[q]) & (k <= q)
        return in_own | ((k >= prefix_start[q]) & (k < prefix_end[q]))

    return mask_mod


def blocks_of(reach: Int[Tensor, "3 N"]) -> tuple[Bool[Tensor, "Q K"], Bool[Tensor, "Q K"]]:
    """Which blocks of the mask have any True entry, and which have nothing else.

    Found from intervals, token against block: [N, N / 128] instead of the dense [N, N].
    """
    own, prefix_start, prefix_end = reach.unsqueeze(-1)  # each (N, 1)
    token = torch.arange(reach.shape[1], device=reach.device)[:, None]
    first = torch.arange(0, reach.shape[1], BLOCK, device=reach.device)
    last = first + BLOCK - 1
    touched = ((last >= own) & (first <= token)) | ((last >= prefix_start) & (first < prefix_end))
    filled = ((first >= own) & (last <= token)) | ((first >= prefix_start) & (last < prefix_end))
    by_block = (len(first), BLOCK, len(first))
    return touched.view(by_block).any(1), filled.view(by_block).all(1)


def block_mask_of(pieces: Sequence[Piece], device: torch.device) -> BlockMask:
    """The block mask of a packed row whose length is a multiple of BLOCK."""
    reach = reach_of(pieces).to(device)
    assert reach.shape[1] % BLOCK == 0, f"{reach.shape[1]} tokens are no multiple of {BLOCK}"
    touched, filled = blocks_of(reach)
    length = (reach.shape[1], reach.shape[1])
    return BlockMask.from_kv_blocks(
        *_listed(touched & ~filled), *_listed(filled), BLOCK_SIZE=BLOCK, mask_mod=mask_rule(reach), seq_lengths=length
    )


def flex(
    query: Float[Tensor, "1 H N D"],
    key: Float[Tensor, "1 G N D"],
    value: Float[Tensor, "1 G N E"],
    block_mask: BlockMask,
    scaling: float | None,
) -> Float[Tensor, "1 N H E"]:
    """Attention under the block mask; G key heads serve H query heads in groups."""
    kernel = compiled() if query.is_cuda else flex_attention
    grouped = query.shape[1] != key.shape[1]
    output = kernel(query, key, value, block_mask=block_mask, scale=scaling, enable_gqa=grouped)
    return output.transpose(1, 2).contiguous()


@cache
def compiled() -> Any:
    """flex_attention, compiled once per process; lengths differ from batch to batch, so they stay symbols."""
    return torch.compile(flex_attention, dynamic=True)


def _listed(blocks: Bool[Tensor, "Q K"]) -> tuple[Int[Tensor, "1 1 Q"], Int[Tensor, "1 1 Q K"]]:
    """Per row of blocks, how many are True and their columns, those first."""
    columns = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], columns.int()[None, None]
