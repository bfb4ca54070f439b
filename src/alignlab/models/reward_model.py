"""The reward model: one score per sequence, from a decoder or an encoder backbone.

A decoder is scored at its last real token, found from the mask, never by comparing ids with the pad token (which is
often the end token). An encoder pools by its own first token and is always given its tokens from column 0.
`gain` and `bias` bring scores to a known scale (mean 0, standard deviation 1 on calibration replies; "N Implementation
Details", RM 3) and are stored with the weights.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignlab.batches import Sequences
from alignlab.errors import ModelError
from alignlab.models.adapter_state import is_adapted
from alignlab.models.backbone import device_of, unwrapped
from alignlab.models.origins import REWARD_FILE, Origin
from alignlab.models.packing import Layout, hidden_at


@dataclass(frozen=True, slots=True)
class TextFormat:
    """How prompt and reply became the tokens that a reward model was trained on: settings of `data`."""

    template: str = "auto"
    append_eos: bool = True
    add_bos: str | bool = "auto"
    stop_token_ids: tuple[int, ...] = ()  # what may close a text; the first, or the tokenizer's own end token, does
    max_length: int | None = None  # tokens
    max_prompt_length: int | None = None


class RewardModel(nn.Module):
    """A one-label sequence classifier with its tokenizer, its scale and the text format it expects."""

    gain: Tensor
    bias: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        tokenizer: Any,
        origin: Origin | None = None,
        quantization: dict[str, Any] | None = None,
        text_format: TextFormat | None = None,
    ) -> None:
        """`origin`: where the frozen weights under an adapter can be had again (None: saved with it)."""
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.origin = origin
        self.quantization = quantization
        self.text_format = text_format or TextFormat()
        self.layout: Layout = "auto"  # of a decoder's rows in the network; encoders are always padded
        self.register_buffer("gain", torch.ones((), dtype=torch.float32))
        self.register_buffer("bias", torch.zeros((), dtype=torch.float32))

    def forward(self, sequences: Sequences) -> Float[Tensor, "B"]:
        """Raw scores in float32; padding on either side changes nothing."""
        if not self.is_decoder:
            tidy = left_aligned(sequences)
            mask = tidy.attention_mask.long()
            with head_in_float32(self.model):
                return self.model(input_ids=tidy.input_ids, attention_mask=mask).logits[:, 0].float()
        columns = torch.arange(sequences.input_ids.shape[1], device=sequences.input_ids.device)
        last = columns == last_real_token(sequences)[:, None]  # (B, T), one per row
        return self._score(hidden_at(self.model, sequences, last, layout=self.layout))

    def token_values(self, sequences: Sequences) -> Float[Tensor, "B T"]:
        """The score that each prefix would get (for a critic), 0 at padding; decoders only."""
        if not self.is_decoder:
            raise ModelError(f"{type(unwrapped(self.model)).__name__} is an encoder: it has no score for a prefix")
        mask = sequences.attention_mask
        values = self._score(hidden_at(self.model, sequences, mask, layout=self.layout))
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    def normalized(self, scores: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """gain * scores + bias."""
        return self.gain * scores + self.bias

    @torch.no_grad()
    def normalize(self, scores: Float[Tensor, "N"]) -> None:
        """Sets gain and bias so that these raw scores come out with mean 0 and (unbiased) standard deviation 1."""
        if len(scores) < 2 or not (std := scores.double().std().item()) > 0:
            raise ModelError(f"a reward scale needs at least two different scores, got {len(scores)} without spread")
        self.gain.fill_(1 / std)
        self.bias.fill_(-scores.double().mean().item() / std)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """What may close a text in its training rows."""
        return self.text_format.stop_token_ids

    @property
    def is_decoder(self) -> bool:
        """Whether the backbone reads from left to right, and the score stands at the last token."""
        return hasattr(unwrapped(self.model), "score")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return device_of(self.model)

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter (and the head) is trained rather than all weights."""
        return is_adapted(self.model)

    def _score(self, hidden: Float[Tensor, "*axes D"]) -> Float[Tensor, "*axes"]:
        """The head in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return unwrapped(self.model).score(hidden.float()).squeeze(-1)


@contextmanager
def head_in_float32(model: nn.Module) -> Iterator[None]:
    """Inside, one-output linear layers compute in float32, also under autocast.

    A score near 2 in bfloat16 moves in steps of 0.016: margins would be coarse and pairs tie.
    """

    def again(head: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(head, nn.Linear)
        bias = None if head.bias is None else head.bias.float()
        with torch.autocast(output.device.type, enabled=False):
            return nn.functional.linear(inputs[0].float(), head.weight.float(), bias)

    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1]
    handles = [head.register_forward_hook(again) for head in heads]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def last_real_token(sequences: Sequences) -> Tensor:
    """[B]: the column of each row's last real token."""
    columns = torch.arange(sequences.input_ids.shape[1], device=sequences.input_ids.device)
    return (columns * sequences.attention_mask).argmax(-1)


def left_aligned(sequences: Sequences) -> Sequences:
    """The same rows with their real tokens from column 0 on and all padding on the right."""
    order = sequences.attention_mask.long().argsort(dim=1, descending=True, stable=True)
    return Sequences(*(part.gather(1, order) for part in sequences))


def write_notes(reward_model: RewardModel, folder: Any) -> None:
    """Writes scale and text format beside the weights."""
    notes = {"gain": reward_model.gain.item(), "bias": reward_model.bias.item(), **asdict(reward_model.text_format)}
    (folder / REWARD_FILE).write_text(json.dumps(notes, indent=2) + "\n")


def read_notes(reward_model: RewardModel, origin: Origin) -> None:
    """Takes scale and text format from the folder of a trained reward model; else changes nothing."""
    if not origin.is_folder or not (file := origin.folder() / REWARD_FILE).exists():
        return
    notes = json.loads(file.read_text())
    reward_model.gain.fill_(notes.pop("gain"))
    reward_model.bias.fill_(notes.pop("bias"))
    notes["stop_token_ids"] = tuple(notes["stop_token_ids"])
    reward_model.text_format = TextFormat(**notes)
