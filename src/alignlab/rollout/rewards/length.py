"""Rewards that count: the length of a reply."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.rows import Prompt


class LengthReward:
    """`scale` per word (or character), or with a target: minus `scale` per unit away from it."""

    def __init__(
        self, *, unit: Literal["words", "characters"] = "words", scale: float = 1.0, target: int | None = None
    ) -> None:
        if unit not in ("words", "characters"):
            raise ConfigError(f"method.reward.unit={unit}: expected words or characters")
        self.unit, self.scale, self.target = unit, scale, target

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, "B"]:
        """scale * length, or -scale * |length - target|."""
        lengths = torch.tensor([self._length(text) for text in responses], dtype=torch.float32)
        return self.scale * (lengths if self.target is None else -(lengths - self.target).abs())

    def _length(self, text: str) -> int:
        return len(text.split()) if self.unit == "words" else len(text)
