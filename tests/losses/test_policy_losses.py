"""PPO's losses: the clip on both sides, what does not count, and numbers worked by hand."""

import math

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.losses import PPOPolicyLoss, ValueLoss
from tests.reference import losses as twins
from tests.reference.check import DTYPES, assert_close, assert_like_twin

SHAPE = (3, 47)
MASK = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.7
ONE = torch.ones(1, 1, dtype=torch.bool)


def cell(x: float) -> torch.Tensor:
    return torch.tensor([[x]], dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_policy_loss_equals_the_twin(dtype):
    loss = PPOPolicyLoss(0.2, entropy_coefficient=0.05)
    assert_like_twin(
        lambda new, old, adv, ent: (loss(new, old, adv, MASK, entropy=ent).loss,),
        lambda new, old, adv, ent: (twins.ppo_policy(new, old, adv, MASK, 0.2, ent, 0.05),),
        0.4 * torch.randn(SHAPE),
        0.4 * torch.randn(SHAPE),
        torch.randn(SHAPE),
        torch.rand(SHAPE),
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_value_loss_equals_the_twin(dtype):
    loss = ValueLoss(0.5)
    assert_like_twin(
        lambda new, old, ret: (loss(new, old, ret, MASK).loss,),
        lambda new, old, ret: (twins.value(new, old, ret, MASK, 0.5),),
        torch.randn(SHAPE),
        torch.randn(SHAPE),
        torch.randn(SHAPE),
        dtype=dtype,
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # clipped to 1.2: no reward for going further
        (1.5, -2.0, 3.0, 3.0),  # too likely and bad: not clipped, pushed back
        (0.5, -2.0, 1.6, 0.0),  # clipped to 0.8
        (0.5, 2.0, -1.0, -1.0),  # too unlikely and good: not clipped
    ],
)
def test_the_clip_worked_by_hand(ratio, advantage, expected, gradient):
    """d loss / d logprob = -ratio * advantage where the plain term is chosen, 0 where the clipped one is."""
    logprobs = cell(math.log(ratio) - 1).requires_grad_()
    loss = PPOPolicyLoss(0.2)(logprobs, cell(-1.0), cell(advantage), ONE).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected) and logprobs.grad.item() == pytest.approx(gradient)


def test_at_the_old_policy_the_gradient_is_the_policy_gradient():
    old = -torch.rand(SHAPE).double()
    advantages, logprobs = torch.randn(SHAPE).double(), old.clone().requires_grad_()
    loss, metrics = PPOPolicyLoss(0.2)(logprobs, old, advantages, MASK)
    loss.backward()
    assert_close(logprobs.grad, -advantages * MASK / MASK.sum())
    assert metrics["ratio_mean"] == 1 and metrics["clip_fraction"] == 0 and metrics["approx_kl"] == 0


def test_policy_metrics_worked_by_hand():
    """Ratios 3, 1/2, 1 and one that does not count."""
    logprobs = torch.tensor([[3.0, 0.5, 1.0, 99.0]]).double().log().requires_grad_()
    mask = torch.tensor([[True, True, True, False]])
    zeros = torch.zeros(1, 4).double()
    entropy = torch.tensor([[1.0, 2.0, 3.0, math.nan]]).double()
    metrics = PPOPolicyLoss(0.2)(logprobs, zeros, zeros, mask, entropy=entropy).metrics
    assert metrics["clip_fraction"].item() == pytest.approx(2 / 3)
    assert metrics["ratio_mean"].item() == pytest.approx(4.5 / 3)
    # k3 of old against new = ratio - 1 - ln ratio: (2 - ln 3) + (ln 2 - 1/2) + 0
    assert metrics["approx_kl"].item() == pytest.approx((1.5 - math.log(1.5)) / 3)
    assert metrics["entropy"].item() == pytest.approx(2.0)
    assert all(x.ndim == 0 and not x.requires_grad for x in metrics.values())


