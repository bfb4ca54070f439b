"""Reference log-probs of a whole preference set, computed once and kept on disk.

The file's name is a hash of all that can change a number in it: the starting weights, the token ids and labels of
the rows (so data, template, lengths and tokenizer), and the precision. A retrained SFT model in the same folder is
another file, never a stale one.
"""

import hashlib
import os
import uuid
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.models.digest import weights_digest
from alignlab.models.policy import Policy

SPLITS = ("train", "validation", "test")


class ReferenceCache:
    """Sums of log pi_ref over chosen and rejected replies, looked up by row number."""

    def __init__(self, policy: Policy, folder: Path) -> None:
        self._policy = policy
        self._folder = folder
        self._sums: dict[str, Tensor] = {}  # split -> (2, rows): chosen, rejected

    def fill(self, data: Any, *, precision: str) -> None:
        """Read the sums of all splits, computing what is not on disk (rank 0 computes, the others wait).

        Called with the starting weights, in the precision that the policy is trained in. ConfigError for a stream.
        """
        if data.stream is not None:
            raise ConfigError(
                "method.reference=cached: the source makes fresh rows at each step, none can be scored beforehand; "
                "set method.reference=copy, or adapter_off where there is an adapter"
            )
        weights = weights_digest(self._policy)
        is_writer = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
        for split in SPLITS:
            text = f"{weights}:{data.digest(split)}:{precision}:{self._policy.quantization}"
            path = self._folder / f"reference-{hashlib.sha256(text.encode()).hexdigest()[:20]}.safetensors"
            if is_writer and not path.exists():
                self._write(path, self._compute(data, split))
            if dist.is_available() and dist.is_initialized():
                dist.barrier()
            self._sums[split] = self._read(path)

    def lookup(self, split: str, rows: Tensor) -> Tensor:
        """(2, P) sums of the pairs `rows` of `split`: chosen, rejected."""
        return self._sums[split][:, rows.cpu()]

    @torch.no_grad()
    def _compute(self, data: Any, split: str) -> Tensor:
        was_training = self._policy.training
        self._policy.eval()
        parts = []
        for batch in data.batches(split):
            sequences = type(batch.sequences)(*(x.to(self._policy.device) for x in batch.sequences))
            parts.append(torch.stack(self._policy(sequences).logprobs.sum(-1).cpu().chunk(2)))
        self._policy.train(was_training)
        return torch.cat(parts, dim=1) if parts else torch.zeros(2, 0)

    @staticmethod
    def _write(path: Path, sums: Tensor) -> None:
        from safetensors.torch import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}")  # jobs of a sweep may meet here
        save_file({"sums": sums.contiguous()}, temporary)
        temporary.replace(path)

    @staticmethod
    def _read(path: Path) -> Tensor:
        from safetensors.torch import load_file

        return load_file(path)["sums"]
