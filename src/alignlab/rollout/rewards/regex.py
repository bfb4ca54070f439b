"""Rewards by pattern: how often, or whether, a regular expression is found in a reply."""

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.rows import Prompt


class RegexReward:
    """`scale` for each match of `pattern`, at most `max_matches` of them."""

    def __init__(
        self, pattern: str, *, scale: float = 1.0, max_matches: int | None = 1, ignore_case: bool = False
    ) -> None:
        """`max_matches=None` counts all. ConfigError for a pattern that is not a regular expression."""
        try:
            self._pattern = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
        except re.error as error:
            raise ConfigError(f"method.reward.pattern={pattern!r}: not a regular expression: {error}") from error
        if max_matches is not None and max_matches < 1:
            raise ConfigError(f"method.reward.max_matches={max_matches} must be at least 1, or null for all")
        self.scale, self.max_matches = scale, max_matches

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, "B"]:
        """scale * number of matches."""
        return self.scale * torch.tensor([self._count(text) for text in responses], dtype=torch.float32)

    def _count(self, text: str) -> int:
        found = sum(1 for _ in self._pattern.finditer(text))
        return found if self.max_matches is None else min(found, self.max_matches)
