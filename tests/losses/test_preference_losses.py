"""The pairwise losses: twins, what each says of itself, and the numbers that every paper agrees on."""

import math

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.losses import (
    DPOLoss,
    HingeLoss,
    IPOLoss,
    PairLogprobs,
    PreferenceLoss,
    RobustDPOLoss,
    SimPOLoss,
)
from tests.reference import losses as twins
from tests.reference.check import DTYPES, assert_close, assert_like_twin

P = 47
LENGTHS = torch.randint(1, 20, (2, P), generator=torch.Generator().manual_seed(0))
METRICS = {"accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_logprob", "rejected_logprob"}

CASES = {  # the loss, and its twin for one pair: (policy, reference, the two lengths)
    "dpo": (DPOLoss(0.3), lambda p, r, lengths: twins.dpo(p, r, 0.3)),
    "cdpo": (DPOLoss(0.3, label_smoothing=0.2), lambda p, r, lengths: twins.dpo(p, r, 0.3, 0.2)),
    "robust": (RobustDPOLoss(0.3, label_smoothing=0.2), lambda p, r, lengths: twins.robust_dpo(p, r, 0.3, 0.2)),
    "ipo": (IPOLoss(0.3), lambda p, r, lengths: twins.ipo(p, r, 0.3)),
    "ipo per token": (
        IPOLoss(0.3, length_normalized=True),
        lambda p, r, lengths: twins.ipo_per_token(p, r, 0.3, *lengths),
    ),
    "hinge": (HingeLoss(0.3), lambda p, r, lengths: twins.hinge(p, r, 0.3)),
    "simpo": (SimPOLoss(2.0, gamma=0.7), lambda p, r, lengths: twins.simpo(p, 2.0, 0.7, *lengths)),
}
every_loss = pytest.mark.parametrize("loss", [case[0] for case in CASES.values()], ids=list(CASES))
PLAIN_DPO = DPOLoss(0.3)


def pairs(chosen, rejected, lengths=LENGTHS) -> PairLogprobs:
    return PairLogprobs(chosen, rejected, lengths[0], lengths[1])


def random_pairs(scale: float = 4.0) -> PairLogprobs:
    return pairs(*(-scale * torch.rand(2, P, dtype=torch.float64) * LENGTHS))


def swap(x: PairLogprobs) -> PairLogprobs:
    return PairLogprobs(x.rejected, x.chosen, x.rejected_length, x.chosen_length)


def one_pair(chosen: float, rejected: float) -> PairLogprobs:
    lengths = torch.tensor([[4], [8]])
    return pairs(*torch.tensor([[chosen], [rejected]], dtype=torch.float64), lengths)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_every_loss_equals_its_twin(name, dtype):
    loss, per_pair = CASES[name]

    def twin(*columns):
        rows = zip(*columns, LENGTHS[0].tolist(), LENGTHS[1].tolist(), strict=True)
        return (torch.stack([per_pair((a, b), (c, d), lengths) for a, b, c, d, *lengths in rows]).mean(),)

    def ours(chosen, rejected, ref_chosen, ref_rejected):
        return (loss(pairs(chosen, rejected), pairs(ref_chosen, ref_rejected)).loss,)

    assert_like_twin(ours, twin, *(-5 * torch.rand(4, P)), dtype=dtype)


@every_loss
def test_forward_is_the_mean_of_per_pair(loss):
    policy, reference = random_pairs(), random_pairs()
    per_pair = loss.per_pair(policy, reference)
    assert per_pair.shape == (P,) and not loss.batch_coupled
    assert_close(loss(policy, reference).loss, per_pair.mean())


# what each loss says of itself


@every_loss
def test_value_at_reference_is_as_stated(loss):
    policy = random_pairs()
    values = loss.per_pair(policy, policy)
    if loss.value_at_reference is None:
        assert values.max() - values.min() > 1e-3
    else:
        assert_close(values, torch.full_like(values, loss.value_at_reference))


def test_values_at_the_reference_are_the_known_ones():
    assert DPOLoss.value_at_reference == RobustDPOLoss.value_at_reference == math.log(2)
    assert IPOLoss(0.1).value_at_reference == pytest.approx(25.0)  # (1 / 0.2)^2
    assert HingeLoss.value_at_reference == 1 and SimPOLoss.value_at_reference is None


@every_loss
def test_needs_reference_is_as_stated(loss):
    policy, reference = random_pairs(), random_pairs()
    if loss.needs_reference:
        with pytest.raises(ConfigError, match=f"{type(loss).__name__}: reference=None"):
            loss(policy)
    else:
        assert_close(loss(policy).loss, loss(policy, reference).loss)


