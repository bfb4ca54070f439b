"""NCA, SPPO, APO and BCO: numbers by hand, gradients at the reference, and BCO's running mean."""

import math

import pytest
import torch

from alignlab.losses import APODownLoss, APOZeroLoss, BCOLoss, NCALoss, SPPOHardLoss, WithSFT
from alignlab.worlds.exact import ExactWorld
from tests.losses.catalogue import one_pair, pairs, random_pairs
from tests.losses.test_margin_losses import gradients_at_the_reference


def softplus(x):
    return math.log(1 + math.exp(x))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def two_pairs(chosen, rejected):
    """Log-ratios to a reference of zeros."""
    lengths, zeros = torch.ones(2, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.float64)
    columns = torch.tensor([chosen, rejected], dtype=torch.float64)
    return pairs(*columns, lengths), pairs(zeros, zeros, lengths)


def test_every_loss_worked_by_hand():
    """Log-ratios +2 and -1: implied rewards 1 and -0.5 at beta 0.5."""
    policy, reference = one_pair(-8.0, -17.0), one_pair(-10.0, -16.0)

    def value(loss):
        return loss(policy, reference).loss.item()

    assert value(NCALoss(0.5)) == pytest.approx(softplus(-1) + 0.5 * softplus(1) + 0.5 * softplus(-0.5))
    assert value(SPPOHardLoss(0.5)) == pytest.approx(1.0)  # (2 - 1)^2 + (-1 + 1)^2
    assert value(APOZeroLoss(0.5)) == pytest.approx(sigmoid(-1) + sigmoid(-0.5))
    assert value(APODownLoss(0.5)) == pytest.approx(sigmoid(1) + sigmoid(-1.5))
    assert value(BCOLoss(0.5).eval()) == pytest.approx(softplus(-1) + softplus(-0.5))
    assert value(BCOLoss(0.5)) == pytest.approx(2 * softplus(-0.75))  # delta = (1 - 0.5) / 2


def test_gradients_at_the_reference():
    assert gradients_at_the_reference(NCALoss(0.4)) == pytest.approx((-0.1, 0.1))  # beta (1/2 - 1/4)
    assert gradients_at_the_reference(SPPOHardLoss(0.4)) == pytest.approx((-2.5, 2.5))  # 1 / beta
    assert gradients_at_the_reference(APOZeroLoss(0.4)) == pytest.approx((-0.1, 0.1))
    assert gradients_at_the_reference(APODownLoss(0.4)) == pytest.approx((0.0, 0.1))  # the chosen reply hangs still
    assert gradients_at_the_reference(BCOLoss(0.4)) == pytest.approx((-0.2, 0.2))


def test_nca_pushes_the_chosen_reply_up_to_ln_2_and_no_further():
    def pull(log_ratio):
        policy, reference = one_pair(log_ratio, 0.0), one_pair(0.0, 0.0)
        policy.chosen.requires_grad_()
        return torch.autograd.grad(NCALoss(1.0)(policy, reference).loss, policy.chosen)[0].item()

    assert pull(math.log(2)) == pytest.approx(0.0, abs=1e-12) and pull(0.5) < 0 < pull(0.9)


def test_the_population_pulls_a_reply_of_sppo_to_its_win_rate_less_a_half():
    """The unconstrained minimum over log-ratios, reply by reply: (p(y preferred) - 1/2) / beta."""
    world = ExactWorld(3, 2, lambda tokens: sum(math.sin(3 * x + n) for n, x in enumerate(tokens)), 0.7)
    drawn = world.pairs()
    log_ratio = torch.zeros_like(world.ref_logprobs, requires_grad=True)
    loss = world.population_loss(SPPOHardLoss(0.7), world.ref_logprobs + log_ratio, pairs=drawn)
    (gradient,) = torch.autograd.grad(loss, log_ratio, create_graph=True)
    curvature = torch.autograd.grad(gradient.sum(), log_ratio)[0]  # a separable square: its Hessian is diagonal
    mu, win = world.ref_logprobs.exp(), world.preferences()
    others = mu.expand(len(mu), -1) * (1 - torch.eye(len(mu), dtype=torch.float64))
    win_rate = (others * win).sum(1) / others.sum(1)  # against another draw from the reference
    torch.testing.assert_close((-gradient / curvature).detach(), (win_rate - 0.5) / 0.7)


# BCO's running mean


def test_delta_is_the_mean_of_all_rewards_seen_in_training():
    """Rewards of batch 1: 4, 2, 0, -2, mean 1. Of batch 2: 0, 0, -1, -3: the mean of the eight is 0."""
    loss = BCOLoss(1.0)
    loss(*two_pairs([4.0, 2.0], [0.0, -2.0]))
    assert loss.delta.value.item() == pytest.approx(1.0)
    second = two_pairs([0.0, 0.0], [-1.0, -3.0])
    value = loss(*second).loss.item()  # taken in first, then scored
    assert loss.delta.value.item() == pytest.approx(0.0)
    assert value == pytest.approx((2 * softplus(0) + softplus(-1) + softplus(-3)) / 2)


def test_delta_stands_still_in_evaluation():
    loss = BCOLoss(1.0)
    loss(*two_pairs([4.0, 2.0], [0.0, -2.0]))
    value = loss.eval()(*two_pairs([1.0, 1.0], [1.0, 1.0])).loss.item()
    assert loss.delta.value.item() == pytest.approx(1.0) and value == pytest.approx(2 * math.log(2))


def test_delta_weighs_pairs_as_the_loss_does():
    loss = BCOLoss(1.0)
    loss(*two_pairs([4.0, 2.0], [0.0, -2.0]), weight=torch.tensor([3.0, 1.0]))
    assert loss.delta.value.item() == pytest.approx((3 * 2 + 0) / 4)


@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: WithSFT(loss, 0.5)])
def test_a_resumed_loss_goes_on_from_the_same_delta(wrap):
    first, second = two_pairs([4.0, 2.0], [0.0, -2.0]), two_pairs([1.0, 5.0], [-1.0, 3.0])
    straight, stopped, resumed, forgetful = (wrap(BCOLoss(1.0)) for _ in range(4))
    straight(*first), stopped(*first)
    resumed.load_state_dict(stopped.state_dict())
    assert resumed(*second).loss == straight(*second).loss != forgetful(*second).loss


def test_delta_is_a_constant_for_the_gradient():
    """A chosen reply is pulled by -beta sigmoid(-(r - delta)) / P alone."""
    policy, reference = two_pairs([4.0, 2.0], [0.0, -2.0])
    policy.chosen.requires_grad_()
    (pull,) = torch.autograd.grad(BCOLoss(1.0)(policy, reference).loss, policy.chosen)
    assert pull.tolist() == pytest.approx([-sigmoid(-3) / 2, -sigmoid(-1) / 2])


def test_half_precision_is_upcast_before_it_is_summed():
    policy, reference = (x._replace(chosen=x.chosen.bfloat16(), rejected=x.rejected.bfloat16()) for x in
                         (random_pairs(), random_pairs()))  # fmt: skip
    loss = BCOLoss(1.0)
    loss(policy, reference)
    both = [x.chosen.double() + x.rejected.double() for x in (policy, reference)]
    assert loss.delta.value.item() == pytest.approx(((both[0] - both[1]).mean() / 2).item(), rel=1e-6)
