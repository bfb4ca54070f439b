"""What is different between the networks that `direct` decodes: names of submodules, positions, rotations, windows.

Every product and norm is a call of the network's own submodule, so that adapters (at work, off or merged) and 4-bit
layers do what they do in training. Dropout is left out: decoding is done in eval mode.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and sines by position; the first half of the sines is negated, as `rotate` needs them."""

    cosine: Float[Tensor, "P E"]
    sine: Float[Tensor, "P E"]


class Projected(NamedTuple):
    """What a block's attention reads, for N tokens, H query heads and K key heads of width E."""

    queries: Float[Tensor, "N H E"]
    keys: Float[Tensor, "N K E"]
    values: Float[Tensor, "N K E"]


class Layer(Protocol):
    """One block, before its attention and after it."""

    scale: float  # of query @ key
    window: int | None  # how many columns a query sees, its own included; None: all

    def project(self, hidden: Float[Tensor, "N D"], rotation: Rotation | None) -> Projected:
        """Queries, keys and values, rotated where the family rotates (`rotation`: that of each of the N tokens)."""
        ...

    def finish(self, hidden: Float[Tensor, "N D"], attended: Float[Tensor, "N HE"]) -> Float[Tensor, "N D"]:
        """The hidden states that the next block reads."""
        ...


class Family(Protocol):
    """A network without its head, as a list of layers."""

    layers: Sequence[Layer]

    def embed(self, ids: Int[Tensor, "N"], positions: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
        """What the first block reads."""
        ...

    def normalize(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """What the LM head reads."""
        ...

    def rotation(self, num_positions: int) -> Rotation | None:
        """That of every position below `num_positions`; None where positions are embedded."""
        ...


class Embedded:
    """A body whose positions are embedded: GPT-2, GPT-Neo."""

    def __init__(self, body: Any, layers: Sequence[Layer]) -> None:
        self.body, self.layers = body, layers

    def embed(self, ids: Int[Tensor, "N"], positions: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
        """See `Family`."""
        return self.body.wte(ids) + self.body.wpe(positions)

    def normalize(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """See `Family`."""
        return self.body.ln_f(hidden)

    def rotation(self, num_positions: int) -> Rotation | None:
        """None."""
        return None


class Rotated:
    """A body that rotates queries and keys: Llama, Qwen2."""

    def __init__(self, body: Any, layers: Sequence[Layer]) -> None:
        self.body, self.layers = body, layers

    def embed(self, ids: Int[Tensor, "N"], positions: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
        """See `Family`."""
        return self.body.embed_tokens(ids)

    def normalize(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """See `Family`."""
        return self.body.norm(hidden)

    def rotation(self, num_positions: int) -> Rotation | None:
        """The angles of the network's own rotary module (whatever its scaling), in the dtype of its hidden states."""
        weight = self.body.embed_tokens.weight
        cosine, sine = self.body.rotary_emb(weight, torch.arange(num_positions, device=weight.device))
        low, high = sine.chunk(2, dim=-1)
        return Rotation(cosine, torch.cat([-low, high], dim=-1))


class GPT2Layer:
    """A GPT-2 block: one matrix for queries, keys and values."""

    window: int | None = None

    def __init__(self, block: Any) -> None:
        self.block = block
        self.scale: float = block.attn.scaling
        self.head_size: int = block.attn.head_dim

    def project(self, hidden: Float[Tensor, "N D"], rotation: Rotation | None) -> Projected:
        """See `Layer`."""
        joint = self.block.attn.c_attn(self.block.ln_1(hidden))  # (N, 3D)
        return Projected(*joint.view(len(hidden), 3, -1, self.head_size).unbind(1))

    def finish(self, hidden: Float[Tensor, "N D"], attended: Float[Tensor, "N HE"]) -> Float[Tensor, "N D"]:
        """See `Layer`."""
        hidden = hidden + self.block.attn.c_proj(attended)
        return hidden + self.block.mlp(self.block.ln_2(hidden))


class GPTNeoLayer:
    """A GPT-Neo block: unscaled attention, over the last `window_size` columns in its local layers."""

    scale = 1.0

    def __init__(self, block: Any) -> None:
        self.block, self.attention = block, block.attn.attention
        self.window: int | None = (
            self.attention.config.window_size if self.attention.attention_type == "local" else None
        )

    def project(self, hidden: Float[Tensor, "N D"], rotation: Rotation | None) -> Projected:
        """See `Layer`."""
        hidden, size = self.block.ln_1(hidden), self.attention.head_dim
        return Projected(
            self.attention.q_proj(hidden).view(len(hidden), -1, size),
            self.attention.k_proj(hidden).view(len(hidden), -1, size),
            self.attention.v_proj(hidden).view(len(hidden), -1, size),
        )

    def finish(self, hidden: Float[Tensor, "N D"], attended: Float[Tensor, "N HE"]) -> Float[Tensor, "N D"]:
        """See `Layer`."""
        hidden = hidden + self.attention.out_proj(attended)
        return hidden + self.block.mlp(self.block.ln_2(hidden))


class RotatedLayer:
    """A Llama or Qwen2 block: rotated queries and keys, several query heads to a key head."""

    window: int | None = None

    def __init__(self, block: Any) -> None:
        self.block, self.attention = block, block.self_attn
        self.scale: float = self.attention.scaling

    def project(self, hidden: Float[Tensor, "N D"], rotation: Rotation | None) -> Projected:
        """See `Layer`."""
        assert rotation is not None
        hidden, size = self.block.input_layernorm(hidden), self.attention.head_dim
        return Projected(
            rotate(self.attention.q_proj(hidden).view(len(hidden), -1, size), rotation),
            rotate(self.attention.k_proj(hidden).view(len(hidden), -1, size), rotation),
            self.attention.v_proj(hidden).view(len(hidden), -1, size),
        )

    def finish(self, hidden: Float[Tensor, "N D"], attended: Float[Tensor, "N HE"]) -> Float[Tensor, "N D"]:
        """See `Layer`."""
        hidden = hidden + self.attention.o_proj(attended)
        return hidden + self.block.mlp(self.block.post_attention_layernorm(hidden))


def rotate(x: Float[Tensor, "N H E"], rotation: Rotation) -> Float[Tensor, "N H E"]:
    """x cos + (-x2, x1) sin, x1 and x2 the halves of each head; the minus is already in the sines."""
    cosine, sine = rotation.cosine[:, None], rotation.sine[:, None]
    return x * cosine + x.roll(x.shape[-1] // 2, -1) * sine