@every_loss
def test_shift_invariance_is_as_stated(loss):
    policy, reference = random_pairs(), random_pairs()
    shifted = policy._replace(chosen=policy.chosen - 3, rejected=policy.rejected - 3)
    moved = (loss.per_pair(shifted, reference) - loss.per_pair(policy, reference)).abs().max()
    assert moved < 1e-9 if loss.shift_invariant else moved > 1e-2


@every_loss
def test_monotonicity_is_as_stated(loss):
    """Over margins from far below to far above what any of the losses aims at."""
    steps = torch.linspace(-200, 200, 401, dtype=torch.float64)
    lengths, zeros = torch.ones(2, 401, dtype=torch.int64), torch.zeros(401, dtype=torch.float64)
    reference = pairs(zeros, zeros, lengths)
    rising_chosen = loss.per_pair(pairs(steps, zeros, lengths), reference).diff()
    falling_rejected = loss.per_pair(pairs(zeros, -steps, lengths), reference).diff()
    for change in (rising_chosen, falling_rejected):
        assert bool((change <= 1e-12).all()) == loss.monotone


@every_loss
def test_antisymmetry_is_as_stated(loss):
    """Swapping negates the margin, and pairs of one margin cost the same whatever their level."""
    assert loss.antisymmetric
    policy, reference = random_pairs(), random_pairs()
    margin = loss(policy, reference).metrics["margin"]
    assert_close(loss(swap(policy), swap(reference)).metrics["margin"], -margin)
    lower = policy._replace(
        chosen=policy.chosen - 2 * policy.chosen_length, rejected=policy.rejected - 2 * policy.rejected_length
    )
    lower_reference = reference._replace(
        chosen=reference.chosen - 2 * reference.chosen_length,
        rejected=reference.rejected - 2 * reference.rejected_length,
    )
    assert_close(loss.per_pair(lower, lower_reference), loss.per_pair(policy, reference))


def test_an_untrue_claim_is_found_out():
    """A loss with a likelihood term is not antisymmetric, and the test above would say so."""

    class Anchored(PreferenceLoss):
        def per_pair(self, policy, reference):
            return PLAIN_DPO.per_pair(policy, reference) - policy.chosen

    with pytest.raises(AssertionError):
        test_antisymmetry_is_as_stated(Anchored(0.1))
    with pytest.raises(AssertionError):
        test_shift_invariance_is_as_stated(Anchored(0.1))


# numbers


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_dpo_at_the_reference_costs_ln_2_and_pulls_by_half_beta(beta):
    chosen, rejected = torch.tensor([-5.0]).requires_grad_(), torch.tensor([-9.0]).requires_grad_()
    lengths = torch.ones(2, 1, dtype=torch.int64)
    loss = DPOLoss(beta)(pairs(chosen, rejected, lengths), pairs(chosen.detach(), rejected.detach(), lengths)).loss
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)
    assert chosen.grad.item() == pytest.approx(-beta / 2) and rejected.grad.item() == pytest.approx(beta / 2)


def test_every_loss_worked_by_hand():
    """Log-ratios +2 and -1 over 4 and 8 tokens: h = 3 in sums, 0.5 + 0.125 per token."""
    policy, reference = one_pair(-8.0, -17.0), one_pair(-10.0, -16.0)

    def value(loss):
        return loss(policy, reference).loss.item()

    assert value(DPOLoss(0.5)) == pytest.approx(math.log(1 + math.exp(-1.5)))
    assert value(DPOLoss(0.5, label_smoothing=0.1)) == pytest.approx(math.log(1 + math.exp(-1.5)) + 0.1 * 1.5)
    # (0.9 f(1.5) - 0.1 f(-1.5)) / 0.8 with f(-m) = f(m) + m
    assert value(RobustDPOLoss(0.5, label_smoothing=0.1)) == pytest.approx(
        math.log(1 + math.exp(-1.5)) - 0.1 * 1.5 / 0.8
    )
    assert value(IPOLoss(0.5)) == pytest.approx(4.0)  # (3 - 1)^2
    assert value(IPOLoss(0.5, length_normalized=True)) == pytest.approx(0.375**2)
    assert value(HingeLoss(0.1)) == pytest.approx(0.7)
    assert value(HingeLoss(0.5)) == 0.0
    # per token -2 and -2.125: reward margin 2 * 0.125, less the target 1
    assert value(SimPOLoss(2.0, gamma=1.0)) == pytest.approx(math.log(1 + math.exp(0.75)))


def test_metrics_worked_by_hand():
    metrics = DPOLoss(0.5)(one_pair(-8.0, -17.0), one_pair(-10.0, -16.0)).metrics
    assert {key: value.item() for key, value in metrics.items()} == {
        "accuracy": 1.0,
        "margin": 1.5,
        "chosen_reward": 1.0,
        "rejected_reward": -0.5,
        "chosen_logprob": -8.0,
        "rejected_logprob": -17.0,
    }
    assert DPOLoss(0.5)(one_pair(-1.0, -2.0), one_pair(-1.0, -2.0)).metrics["accuracy"] == 0.5  # a tie


