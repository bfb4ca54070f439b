"""GAE and group advantages: worked by hand, against their definitions, and whatever stands where nothing counts."""

import math

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.kernels.advantages import gae, group_advantages
from alignlab.kernels.plain import choose_plain
from tests.reference import advantages as twins
from tests.reference.check import DTYPES, assert_close, assert_like_twin

B, T = 3, 47


def counted_steps() -> torch.Tensor:
    """Holes, padding on either side, and one row of nothing."""
    mask = torch.rand(B, T, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[0, :4], mask[1, -9:], mask[2] = False, False, False
    return mask


def row(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def test_a_reward_at_the_end_token_worked_by_hand():
    """delta = (0.1, 0.1, 0.7); A_2 = 0.7, A_1 = 0.1 + 0.95 * 0.7, A_0 = 0.1 + 0.95 * 0.765."""
    rewards, values = row(0, 0, 1), row(0.1, 0.2, 0.3)
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, gae_lambda=0.95)
    assert_close(advantages, row(0.82675, 0.765, 0.7))
    assert_close(returns, row(0.92675, 0.965, 1.0))


def test_a_reward_one_step_late_is_another_number():
    """The same with a fourth step of value 0.4 that takes the reward: A_3 = 0.6, A_2 = 0.1 + 0.95 * 0.6, ..."""
    mask = torch.ones(1, 4, dtype=torch.bool)
    advantages, _ = gae(row(0, 0, 0, 1), row(0.1, 0.2, 0.3, 0.4), mask, gamma=1.0, gae_lambda=0.95)
    assert_close(advantages, row(0.799675, 0.7365, 0.67, 0.6))


def test_discounting_worked_by_hand():
    """gamma = lambda = 1/2: delta_1 = 2 - 1 = 1, delta_0 = 4 + 1/2 * 1 - 3 = 1.5, A_0 = 1.5 + 1/4 * 1."""
    advantages, returns = gae(row(4, 2), row(3, 1), torch.ones(1, 2, dtype=torch.bool), gamma=0.5, gae_lambda=0.5)
    assert_close(advantages, row(1.75, 1.0))
    assert_close(returns, row(4.75, 2.0))


@pytest.mark.parametrize("plain", [[], ["gae"]])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bootstrap", [False, True])
def test_gae_equals_the_sum_of_discounted_deltas(dtype, with_bootstrap, plain):
    choose_plain(plain)
    mask = counted_steps()
    inputs = [torch.randn(B, T), torch.randn(B, T)] + [torch.randn(B)] * with_bootstrap

    def ours(rewards, values, bootstrap=None):
        return gae(rewards, values, mask, gamma=0.97, gae_lambda=0.9, bootstrap=bootstrap)

    def twin(rewards, values, bootstrap=None):
        return twins.gae(rewards, values, mask, 0.97, 0.9, bootstrap)

    assert_like_twin(ours, twin, *inputs, dtype=dtype)


def test_uncounted_steps_are_skipped_as_if_they_were_not_there():
    mask = torch.tensor([[False, True, False, False, True, True, False]])
    rewards, values = torch.randn(1, 7).double(), torch.randn(1, 7).double()
    advantages, returns = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.8, bootstrap=row(0.5)[0])
    alone = gae(
        rewards[mask][None],
        values[mask][None],
        torch.ones(1, 3).bool(),
        gamma=0.9,
        gae_lambda=0.8,
        bootstrap=row(0.5)[0],
    )
    assert_close(advantages[mask], alone[0][0])
    assert_close(returns[mask], alone[1][0])
    assert not advantages[~mask].any() and not returns[~mask].any()


def test_nan_where_nothing_counts_is_harmless():
    mask = counted_steps()
    rewards, values = torch.randn(B, T), torch.randn(B, T)
    clean = gae(rewards, values, mask, gamma=0.99, gae_lambda=0.95)
    rewards[~mask], values[~mask] = math.nan, math.inf
    values.requires_grad_()
    dirty = gae(rewards, values, mask, gamma=0.99, gae_lambda=0.95)
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])
    dirty[1].sum().backward()
    assert torch.isfinite(values.grad).all() and not values.grad[~mask].any()


def test_lambda_one_gives_the_reward_to_go_whatever_the_values():
    mask = counted_steps()
    rewards = torch.randn(B, T).double()
    _, returns = gae(rewards, torch.randn(B, T).double(), mask, gamma=1.0, gae_lambda=1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    assert_close(returns, to_go)


def test_lambda_zero_gives_the_one_step_error():
    rewards, values = torch.randn(B, T).double(), torch.randn(B, T).double()
    bootstrap = torch.randn(B).double()
    mask = torch.ones(B, T).bool()
    advantages, _ = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.0, bootstrap=bootstrap)
    successors = torch.cat([values[:, 1:], bootstrap[:, None]], 1)
    assert_close(advantages, rewards + 0.9 * successors - values)


