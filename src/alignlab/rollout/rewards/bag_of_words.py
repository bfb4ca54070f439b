"""Sentiment by a linear bag of words: logistic regression's score of the words and word pairs of a reply."""

import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.errors import ConfigError, DataError
from alignlab.rows import Prompt

_WORD = re.compile(r"[a-z']+")


class BagOfWordsReward:
    """scale * (bias + sum of the weights of the distinct known features / sqrt(their number)).

    Features are the lower-cased words of the text and its neighbouring pairs of words, joined by a space; "<br />" is
    a space. The division makes long and short texts comparable: a feature vector has length 1. A text without a known
    feature scores scale * bias.

    The file is JSON: {"bias": number, "weights": {feature: number}}.
    """

    def __init__(self, path: str, *, scale: float = 1.0, with_prompt: bool = False) -> None:
        """`with_prompt` reads prompt and reply as one text (plain prompts only). ConfigError if there is no such file,
        DataError if it is not of that form."""
        self.path, self.scale, self.with_prompt = path, scale, with_prompt
        self._bias, self._weights = read_weights(Path(path).expanduser())

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, "B"]:
        """One score per reply."""
        texts = [
            _joined(prompt, response) if self.with_prompt else response
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return self.scale * torch.tensor([self._score(text) for text in texts], dtype=torch.float32)

    def _score(self, text: str) -> float:
        words = _WORD.findall(text.lower().replace("<br />", " "))
        known = {*words, *map(" ".join, pairwise(words))} & self._weights.keys()
        return self._bias + math.fsum(self._weights[feature] for feature in known) / math.sqrt(max(1, len(known)))


def _joined(prompt: Prompt, response: str) -> str:
    if not isinstance(prompt, str):
        raise ConfigError("reward with_prompt=true reads plain prompts, but these are messages; set it to false")
    return prompt + response


def read_weights(path: Path) -> tuple[float, dict[str, float]]:
    """(bias, weight by feature)."""
    if not path.is_file():
        raise ConfigError(f"reward path={path}: no such file; expected JSON with bias and weights")
    expected = "expected {'bias': number, 'weights': {feature: number}}"
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: broken JSON ({error}); {expected}") from None
    if not isinstance(content, dict) or not isinstance(content.get("weights"), dict):
        raise DataError(f"{path}: {expected}")
    for feature, weight in (("bias", content.get("bias")), *content["weights"].items()):
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise DataError(f"{path}: the weight of {feature!r} is {weight!r}; {expected}")
    return float(content["bias"]), {feature: float(weight) for feature, weight in content["weights"].items()}
