"""SFT: a token mean that stays one when a step is split."""

import math

import pytest
import torch

from alignlab.losses import SFTLoss
from tests.reference import statistics as twins
from tests.reference.check import DTYPES, assert_close, assert_like_twin

SHAPE = (3, 47)
MASK = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalizer", [None, 100])
def test_sft_equals_the_twin(dtype, normalizer):
    def twin(logprobs):
        values = twins.kept(logprobs, MASK)
        return (-twins.total(values) / (normalizer or len(values)),)

    assert_like_twin(lambda x: (SFTLoss()(x, MASK, normalizer=normalizer).loss,), twin, -torch.rand(SHAPE), dtype=dtype)


def test_worked_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, math.nan], [-6.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    loss, metrics = SFTLoss()(logprobs, mask)
    assert loss == 3 and metrics["loss"] == 3
    loss, metrics = SFTLoss()(logprobs, mask, normalizer=12)
    assert loss == 0.75 and metrics["loss"] == 3


def test_micro_batches_of_any_split_add_up_to_the_whole_step():
    logprobs = (-torch.rand(8, 20, dtype=torch.float64)).requires_grad_()
    mask = torch.arange(20) < torch.tensor([[1], [3], [5], [7], [11], [13], [17], [19]])

    def gradient(size, normalizer):
        logprobs.grad = None
        for start in range(0, 8, size):
            part = slice(start, start + size)
            SFTLoss()(logprobs[part], mask[part], normalizer=normalizer).loss.backward()
        return logprobs.grad

    whole, count = gradient(8, None).clone(), mask.sum()
    for size in (1, 2, 3, 8):
        assert_close(gradient(size, count), whole)
    means_of_parts = gradient(1, None) / 8
    assert (means_of_parts - whole).norm() / whole.norm() > 0.5  # what a mean of means would do


def test_padding_and_its_contents_never_change_the_loss():
    logprobs, mask = -torch.rand(SHAPE), MASK
    padded = torch.cat([logprobs, torch.full((3, 9), math.nan)], 1).requires_grad_()
    loss = SFTLoss()(padded, torch.cat([mask, torch.zeros(3, 9).bool()], 1)).loss
    assert_close(loss, SFTLoss()(logprobs, mask).loss)
    loss.backward()
    assert torch.isfinite(padded.grad).all()


def test_no_token_at_all_is_a_loss_of_zero():
    logprobs = torch.randn(SHAPE, requires_grad=True)
    loss, metrics = SFTLoss()(logprobs, torch.zeros(SHAPE).bool())
    loss.backward()
    assert loss == 0 and metrics["loss"] == 0 and not logprobs.grad.any()


def test_metrics_are_detached_scalars():
    metrics = SFTLoss()(torch.randn(SHAPE, requires_grad=True), MASK).metrics
    assert set(metrics) == {"loss"}
    assert all(x.ndim == 0 and not x.requires_grad for x in metrics.values())
