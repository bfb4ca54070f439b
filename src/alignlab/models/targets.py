"""Which layers a LoRA adapter is put on: the linear layers of the body, all of them or those that patterns name.

peft is content if one of several patterns matches; here each must, so that a typo never halves an adapter.
"""

import difflib
from collections.abc import Sequence

from torch import nn

from alignlab.errors import ModelError
from alignlab.models.backbone import body_prefix, unwrapped

ALL_LINEAR = "all-linear"


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Full name -> layer, for every linear layer of the network (quantised, GPT-2's Conv1D and adapted ones too)."""
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    found: dict[str, nn.Module] = {}
    for name, module in unwrapped(model).named_modules():
        if isinstance(module, LoraLayer):
            found[name] = module.get_base_layer()
        elif isinstance(module, (nn.Linear, Conv1D)) and ".lora_" not in name and not name.endswith(".base_layer"):
            found[name] = module
    return found


def choose_targets(model: nn.Module, patterns: str | Sequence[str]) -> list[str]:
    """The suffixes to hand to peft. `patterns` is "all-linear" (of the body) or a list of layer-name suffixes.

    ModelError for a pattern that matches no linear layer of the body, with the nearest name.
    """
    prefix = f"{body_prefix(model)}."
    body = [name for name in linear_layers(model) if name.startswith(prefix)]
    suffixes = sorted({name.rsplit(".", 1)[-1] for name in body})
    if patterns == ALL_LINEAR:
        return suffixes
    if isinstance(patterns, str) or not patterns:
        raise ModelError(
            f"adapter.target_modules={patterns!r}: expected {ALL_LINEAR!r} or a list of {', '.join(suffixes)}"
        )
    for pattern in patterns:
        if not any(name.endswith(f".{pattern}") for name in body):
            near = difflib.get_close_matches(pattern, suffixes, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ModelError(
                f"adapter.target_modules: {pattern} matches no linear layer of the body of "
                f"{type(unwrapped(model)).__name__}, which has {', '.join(suffixes)}{hint}"
            )
    return sorted(patterns)


def heads_of(model: nn.Module) -> list[str]:
    """Names of the trainable parts beside the body: what a reward model learns in full next to its adapter."""
    body = body_prefix(model)
    return [
        name
        for name, part in unwrapped(model).named_children()
        if name != body and any(True for _ in part.parameters())
    ]


def outside_body(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Linear layers beside the body that a target suffix would also catch: to be excluded by full name."""
    prefix = f"{body_prefix(model)}."
    return [
        name
        for name in linear_layers(model)
        if not name.startswith(prefix) and any(name == target or name.endswith(f".{target}") for target in targets)
    ]
