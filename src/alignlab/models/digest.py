"""Fingerprints of weights: two networks with the same fingerprint compute the same thing."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from alignlab.errors import ModelError


def weights_digest(module: nn.Module) -> str:
    """sha256 over the names, dtypes, shapes and bytes of all parameters and saved buffers, in the order of names."""
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    digest = hashlib.sha256()
    for name in sorted(state):
        _add(digest, name, state[name])
    return digest.hexdigest()


def folder_digest(folder: Path) -> str:
    """sha256 over the tensors of a folder's safetensors files; the same however they are sharded.

    ModelError where the folder has none.
    """
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no *.safetensors file; save the weights as safetensors")
    places: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            places |= dict.fromkeys(tensors.keys(), file)
    digest = hashlib.sha256()
    for name in sorted(places):
        with safe_open(places[name], framework="pt") as tensors:
            _add(digest, name, tensors.get_tensor(name))
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", name: str, value: Tensor) -> None:
    """Feeds one named tensor."""
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
    flat = value.detach().cpu().contiguous().flatten()
    if flat.numel():
        digest.update(flat.view(torch.uint8).numpy().data)