def test_the_bootstrap_follows_the_last_counted_step():
    mask = torch.tensor([[True, True, False, False]])
    advantages, returns = gae(row(0, 1, 7, 7), row(2, 3, 8, 8), mask, gamma=0.5, gae_lambda=0.0, bootstrap=row(10)[0])
    assert_close(advantages, row(-0.5, 3.0, 0, 0))  # 0 + 3/2 - 2 and 1 + 10/2 - 3
    assert_close(returns, row(1.5, 6.0, 0, 0))


def test_a_row_or_a_batch_of_nothing_is_zero():
    mask = torch.zeros(2, 3).bool()
    for advantages in gae(torch.ones(2, 3), torch.ones(2, 3), mask, gamma=1.0, gae_lambda=1.0, bootstrap=torch.ones(2)):
        assert not advantages.any()
    assert gae(torch.ones(0, 3), torch.ones(0, 3), mask[:0], gamma=1.0, gae_lambda=1.0)[0].shape == (0, 3)
    empty = gae(torch.ones(2, 0), torch.ones(2, 0), mask[:, :0], gamma=1.0, gae_lambda=1.0)
    assert empty[0].shape == (2, 0)


@pytest.mark.parametrize("time", [1, 2, 3, 31, 32, 33, 64, 100])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 1.0), (0.99, 0.95), (0.5, 0.7), (0.0, 0.9), (0.9, 0.0)])
def test_every_length_equals_the_recursion_step_by_step(time: int, gamma: float, gae_lambda: float):
    """Powers of two and their neighbours: the sums over the future are built by doubling."""
    masks = [torch.rand(6, time) < share for share in (0.1, 0.5, 1.1)]
    rewards, values, bootstrap = torch.randn(6, time).double(), torch.randn(6, time).double(), torch.randn(6).double()
    for mask in masks:
        found = gae(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda, bootstrap=bootstrap)
        for ours, theirs in zip(found, twins.gae_step_by_step(rewards, values, mask, gamma, gae_lambda, bootstrap)):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 1.0), (0.999, 0.99)])
def test_4096_steps_in_float32_are_within_1e_5_of_the_recursion_in_float64(gamma: float, gae_lambda: float):
    mask = torch.rand(4, 4096) < 0.9
    rewards, values = torch.rand(4, 4096), 10 * torch.rand(4, 4096)
    ours = gae(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda)
    theirs = twins.gae_step_by_step(rewards.double(), values.double(), mask, gamma, gae_lambda, None)
    for found, exact in zip(ours, theirs):
        assert found.dtype == torch.float32
        scale = exact.abs().amax(1, keepdim=True)
        assert float(((found - exact) / scale).abs().max()) < 1e-5


def test_inputs_are_left_as_they_were():
    mask = counted_steps()
    inputs = [torch.randn(B, T), torch.randn(B, T), torch.randn(B)]
    before = [x.clone() for x in inputs]
    gae(inputs[0], inputs[1], mask, gamma=0.9, gae_lambda=0.9, bootstrap=inputs[2])
    gae(inputs[0], inputs[1], torch.ones_like(mask), gamma=0.9, gae_lambda=0.9, bootstrap=inputs[2])
    assert all(torch.equal(x, y) for x, y in zip(inputs, before))


def test_the_wider_of_two_dtypes_is_kept():
    mask = torch.ones(2, 5).bool()
    for rewards, values in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        inputs = (torch.ones(2, 5, dtype=rewards), torch.ones(2, 5, dtype=values))
        advantages, returns = gae(*inputs, mask, gamma=1.0, gae_lambda=1.0, bootstrap=torch.ones(2).to(rewards))
        assert advantages.dtype == returns.dtype == torch.float64


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_group_advantages_equal_their_definition(kind, dtype):
    scores = 3 * torch.randn(4 * 5)
    assert_like_twin(
        lambda s: (group_advantages(s, 5, kind=kind),),
        lambda s: (twins.group_advantages(s, 5, kind),),
        scores,
        dtype=dtype,
    )


def test_group_advantages_worked_by_hand():
    scores = torch.tensor([1.0, 2, 3, 6, 5, 5, 5, 5], dtype=torch.float64)
    # the others' means: 11/3, 10/3, 3, 2; a group of equals has no advantage
    rloo = torch.tensor([-8 / 3, -4 / 3, 0, 4, 0, 0, 0, 0], dtype=torch.float64)
    assert_close(group_advantages(scores, 4, kind="rloo"), rloo)
    std = math.sqrt((4 + 1 + 0 + 9) / 3) + 1e-4
    grpo = torch.tensor([-2 / std, -1 / std, 0, 3 / std, 0, 0, 0, 0], dtype=torch.float64)
    assert_close(group_advantages(scores, 4, kind="grpo"), grpo)


@pytest.mark.parametrize("group_size", [0, 1, 3, 5])
def test_groups_that_do_not_fit_are_config_errors(group_size):
    with pytest.raises(ConfigError, match="group_size"):
        group_advantages(torch.zeros(4), group_size, kind="rloo")


def test_an_unknown_kind_is_a_config_error():
    with pytest.raises(ConfigError, match="'mean'"):
        group_advantages(torch.zeros(4), 2, kind="mean")
