"""Adapters on a network: which are active, switched off for a while, merged for good, exported as one.

A network carries at most two: `start`, frozen, where training began on a quantised base that already had an adapter
(4-bit weights cannot be merged into without loss), and `default`, the one in training. Switching sets peft's own
flags and leaves requires_grad alone, which peft's context managers do not: they would thaw a frozen adapter.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alignlab.models.loading import seeded

TRAINED = "default"
START = "start"
_EXPORTED = "exported"


def is_adapted(model: nn.Module) -> bool:
    """Whether the network is wrapped by peft."""
    return hasattr(model, "peft_config")


def adapter_names(model: nn.Module) -> list[str]:
    """The adapters it carries, the earlier one first."""
    return [name for name in (START, TRAINED) if name in getattr(model, "peft_config", {})]


def activate(model: Any) -> None:
    """All of the network's adapters at work, only the newest `default` trainable."""
    names = adapter_names(model)
    model.base_model.set_adapter(names, inference_mode=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{TRAINED}." in name and ("lora_" in name or ".modules_to_save." in name))


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Inside, the network is the one that training started from: without `default`, with `start` where there is one."""
    layers = list(_switches(model))
    before = [(layer._disable_adapters, layer._active_adapter) for layer in layers]
    for layer in layers:
        if START in adapter_names(model):
            layer._active_adapter = [START]
        else:
            layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, (disabled, active) in zip(layers, before, strict=True):
            layer._disable_adapters, layer._active_adapter = disabled, active


def save_adapter(model: Any, folder: Path, *, base_name: str, revision: str | None) -> None:
    """Writes the network's adapters as one plain peft adapter; two are joined exactly, rank by rank.

    [B1 B2] [s1 A1; s2 A2] = s1 B1 A1 + s2 B2 A2: each scale goes into its A, and the joint one is 1.
    """
    for config in model.peft_config.values():  # peft knows no name for a base that was made in memory
        config.base_model_name_or_path, config.revision = base_name, revision
    if len(adapter_names(model)) == 1:
        model.save_pretrained(folder, selected_adapters=adapter_names(model), save_embedding_layers=False)
    else:
        _save_joined(model, folder)
    config_file = folder / "adapter_config.json"
    settings = json.loads(config_file.read_text())
    settings["target_modules"] = sorted(settings["target_modules"])  # peft keeps a set, whose order changes by process
    config_file.write_text(json.dumps(settings, indent=2) + "\n")


def _save_joined(model: Any, folder: Path) -> None:
    """The two adapters of `model` as one."""
    with seeded(0):  # peft initialises the new adapter at random before it fills it
        model.base_model.add_weighted_adapter([START, TRAINED], [1.0, 1.0], _EXPORTED, combination_type="cat")
    _fill_joined(model)
    try:
        model.save_pretrained(folder, selected_adapters=[_EXPORTED], save_embedding_layers=False)
    finally:
        model.delete_adapter(_EXPORTED)
        activate(model)
    for file in (folder / _EXPORTED).iterdir():
        file.rename(folder / file.name)
    (folder / _EXPORTED).rmdir()


def _fill_joined(model: nn.Module) -> None:
    """The joint adapter's matrices in full: peft writes them in the compute dtype of a 4-bit base, which rounds."""
    for layer in _switches(model):
        if _EXPORTED in getattr(layer, "lora_A", {}):
            down = [layer.lora_A[name].weight.detach() * layer.scaling[name] for name in (START, TRAINED)]
            up = [layer.lora_B[name].weight.detach() for name in (START, TRAINED)]
            layer.lora_A[_EXPORTED].weight = nn.Parameter(torch.cat(down, 0))
            layer.lora_B[_EXPORTED].weight = nn.Parameter(torch.cat(up, 1))


def base_state(model: Any) -> dict[str, Any]:
    """The state of the frozen network under an adapter, by its own names."""
    state = {}
    for name, value in model.get_base_model().state_dict().items():
        if ".lora_" in name or ".modules_to_save." in name:
            continue
        state[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = value
    return state


def _switches(model: nn.Module) -> Iterator[Any]:
    """Every peft layer that can be switched."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return (part for part in model.modules() if isinstance(part, (BaseTunerLayer, AuxiliaryTrainingWrapper)))