def test_dpo_and_ipo_sum_over_tokens_and_simpo_averages():
    """Saying every token twice doubles the margin of a sum and leaves that of a mean."""
    policy, reference = random_pairs(), random_pairs()

    def twice(x):
        return PairLogprobs(*(2 * column for column in x))

    for loss, factor in ((DPOLoss(0.1), 2), (IPOLoss(0.1), 2), (IPOLoss(0.1, True), 1), (SimPOLoss(2.0, 0.5), 1)):
        once = loss(policy, reference).metrics["margin"]
        assert_close(loss(twice(policy), twice(reference)).metrics["margin"], factor * once)


def test_label_smoothing_stops_at_the_believed_odds():
    """Conservative DPO is least at the margin logit(1 - e); robust DPO goes on."""
    chosen = torch.tensor([math.log(0.8 / 0.2) / 0.5], dtype=torch.float64, requires_grad=True)
    lengths, zero = torch.ones(2, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    for loss, at_rest in ((DPOLoss(0.5, 0.2), True), (RobustDPOLoss(0.5, 0.2), False), (DPOLoss(0.5), False)):
        value = loss(pairs(chosen, zero, lengths), pairs(zero, zero, lengths)).loss
        (gradient,) = torch.autograd.grad(value, chosen)
        assert (abs(gradient.item()) < 1e-12) == at_rest


def test_robust_dpo_is_unbiased_under_its_noise_and_conservative_dpo_is_not():
    policy, reference = random_pairs(), random_pairs()

    def expected_under_flips(loss):
        return 0.8 * loss(policy, reference).loss + 0.2 * loss(swap(policy), swap(reference)).loss

    clean = PLAIN_DPO(policy, reference).loss
    assert_close(expected_under_flips(RobustDPOLoss(0.3, 0.2)), clean)
    assert (expected_under_flips(DPOLoss(0.3, 0.2)) - clean).abs() > 0.01


@every_loss
@pytest.mark.parametrize("margin", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_margins_keep_finite_losses_and_gradients(loss, margin, dtype):
    chosen, rejected = (torch.tensor([x], dtype=dtype, requires_grad=True) for x in (margin, -margin))
    zero, lengths = torch.zeros(1, dtype=dtype), torch.ones(2, 1, dtype=torch.int64)
    out = loss(pairs(chosen, rejected, lengths), pairs(zero, zero, lengths))
    out.loss.backward()
    assert out.loss.dtype == torch.float32 and torch.isfinite(out.loss)
    assert torch.isfinite(chosen.grad).all() and torch.isfinite(rejected.grad).all()
    assert set(out.metrics) == METRICS and all(torch.isfinite(x) for x in out.metrics.values())


@every_loss
def test_metrics_are_detached_scalars_of_the_same_names(loss):
    policy = random_pairs()._replace(chosen=torch.randn(P, requires_grad=True))
    metrics = loss(policy, random_pairs()).metrics
    assert set(metrics) == METRICS
    assert all(x.ndim == 0 and not x.requires_grad for x in metrics.values())


def test_autocast_around_it_changes_nothing():
    policy, reference = (PairLogprobs(*(x.float() for x in random_pairs())) for _ in range(2))
    plain = PLAIN_DPO(policy, reference).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(PLAIN_DPO(policy, reference).loss, plain)


def test_a_new_loss_is_one_method():
    class Linear(PreferenceLoss):
        def per_pair(self, policy, reference):
            return -self.beta * (policy.chosen - policy.rejected)

    policy = random_pairs()
    out = Linear(0.5)(policy, random_pairs())
    assert_close(out.loss, -0.5 * (policy.chosen - policy.rejected).mean())
    assert set(out.metrics) == METRICS


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DPOLoss(0.0), "DPOLoss: beta"),
        (lambda: IPOLoss(-1.0), "IPOLoss: beta"),
        (lambda: HingeLoss(math.nan), "HingeLoss: beta"),
        (lambda: DPOLoss(0.1, label_smoothing=-0.1), "DPOLoss: label_smoothing"),
        (lambda: DPOLoss(0.1, label_smoothing=0.5), "DPOLoss: label_smoothing"),
        (lambda: RobustDPOLoss(0.1, label_smoothing=0.5), "RobustDPOLoss: label_smoothing"),
        (lambda: SimPOLoss(2.0, gamma=-1.0), "SimPOLoss: gamma"),
    ],
)
def test_impossible_settings_are_config_errors(make, name):
    with pytest.raises(ConfigError, match=name):
        make()


def test_beta_has_no_default():
    for loss in (DPOLoss, IPOLoss, HingeLoss, RobustDPOLoss, SimPOLoss):
        with pytest.raises(TypeError, match="beta"):
            loss()
