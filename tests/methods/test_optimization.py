"""The schedule by hand, and which weights are decayed."""

import math

import pytest
import torch
from torch import nn

from alignlab.errors import ConfigError
from alignlab.methods.optimization import AdamW


def test_warmup_rises_linearly_and_never_starts_at_zero():
    settings = AdamW(schedule="constant", warmup=4)
    assert [settings.lr_factor(step, 100) for step in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]


def test_a_warmup_below_one_is_a_share_of_all_steps():
    assert AdamW(warmup=0.1).lr_factor(9, 100) == AdamW(warmup=10).lr_factor(9, 100)


def test_linear_and_cosine_fall_to_zero_after_the_last_step():
    linear = AdamW(schedule="linear")
    assert [linear.lr_factor(step, 4) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    cosine = AdamW(schedule="cosine")
    assert cosine.lr_factor(2, 4) == pytest.approx(0.5)
    assert cosine.lr_factor(1, 4) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_weight_decay_is_for_matrices_only():
    layer = nn.Linear(3, 2)
    optimizer = AdamW(weight_decay=0.1).build(layer.parameters(), lr=1.0)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {id(layer.weight): 0.1, id(layer.bias): 0.0}


def test_half_precision_master_weights_are_refused():
    with pytest.raises(AssertionError, match="float32"):
        AdamW().build(nn.Linear(2, 2).to(torch.bfloat16).parameters(), lr=1.0)


@pytest.mark.parametrize("bad", [{"schedule": "cos"}, {"warmup": -1}, {"max_grad_norm": 0.0}])
def test_settings_that_cannot_work_are_refused(bad):
    with pytest.raises(ConfigError):
        AdamW(**bad)
