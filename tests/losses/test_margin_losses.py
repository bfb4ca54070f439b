"""Length-normalised DPO, EXO, DiscoPOP and f-DPO: numbers by hand, gradients at the reference, limits."""

import math

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.losses import (
    AlphaDivergence,
    DiscoPOPLoss,
    DPOLoss,
    EXOLoss,
    FDivergenceDPOLoss,
    ForwardKL,
    JensenShannon,
    LengthNormalizedDPOLoss,
    ReverseKL,
)
from alignlab.worlds.exact import ExactWorld, population_optimum
from tests.losses.catalogue import near, one_pair, pairs, random_pairs
from tests.reference.check import assert_close

DIVERGENCES = (ReverseKL(), ForwardKL(), JensenShannon(), AlphaDivergence(0.4))


def at_margin(margin, requires_grad=False):
    """One pair with h = margin, all of it on the chosen reply."""
    chosen = torch.tensor([margin], dtype=torch.float64, requires_grad=requires_grad)
    zero, lengths = torch.zeros(1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.int64)
    return pairs(chosen, zero, lengths), pairs(zero, zero, lengths)


def gradients_at_the_reference(loss):
    """With respect to the log-probs of the two replies, of 4 and 8 tokens."""
    policy = one_pair(-8.0, -17.0)
    policy.chosen.requires_grad_(), policy.rejected.requires_grad_()
    value = loss(policy, one_pair(-8.0, -17.0)).loss
    return tuple(g.item() for g in torch.autograd.grad(value, (policy.chosen, policy.rejected)))


def test_every_loss_worked_by_hand():
    """Log-ratios +2 and -1 over 4 and 8 tokens: h = 3 in sums, 0.5 + 0.125 per token."""
    policy, reference = one_pair(-8.0, -17.0), one_pair(-10.0, -16.0)

    def value(loss):
        return loss(policy, reference).loss.item()

    assert value(LengthNormalizedDPOLoss(2.0)) == pytest.approx(math.log(1 + math.exp(-1.25)))
    # q = sigmoid(1.5) = 0.817574 against (0.9, 0.1)
    assert value(EXOLoss(0.5, 0.1)) == pytest.approx(
        0.8175745 * math.log(0.8175745 / 0.9) + 0.1824255 * math.log(0.1824255 / 0.1), abs=1e-7
    )
    # sigmoid(1.5 / 0.5) = 0.952574
    assert value(DiscoPOPLoss(0.5, tau=0.5)) == pytest.approx(
        0.0474259 * math.log(1 + math.exp(-1.5)) + 0.9525741 * math.exp(-1.5), abs=1e-7
    )
    e = math.e
    for divergence, margin in (
        (ReverseKL(), 1.5),
        (ForwardKL(), 0.5 * (e - e**-2)),  # 1 - e^-2 against 1 - e
        (JensenShannon(), 0.5 * (2 - math.log(1 + e**2) + 1 + math.log(1 + 1 / e))),
        (AlphaDivergence(0.5), e**0.5 - 1 / e),  # (1 - e^-1) / 0.5 against (1 - e^0.5) / 0.5
    ):
        assert value(FDivergenceDPOLoss(0.5, divergence)) == pytest.approx(math.log(1 + math.exp(-margin)))
        assert FDivergenceDPOLoss(0.5, divergence)(policy, reference).metrics["margin"].item() == pytest.approx(margin)


def test_gradients_at_the_reference():
    """All of them pull as DPO does, -/+ beta / 2, but for the length, the JS divergence (f''(1) = 1/2) and EXO."""
    assert gradients_at_the_reference(LengthNormalizedDPOLoss(2.0)) == pytest.approx((-2 / 2 / 4, 2 / 2 / 8))
    for divergence, share in zip(DIVERGENCES, (1, 1, 0.5, 1), strict=True):
        loss = FDivergenceDPOLoss(0.3, divergence)
        assert gradients_at_the_reference(loss) == pytest.approx((-0.15 * share, 0.15 * share))
    # q (1 - q) (logit q - logit(1 - e)) = -(1/4) ln 9
    assert gradients_at_the_reference(EXOLoss(1.0, 0.1))[0] == pytest.approx(-math.log(9) / 4)


def test_saying_every_token_twice_leaves_the_margin_per_token():
    policy, reference = random_pairs(), random_pairs()
    twice = [type(x)(*(2 * column for column in x)) for x in (policy, reference)]
    loss = LengthNormalizedDPOLoss(2.0)
    assert_close(loss(*twice).metrics["margin"], loss(policy, reference).metrics["margin"])


@pytest.mark.parametrize("label_smoothing", [0.001, 0.1, 0.4])
def test_exo_is_the_reverse_kl_and_conservative_dpo_the_forward_one(label_smoothing):
    """Both rest at logit(1 - e); there EXO costs nothing and conservative DPO the entropy of the label."""
    rest = math.log(1 / label_smoothing - 1) / 0.5
    entropy = -sum(p * math.log(p) for p in (label_smoothing, 1 - label_smoothing))
    for loss, least in ((EXOLoss(0.5, label_smoothing), 0.0), (DPOLoss(0.5, label_smoothing), entropy)):
        policy, reference = at_margin(rest, requires_grad=True)
        value = loss(policy, reference).loss
        assert value.item() == pytest.approx(least, abs=1e-12)
        assert abs(torch.autograd.grad(value, policy.chosen)[0].item()) < 1e-12
    # where the policy is sure and wrong: flat for the reverse KL, steep for the forward one
    wrong = at_margin(-200.0)
    assert EXOLoss(0.5, label_smoothing)(*wrong).loss.item() == pytest.approx(-math.log(label_smoothing))
    assert DPOLoss(0.5, label_smoothing)(*wrong).loss.item() > 50


