"""How many weights a method has and how many of them it trains: adapters and scalar heads counted apart.

"LoRA trains 294,912 parameters" is a statement about adapters; the value head that PPO adds and the score head of a
reward model are trained beside them and are easily counted in or forgotten.
"""

from typing import Any

import torch
from torch import nn

from alignlab.methods.base import Method

REWARD_HEADS = {"score", "classifier", "pre_classifier"}
"""Modules beside the body of transformers' sequence classifiers, decoders' and encoders'."""


def counted(method: Method) -> dict[str, float]:
    """How many weights are there and how many are trained, adapters and heads apart.

    parameters/total: of all networks that are trained, frozen weights included, each counted once (4-bit ones as the
    numbers that they stand for); parameters/trained = parameters/adapter (low-rank updates) + parameters/heads (scalar
    heads: of values, of rewards) + parameters/body (everything else).
    """
    trained = {id(p) for p in method.trained_parameters()}
    sizes = {"total": 0, "trained": 0, "adapter": 0, "heads": 0, "body": 0}
    seen: set[int] = set()
    for name, parameter in _named(method):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        sizes["total"] += _size(parameter)
        if id(parameter) in trained:
            sizes["trained"] += parameter.numel()
            sizes[_kind(name, is_reward_model=method.produces == "reward_model")] += parameter.numel()
    return {f"parameters/{name}": float(size) for name, size in sizes.items()}


def _named(method: Method) -> list[tuple[str, nn.Parameter]]:
    return [pair for module in method.trained_modules() for pair in module.named_parameters()]


def _kind(name: str, *, is_reward_model: bool) -> str:
    parts = name.split(".")
    if any(part.startswith("lora_") for part in parts):
        return "adapter"
    is_head = "value_head" in parts or (is_reward_model and bool(REWARD_HEADS & set(parts)))
    return "heads" if is_head else "body"


def _size(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)  # bitsandbytes packs two 4-bit numbers into a byte
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()
