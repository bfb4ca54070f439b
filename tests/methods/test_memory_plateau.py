"""A long run does not grow: what a step takes, it gives back."""

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.losses.base import LossOutput
from alignlab.losses.sft import SFTLoss
from alignlab.methods.optimization import AdamW
from tests.methods.setting import fit, make_data, make_method

MOST_MIB = 2.0  # what caches may still take for a row that is longer than any before
MIB = 2**20


class _Mallinfo2(ctypes.Structure):
    """What glibc says of its heap; see mallinfo2(3)."""

    _fields_ = [  # arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, fordblks, keepcost
        (name, ctypes.c_size_t) for name in (*"abcd", "hblkhd", *"ef", "uordblks", *"gh")
    ]


def in_use() -> float:
    """MiB that this process has allocated and not freed. The resident set would not do: a freed heap is used again."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        pytest.skip("needs glibc 2.33 or newer")
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return (found.uordblks + found.hblkhd) / MIB


def growth(name: str, folder: Path, *, steps: int, settle: int, **settings: Any) -> float:
    """MiB by which this process has grown between step `settle` and the end of a training."""
    method: Any = make_method(name, max_steps=steps, optimizer=AdamW(schedule="constant"), **settings)
    used: list[float] = []
    finish_step = method.finish_step

    def measured(metrics: dict[str, torch.Tensor]) -> None:
        finish_step(metrics)
        used.append(in_use())

    method.finish_step = measured
    data = make_data(method.row_type, batch_size=6)
    fit(method, folder, data=data, every=steps, validate_every=steps)
    assert len(used) == steps
    return max(used[-steps // 10 :]) - max(used[:settle])


def test_500_steps_of_sft_on_rows_of_many_lengths(tmp_path: Path):
    assert growth("sft", tmp_path, steps=500, settle=100) < MOST_MIB


def test_80_iterations_of_ppo(tmp_path: Path):
    assert growth("ppo", tmp_path, steps=80, settle=25) < MOST_MIB


def test_a_step_that_keeps_one_activation_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """64 KiB a step, which is two layers of this network on a batch."""
    forward, kept = SFTLoss.forward, []

    def keeping(self: SFTLoss, *args: Any, **given: Any) -> LossOutput:
        kept.append(torch.ones(16 * 2**10))
        return forward(self, *args, **given)

    monkeypatch.setattr(SFTLoss, "forward", keeping)
    assert growth("sft", tmp_path, steps=150, settle=25) > 3 * MOST_MIB