@pytest.mark.parametrize("preferred", [0.55, 0.73, 0.9])
def test_exo_rests_further_out_than_dpo_where_labels_are_noisy(preferred):
    """At (2p - 1) logit(1 - e), where DPO rests at logit(p); with labels drawn as with soft ones."""
    rests = {
        EXOLoss(0.5, 0.001): (2 * preferred - 1) * math.log(999),
        DPOLoss(0.5): math.log(preferred / (1 - preferred)),
    }
    for loss, rest in rests.items():
        policy, reference = at_margin(rest / 0.5, requires_grad=True)
        soft = loss(policy, reference, preference=torch.tensor([preferred], dtype=torch.float64)).loss
        swapped = policy.swapped(), reference.swapped()
        drawn = preferred * loss(policy, reference).loss + (1 - preferred) * loss(*swapped).loss
        for value in (soft, drawn):
            assert abs(torch.autograd.grad(value, policy.chosen, retain_graph=True)[0].item()) < 1e-12
    assert min(rests.values()) * 2.5 < max(rests.values())


def test_discopop_is_exponential_above_zero_and_logistic_below():
    for margin, value in ((1.0, math.exp(-1)), (-1.0, math.log(1 + math.e))):
        assert DiscoPOPLoss(1.0, tau=0.001)(*at_margin(margin)).loss.item() == pytest.approx(value)


@pytest.mark.parametrize(("tau", "has_bump"), [(0.05, True), (0.10975, True), (0.10985, False), (0.5, False)])
def test_discopop_has_a_bump_for_a_narrow_blend_only(tau, has_bump):
    margins = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    lengths, zeros = torch.ones(2, len(margins), dtype=torch.int64), torch.zeros_like(margins)
    loss = DiscoPOPLoss(1.0, tau=tau)
    rises = loss.per_pair(pairs(margins, zeros, lengths), pairs(zeros, zeros, lengths)).diff().max() > 0
    assert bool(rises) == has_bump == (not loss.monotone)


def test_f_dpo_with_the_reverse_kl_is_dpo():
    reference = random_pairs()
    policy = near(reference)
    assert_close(FDivergenceDPOLoss(0.3, ReverseKL())(policy, reference).loss, DPOLoss(0.3)(policy, reference).loss)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: type(d).__name__)
def test_the_implied_reward_is_zero_at_the_reference_and_rises_with_the_ratio(divergence):
    slope = divergence.slope(torch.linspace(-30, 30, 61, dtype=torch.float64))
    assert slope[30].abs() < 1e-12 and bool((slope.diff() > 0).all())


@pytest.mark.parametrize(("alpha", "limit"), [(1e-7, ReverseKL()), (1 - 1e-7, ForwardKL())])
def test_alpha_goes_from_the_reverse_to_the_forward_kl(alpha, limit):
    log_ratio = torch.linspace(-4, 4, 41, dtype=torch.float64)
    torch.testing.assert_close(AlphaDivergence(alpha).slope(log_ratio), limit.slope(log_ratio), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: type(d).__name__)
def test_f_dpo_on_the_population_solves_reinforcement_learning_under_its_divergence(divergence):
    """At that optimum the reward is beta f'(pi / ref) and a constant (Wang et al. 2024)."""
    world = ExactWorld(3, 2, lambda tokens: sum(math.sin(3 * x + n) for n, x in enumerate(tokens)), 0.7)
    found = population_optimum(world, FDivergenceDPOLoss(world.beta, divergence), max_iterations=1000)
    constant = world.rewards - world.beta * divergence.slope(found - world.ref_logprobs)
    assert (constant - constant.mean()).abs().max() < 1e-6
    assert (found - world.ref_logprobs).abs().max() > 0.1


@pytest.mark.parametrize("divergence", [ForwardKL(), AlphaDivergence(0.4)], ids=lambda d: type(d).__name__)
def test_beyond_its_bound_the_exponential_goes_on_straight(divergence):
    """exp(20) and its slope at the bound, no jump, and still a pull far below it."""
    alpha = getattr(divergence, "alpha", 1.0)
    log_ratio = torch.tensor([-19.9, -20.0, -20.1, -30.0], dtype=torch.float64) / alpha
    log_ratio.requires_grad_()
    slope = divergence.slope(log_ratio)
    (pull,) = torch.autograd.grad(slope.sum(), log_ratio)
    top = math.exp(20)
    assert ((1 - alpha * slope) / top).tolist() == pytest.approx([math.exp(-0.1), 1.0, 1.1, 11.0], rel=1e-6)
    assert (pull[[0, 2, 3]] / top).tolist() == pytest.approx([math.exp(-0.1), 1.0, 1.0], rel=1e-6)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: EXOLoss(0.1, 0.0), "EXOLoss: label_smoothing=0.0"),
        (lambda: EXOLoss(0.1, 0.5), "EXOLoss: label_smoothing=0.5"),
        (lambda: DiscoPOPLoss(0.1, tau=0.0), "DiscoPOPLoss: tau=0.0"),
        (lambda: DiscoPOPLoss(0.1, tau=1.0), "DiscoPOPLoss: tau=1.0"),
        (lambda: AlphaDivergence(0.0), "AlphaDivergence: alpha=0.0"),
        (lambda: AlphaDivergence(1.0), "AlphaDivergence: alpha=1.0"),
        (lambda: LengthNormalizedDPOLoss(0.0), "LengthNormalizedDPOLoss: beta=0.0"),
    ],
)
def test_impossible_settings_are_config_errors(make, name):
    with pytest.raises(ConfigError, match=name):
        make()
