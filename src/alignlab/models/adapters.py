"""Adapters: what of a network is trained. `NoAdapter` trains all of it, `LoRA` low-rank updates beside frozen weights
(Hu et al. 2021), `QLoRA` the same beside weights frozen in 4 bits (Dettmers et al. 2023).

`attach` is given a network and returns it ready for training. B of every pair starts at zero, so that at the first step
the adapted network *is* the network it started from; A comes from the seed and never from the global RNG.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from alignlab.errors import ConfigError
from alignlab.models.adapter_state import TRAINED, activate, is_adapted
from alignlab.models.loading import Kind, seeded
from alignlab.models.targets import ALL_LINEAR, choose_targets, heads_of, linear_layers, outside_body


class NoAdapter:
    """All weights are trained."""

    def quantization(self) -> dict[str, Any] | None:
        """Nothing is quantised."""
        return None

    def attach(self, model: Any, kind: Kind, *, seed: int) -> Any:
        """The network as it is, every weight trainable."""
        model.requires_grad_(True)
        return model


class LoRA:
    """Low-rank updates W + (alpha / rank) B A on linear layers of the body; nothing else is trained.

    A reward model's head, which is new, is trained in full beside it and saved with the adapter. Biases stay frozen:
    they would change the network with the adapter off, which is the reference.
    """

    def __init__(
        self, rank: int, *, alpha: float, dropout: float = 0.0, target_modules: str | Sequence[str] | None = None
    ) -> None:
        """`target_modules`: None or "all-linear" for every linear layer of the body, or a list of name suffixes."""
        if rank < 1:
            raise ConfigError(f"adapter.rank={rank} must be at least 1")
        if not 0 <= dropout < 1:
            raise ConfigError(f"adapter.dropout={dropout} must be in [0, 1)")
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.target_modules = target_modules or ALL_LINEAR

    def quantization(self) -> dict[str, Any] | None:
        """Nothing is quantised."""
        return None

    def attach(self, model: Any, kind: Kind, *, seed: int) -> Any:
        """The network inside a peft wrapper with a fresh trainable adapter, on top of an earlier frozen one if any."""
        from peft import get_peft_model

        config = self._config(model, kind)
        with seeded(seed):
            # cast: on a 4-bit base peft makes an adapter in its compute dtype, and what is trained must be float32
            if is_adapted(model):
                model.add_adapter(TRAINED, config, autocast_adapter_dtype=True)
            else:
                model = get_peft_model(model, config, adapter_name=TRAINED, autocast_adapter_dtype=True)
        activate(model)
        return model

    def _config(self, model: Any, kind: Kind) -> Any:
        """The peft config."""
        from peft import LoraConfig, TaskType
        from transformers.pytorch_utils import Conv1D

        targets = choose_targets(model, self.target_modules)
        layers = linear_layers(model)
        aimed = [layer for name, layer in layers.items() if any(name.endswith(f".{target}") for target in targets)]
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=self.dropout,
            target_modules=targets,
            exclude_modules=outside_body(model, targets) or None,
            modules_to_save=heads_of(model) if kind == "classifier" else None,
            bias="none",
            fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in aimed),  # GPT-2 stores its matrices transposed
            task_type=TaskType.CAUSAL_LM if kind == "causal" else TaskType.SEQ_CLS,
        )


class QLoRA(LoRA):
    """LoRA beside a base that is frozen in 4-bit NF4 with double quantisation; products run in `compute_dtype`."""

    def __init__(
        self,
        rank: int,
        *,
        alpha: float,
        dropout: float = 0.0,
        target_modules: str | Sequence[str] | None = None,
        compute_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    ) -> None:
        super().__init__(rank, alpha=alpha, dropout=dropout, target_modules=target_modules)
        if compute_dtype not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"adapter.compute_dtype={compute_dtype}: expected float32, bfloat16 or float16")
        self.compute_dtype = compute_dtype

    def quantization(self) -> dict[str, Any] | None:
        """How the base is quantised, in plain words that an adapter folder can carry."""
        return {"type": "nf4", "double": True, "compute_dtype": self.compute_dtype}


def quantization_config(settings: dict[str, Any], *, skip: Sequence[str]) -> Any:
    """transformers' form of `QLoRA.quantization()`; modules named in `skip` stay in float32 (heads)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings["type"],
        bnb_4bit_use_double_quant=settings["double"],
        bnb_4bit_compute_dtype=getattr(torch, settings["compute_dtype"]),
        llm_int8_skip_modules=list(skip),
    )
