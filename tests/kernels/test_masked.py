"""Masked statistics: of what counts and nothing else, and of nothing at all."""

import math

import pytest
import torch

from alignlab.kernels.masked import masked_mean, masked_sum, masked_var, masked_whiten
from tests.reference import statistics as twins
from tests.reference.check import DTYPES, assert_close, assert_like_twin

SHAPE = (3, 47)
MASK = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.6
NOTHING = torch.zeros(SHAPE, dtype=torch.bool)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_mean_and_variance_equal_those_of_the_list(dtype):
    def twin(x):
        values = twins.kept(x, MASK)
        return twins.total(values), twins.mean(values), twins.variance(values)

    x = 3 + 2 * torch.randn(SHAPE)
    assert_like_twin(lambda x: (masked_sum(x, MASK), masked_mean(x, MASK), masked_var(x, MASK)), twin, x, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_equals_the_twin(dtype, shift_mean):
    assert_like_twin(
        lambda x: (masked_whiten(x, MASK, shift_mean=shift_mean),),
        lambda x: (twins.whiten(x, MASK, shift_mean),),
        3 + 2 * torch.randn(SHAPE),
        dtype=dtype,
    )


def test_worked_by_hand():
    x = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.inf, math.nan]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_sum(x, mask) == 9 and masked_mean(x, mask) == 3
    assert masked_var(x, mask) == 7  # (4 + 1 + 9) / 2
    assert torch.equal(masked_sum(x, mask, dim=1), torch.tensor([3.0, 6.0], dtype=torch.float64))
    assert torch.equal(masked_mean(x, mask, dim=1), torch.tensor([1.5, 6.0], dtype=torch.float64))
    std = math.sqrt(7)
    expected = torch.tensor([[-2 / std, -1 / std, 0], [3 / std, 0, 0]], dtype=torch.float64)
    assert_close(masked_whiten(x, mask), expected)
    assert_close(masked_whiten(x, mask, shift_mean=False), (expected + 3) * mask)


def test_a_row_of_nothing_has_mean_zero():
    mask = torch.tensor([[True, True], [False, False]])
    assert masked_mean(torch.ones(2, 2), mask, dim=1).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("function", [masked_sum, masked_mean, masked_var])
def test_of_nothing_is_zero_with_zero_gradient(function):
    x = torch.full(SHAPE, math.nan, requires_grad=True)
    result = function(x, NOTHING)
    result.backward()
    assert result.item() == 0 and not x.grad.any()


def test_whitening_nothing_one_value_or_a_constant():
    x = torch.randn(SHAPE, requires_grad=True)
    assert not masked_whiten(x, NOTHING).any()
    single = NOTHING.clone()
    single[1, 2] = True
    assert not masked_whiten(x, single).any()
    assert masked_whiten(x, single, shift_mean=False)[1, 2] == x[1, 2]
    constant = torch.full(SHAPE, 3.3, requires_grad=True)
    assert masked_mean(constant, MASK) != constant[0, 0]  # the mean is off by a rounding, so there is some "spread"
    whitened = masked_whiten(constant, MASK)
    assert whitened.abs().max() < 1e-6
    whitened.sum().backward()
    assert not constant.grad.any()
    assert_close(masked_whiten(constant, MASK, shift_mean=False), 3.3 * MASK)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_whitened_values_have_mean_zero_and_std_one_at_any_scale(scale):
    whitened = masked_whiten(scale * (torch.randn(SHAPE) + 5), MASK)
    assert masked_mean(whitened, MASK).abs() < 1e-5
    assert masked_var(whitened, MASK).item() == pytest.approx(1.0, abs=1e-4)


def test_padding_columns_change_nothing():
    x, padding = torch.randn(SHAPE).double(), torch.full((3, 20), 7.0).double()
    padded, mask = torch.cat([x, padding], 1), torch.cat([MASK, NOTHING[:, :20]], 1)
    assert_close(masked_whiten(padded, mask)[:, :47], masked_whiten(x, MASK))
    careless = (padded - padded.mean()) / padded.std()
    assert (careless[:, :47][MASK].std() - 1).abs() > 0.1  # what an unmasked whitening would do


def test_a_mask_of_rows_is_spread_over_columns():
    """A mask that broadcasts counts every place that it covers."""
    x = torch.randn(4, 5)
    rows = torch.tensor([[True], [False], [True], [True]])
    assert_close(masked_mean(x, rows), x[[0, 2, 3]].mean())
    assert_close(masked_var(x, rows), x[[0, 2, 3]].var())


def test_half_precision_is_summed_in_float32():
    x = torch.ones(1, 5000, dtype=torch.bfloat16)  # bfloat16 cannot count past 256
    assert masked_sum(x, torch.ones(1, 5000, dtype=torch.bool)).item() == 5000
