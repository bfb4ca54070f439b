"""A trained reward model as a reward: text in, normalised score out.

It reads text through its own tokenizer and template, so policy and reward model may be of different families: the
reply is decoded up to its stop token and encoded again, as the reward model's training rows were.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.batches import IGNORE, Sequences
from alignlab.data.tokenize import TextEncoder
from alignlab.errors import ConfigError
from alignlab.models.reward_model import RewardModel
from alignlab.models.saving import load_reward_model
from alignlab.rows import Prompt


class ModelReward:
    """gain * score + bias of the reward model in a run folder. Not a module: its weights belong to no checkpoint."""

    def __init__(self, path: str, *, batch_size: int = 32, max_length: int | None = None) -> None:
        """`max_length` in tokens overrides what the reward model was trained with; loaded at the first call."""
        if batch_size < 1:
            raise ConfigError(f"method.reward.batch_size={batch_size} must be at least 1")
        self.path, self.batch_size, self.max_length = path, batch_size, max_length
        self._device = torch.device("cpu")
        self._loaded: tuple[RewardModel, TextEncoder] | None = None

    def to(self, device: torch.device | str) -> "ModelReward":
        """Where scores are computed."""
        self._device = torch.device(device)
        if self._loaded is not None:
            self._loaded[0].to(self._device)
        return self

    @property
    def reward_model(self) -> RewardModel:
        """The reward model itself."""
        return self._load()[0]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, "B"]:
        """Scores in float32, on the CPU; sequences of similar length share a batch."""
        reward_model, encoder = self._load()
        rows = [encoded.input_ids for encoded in encoder.replies(prompts, responses)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = torch.empty(len(rows), dtype=torch.float32)
        for start in range(0, len(order), self.batch_size):
            index = order[start : start + self.batch_size]
            sequences = padded([rows[i] for i in index], reward_model.tokenizer.pad_token_id, reward_model.device)
            scores[index] = reward_model.normalized(reward_model(sequences)).float().cpu()
        return scores

    def _load(self) -> tuple[RewardModel, TextEncoder]:
        if self._loaded is None:
            reward_model = load_reward_model(self.path).requires_grad_(False).to(self._device)
            self._loaded = (reward_model, text_encoder(reward_model, max_length=self.max_length))
        return self._loaded


def text_encoder(reward_model: RewardModel, *, max_length: int | None = None) -> TextEncoder:
    """The encoder of the rows that a reward model was trained on; `max_length` overrides theirs."""
    like: Any = reward_model.text_format
    return TextEncoder(
        reward_model.tokenizer,
        stop_token_ids=reward_model.stop_token_ids,
        template=like.template,
        append_eos=like.append_eos,
        add_bos=like.add_bos,
        max_length=max_length or like.max_length,
        max_prompt_length=like.max_prompt_length,
    )


def padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Sequences:
    """Token ids as a right-padded batch in which nothing is scored token by token."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(width, device=device) < lengths[:, None]
    return Sequences(ids, mask, torch.full_like(ids, IGNORE))
