"""Any causal network, through its transformers forward and a cache with the layer kinds of that network."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from alignlab.models.backbone import positions_of, takes_positions


class GeneralNetwork:
    """A `DecodingNetwork` that knows nothing of the architecture (sliding windows, ALiBi, mixtures, ...)."""

    def __init__(self, config: Any, body: nn.Module, prompt_mask: Bool[Tensor, "B T"], *, max_tokens: int) -> None:
        from transformers import DynamicCache

        num_rows, self.width = prompt_mask.shape
        self.body: Any = body
        self.told_positions = takes_positions(body)
        self.cache: Any = DynamicCache(config=config)
        self.attention = torch.ones(num_rows, self.width + max_tokens, dtype=torch.int64, device=prompt_mask.device)
        self.attention[:, : self.width] = prompt_mask
        self.positions = positions_of(prompt_mask)

    def read_prompts(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        """See `DecodingNetwork`."""
        return self._read(input_ids)

    def read_tokens(self, tokens: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """See `DecodingNetwork`."""
        self.width += 1
        self.positions = self.positions[:, -1:] + 1
        return self._read(tokens[:, None])

    def keep(self, rows: Int[Tensor, "K"]) -> None:
        """See `DecodingNetwork`."""
        self.cache.batch_select_indices(rows)
        self.attention, self.positions = self.attention[rows], self.positions[rows]

    def _read(self, input_ids: Int[Tensor, "B S"]) -> Float[Tensor, "B D"]:
        """The next S columns."""
        extra = {"position_ids": self.positions} if self.told_positions else {}
        out = self.body(
            input_ids=input_ids,
            attention_mask=self.attention[:, : self.width],
            past_key_values=self.cache,
            use_cache=True,
            **extra,
        )
        return out.last_hidden_state[:, -1]
