"""Sentiment by a word list: the sum of the valences of a reply's words."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.errors import ConfigError, DataError
from alignlab.rows import Prompt

_WORD = re.compile(r"[a-z']+")


class LexiconReward:
    """scale * (sum of valences over the lower-cased words of the reply); words that are not listed count 0.

    The file has one entry per line, token, tab, valence (further columns are ignored): the format of VADER (Hutto and
    Gilbert 2014).
    """

    def __init__(self, path: str, *, scale: float = 1.0) -> None:
        """ConfigError if there is no such file, DataError with its line for an entry that is not of that format."""
        self.path, self.scale = path, scale
        self._valence = read_lexicon(Path(path).expanduser())

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, "B"]:
        """One sum per reply."""
        sums = [sum(self._valence.get(word, 0.0) for word in _WORD.findall(text.lower())) for text in responses]
        return self.scale * torch.tensor(sums, dtype=torch.float32)


def read_lexicon(path: Path) -> dict[str, float]:
    """Token -> valence."""
    if not path.is_file():
        raise ConfigError(f"method.reward.path={path}: no such file; expected a lexicon such as VADER's")
    valence: dict[str, float] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, value = line.split("\t")[:2]
            valence[token] = float(value)
        except ValueError as error:
            raise DataError(f"{path}:{number}: expected token, tab, valence, got {line[:60]!r}") from error
    return valence