def test_the_entropy_bonus_lowers_the_loss_and_reaches_the_entropy():
    entropy = cell(1.5).requires_grad_()
    loss = PPOPolicyLoss(0.2, entropy_coefficient=0.1)(cell(0.0), cell(0.0), cell(3.0), ONE, entropy=entropy).loss
    loss.backward()
    assert loss.item() == pytest.approx(-3.15) and entropy.grad.item() == pytest.approx(-0.1)
    with pytest.raises(ConfigError, match="entropy"):
        PPOPolicyLoss(0.2, entropy_coefficient=0.1)(cell(0.0), cell(0.0), cell(3.0), ONE)


@pytest.mark.parametrize("gap", [1e4, -1e4])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_extreme_ratios_keep_finite_losses_and_gradients(gap, advantage):
    logprobs = torch.tensor([[gap]], requires_grad=True)
    loss = PPOPolicyLoss(0.2)(logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), ONE).loss
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logprobs.grad).all()


@pytest.mark.parametrize(
    ("value", "expected", "gradient"),
    [
        (0.1, 0.405, -0.9),  # inside the range: 0.5 * 0.9^2
        (0.9, 0.32, 0.0),  # clipped to 0.2: the larger square, 0.5 * 0.8^2
        (-0.9, 1.805, -1.9),  # left the range the wrong way: its own square is the larger one
    ],
)
def test_the_value_clip_worked_by_hand(value, expected, gradient):
    """Old value 0, range 0.2, return 1."""
    values = cell(value).requires_grad_()
    loss, metrics = ValueLoss(0.2)(values, cell(0.0), cell(1.0), ONE)
    loss.backward()
    assert loss.item() == pytest.approx(expected) and values.grad.item() == pytest.approx(gradient)
    assert metrics["clip_fraction"] == float(abs(value) > 0.2)


def test_without_a_range_it_is_half_the_squared_error():
    values, returns = torch.randn(SHAPE).double(), torch.randn(SHAPE).double()
    loss = ValueLoss(math.inf)(values, torch.zeros(SHAPE).double(), returns, MASK).loss
    assert_close(loss, 0.5 * (values - returns)[MASK].square().mean())


def test_uncounted_places_never_leak():
    """NaN everywhere where nothing counts, in every input."""
    tensors = [torch.randn(SHAPE).masked_fill(~MASK, math.nan).requires_grad_() for _ in range(4)]
    new, old, target, entropy = tensors
    policy = PPOPolicyLoss(0.2, entropy_coefficient=0.1)(new, old, target, MASK, entropy=entropy)
    value = ValueLoss(0.2)(new, old, target, MASK)
    (policy.loss + value.loss).backward()
    assert torch.isfinite(policy.loss) and torch.isfinite(value.loss)
    assert torch.isfinite(new.grad).all() and torch.isfinite(entropy.grad).all() and not new.grad[~MASK].any()
    assert all(torch.isfinite(x) for x in (*policy.metrics.values(), *value.metrics.values()))


def test_old_policy_advantages_and_returns_are_constants():
    new, old, target = (torch.randn(SHAPE).requires_grad_() for _ in range(3))
    (PPOPolicyLoss(0.2)(new, old, target, MASK).loss + ValueLoss(0.2)(new, old, target, MASK).loss).backward()
    assert new.grad is not None and old.grad is None and target.grad is None


def test_micro_batches_add_up_to_the_whole_step():
    new, old, target, entropy = (torch.randn(SHAPE).double() for _ in range(4))
    policy, value = PPOPolicyLoss(0.2, entropy_coefficient=0.3), ValueLoss(0.2)

    def total(rows, normalizer=None):
        part = [x[rows] for x in (new, old, target, MASK)]
        out = policy(*part, entropy=entropy[rows], normalizer=normalizer)
        return out.loss + value(*part, normalizer=normalizer).loss

    parts = sum(total(slice(i, i + 1), normalizer=MASK.sum()) for i in range(3))
    assert_close(parts, total(slice(None)))


