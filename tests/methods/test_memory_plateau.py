"""A long run does not grow: what a step takes, it gives back."""

from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.losses.base import LossOutput
from alignlab.losses.sft import SFTLoss
from alignlab.methods.optimization import AdamW
from tests.methods.setting import fit, make_data, make_method

psutil = pytest.importorskip("psutil")

MOST_MIB = 4.0  # what the allocator may still take for a row that is longer than any before
MIB = 2**20


def growth(name: str, folder: Path, *, steps: int, settle: int, **settings: Any) -> float:
    """MiB by which this process has grown between step `settle` and the end of a training."""
    method: Any = make_method(name, max_steps=steps, optimizer=AdamW(schedule="constant"), **settings)
    resident: list[float] = []
    finish_step = method.finish_step

    def measured(metrics: dict[str, torch.Tensor]) -> None:
        finish_step(metrics)
        resident.append(psutil.Process().memory_info().rss / MIB)

    method.finish_step = measured
    data = make_data(method.row_type, batch_size=6)
    fit(method, folder, data=data, every=steps, validate_every=steps)
    assert len(resident) == steps
    return max(resident[-steps // 10 :]) - max(resident[:settle])


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
    assert growth("sft", tmp_path, steps=150, settle=25) > 1.5 * MOST_MIB
