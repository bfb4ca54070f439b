"""The losses of `losses.preference`: the numbers that every paper agrees on, soft labels, and a loss of one's own."""

import math

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.losses import DPOLoss, HingeLoss, IPOLoss, PairLogprobs, PreferenceLoss, RobustDPOLoss, SimPOLoss
from tests.losses.catalogue import METRICS, one_pair, pairs, random_pairs
from tests.reference.check import assert_close

PLAIN_DPO = DPOLoss(0.3)


def test_values_at_the_reference_are_the_known_ones():
    assert DPOLoss.value_at_reference == RobustDPOLoss.value_at_reference == math.log(2)
    assert IPOLoss(0.1).value_at_reference == pytest.approx(25.0)  # (1 / 0.2)^2
    assert HingeLoss.value_at_reference == 1 and SimPOLoss.value_at_reference is None


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
        return 0.8 * loss(policy, reference).loss + 0.2 * loss(policy.swapped(), reference.swapped()).loss

    clean = PLAIN_DPO(policy, reference).loss
    assert_close(expected_under_flips(RobustDPOLoss(0.3, 0.2)), clean)
    assert (expected_under_flips(DPOLoss(0.3, 0.2)) - clean).abs() > 0.01


def test_soft_labels_and_weights_worked_by_hand():
    """Margins 1 and -2 at beta 0.5; the label of the first is right with probability 3/4, the second counts 3 times."""
    lengths, zeros = torch.ones(2, 2, dtype=torch.int64), torch.zeros(2)
    policy, reference = pairs(torch.tensor([2.0, -4.0]), zeros, lengths), pairs(zeros, zeros, lengths)
    soft, weight = torch.tensor([0.75, 1.0]), torch.tensor([1.0, 3.0])
    loss, metrics = DPOLoss(0.5)(policy, reference, preference=soft, weight=weight)
    first = 0.75 * math.log(1 + math.exp(-1)) + 0.25 * math.log(1 + math.exp(1))
    assert loss.item() == pytest.approx((first + 3 * math.log(1 + math.exp(2))) / 4)
    # the better reply is ahead in 3/4 of the first pair's labels, and the margin is 1 in 3/4 of them and -1 in 1/4
    assert metrics["accuracy"].item() == pytest.approx((0.75 + 0) / 4)
    assert metrics["margin"].item() == pytest.approx((0.5 + 3 * -2) / 4)
    assert metrics["chosen_logprob"].item() == pytest.approx((0.75 * 2 + 3 * -4) / 4)


def test_a_soft_label_of_dpo_is_conservative_dpo():
    policy, reference = random_pairs(), random_pairs()
    soft = torch.full_like(policy.chosen, 0.8)
    assert_close(
        PLAIN_DPO(policy, reference, preference=soft).loss, DPOLoss(0.3, label_smoothing=0.2)(policy, reference).loss
    )


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