@pytest.mark.parametrize("clip_range", [0.0, -0.1, math.nan])
def test_impossible_settings_are_config_errors(clip_range):
    for loss in (PPOPolicyLoss, ValueLoss):
        with pytest.raises(ConfigError, match=f"{loss.__name__}: clip_range"):
            loss(clip_range)
    with pytest.raises(ConfigError, match="entropy_coefficient"):
        PPOPolicyLoss(0.2, entropy_coefficient=-1.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "gradient"),
    [
        (1.25, 2.0, -2.5, -2.5),  # above 1.2, below 1.28: an unlikely good token may rise further
        (1.5, 2.0, -2.56, 0.0),  # clipped to 1.28
        (0.5, -2.0, 1.6, 0.0),  # the lower bound stays at 0.8
        (0.85, -2.0, 1.7, 1.7),
    ],
)
def test_clip_higher_worked_by_hand(ratio, advantage, expected, gradient):
    logprobs = cell(math.log(ratio)).requires_grad_()
    loss, metrics = PPOPolicyLoss(0.2, clip_range_high=0.28)(logprobs, cell(0.0), cell(advantage), ONE)
    loss.backward()
    assert loss.item() == pytest.approx(expected) and logprobs.grad.item() == pytest.approx(gradient)
    assert metrics["clip_fraction"] == float(not 0.8 <= ratio <= 1.28)


def test_without_a_bound_of_its_own_the_clip_is_symmetric():
    new, old, advantages = (torch.randn(SHAPE).double() for _ in range(3))
    plain = PPOPolicyLoss(0.2)(new, old, advantages, MASK)
    same = PPOPolicyLoss(0.2, clip_range_high=0.2)(new, old, advantages, MASK)
    assert plain.loss == same.loss and plain.metrics == same.metrics and PPOPolicyLoss(0.2).clip_range_high == 0.2
    with pytest.raises(ConfigError, match="clip_range_high"):
        PPOPolicyLoss(0.2, clip_range_high=0.0)


def test_weights_worked_by_hand():
    """Three counted tokens at ratio 1: the loss is -(2 * 1 + 0.5 * 4 + 0 * 7) / 3, and / 10 for a step of 10 tokens."""
    mask = torch.tensor([[True, True, True, False]])
    advantages = torch.tensor([[1.0, 4.0, 7.0, math.nan]]).double()
    weights = torch.tensor([[2.0, 0.5, 0.0, math.nan]]).double().requires_grad_()
    logprobs = torch.zeros(1, 4).double().requires_grad_()
    loss = PPOPolicyLoss(0.2)
    out = loss(logprobs, torch.zeros(1, 4).double(), advantages, mask, weights=weights)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(-4 / 3)
    assert_close(logprobs.grad, torch.tensor([[-2.0, -2.0, 0.0, 0.0]]).double() / 3)
    assert weights.grad is None  # constants
    step = loss(logprobs, torch.zeros(1, 4).double(), advantages, mask, weights=weights, normalizer=10)
    assert step.loss.item() == pytest.approx(-0.4)


def test_weights_reach_the_entropy_bonus_and_no_metric():
    new, old, advantages, entropy = (torch.randn(SHAPE).double() for _ in range(4))
    loss = PPOPolicyLoss(0.2, entropy_coefficient=0.3)
    plain = loss(new, old, advantages, MASK, entropy=entropy)
    double = loss(new, old, advantages, MASK, entropy=entropy, weights=torch.full(SHAPE, 2.0).double())
    assert_close(double.loss, 2 * plain.loss)
    assert double.metrics == plain.metrics


def test_no_weight_leaks_from_uncounted_places():
    new, entropy = (torch.randn(SHAPE).masked_fill(~MASK, math.nan).requires_grad_() for _ in range(2))
    old, advantages, weights = (torch.rand(SHAPE).masked_fill(~MASK, math.nan) for _ in range(3))
    loss = PPOPolicyLoss(0.2, entropy_coefficient=0.1)(new, old, advantages, MASK, entropy=entropy, weights=weights)
    loss.loss.backward()
    assert torch.isfinite(loss.loss) and torch.isfinite(new.grad).all() and torch.isfinite(entropy.grad).all()
