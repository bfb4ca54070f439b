"""Bradley-Terry: ln 2 at equality, a margin, a centre, and finite gradients at any distance."""

import math

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.losses import BradleyTerryLoss
from tests.reference import losses as twins
from tests.reference.check import DTYPES, assert_close, assert_like_twin


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("margin", "center"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.01), (1.0, 0.1)])
def test_bradley_terry_equals_the_twin(dtype, margin, center):
    loss = BradleyTerryLoss(margin=margin, center=center)
    assert_like_twin(
        lambda c, r: (loss(c, r).loss,),
        lambda c, r: (twins.bradley_terry(c, r, margin, center),),
        2 * torch.randn(47),
        2 * torch.randn(47),
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_soft_labels_and_weights_equal_a_loop_over_both_orders_of_each_pair(dtype, margin):
    preference, weight = torch.rand(31).tolist(), (0.1 + 3 * torch.rand(31)).tolist()
    preference[:3] = [0.0, 1.0, 0.5]
    hard = BradleyTerryLoss(margin=margin, center=0.05)

    def twin(chosen, rejected):
        total = 0.0
        for i, (p, w) in enumerate(zip(preference, weight, strict=True)):
            c, r = chosen[i : i + 1], rejected[i : i + 1]
            total = total + w * (p * hard(c, r).loss + (1 - p) * hard(r, c).loss)
        return (total / sum(weight),)

    labels = {"preference": torch.tensor(preference), "weight": torch.tensor(weight)}
    scores = 2 * torch.randn(31), 2 * torch.randn(31)
    assert_like_twin(lambda c, r: (hard(c, r, **labels).loss,), twin, *scores, dtype=dtype)


def test_metrics_under_soft_labels_and_weights_by_hand():
    """Gaps 2 and -1; preferences 0.75 and 0; weights 1 and 3."""
    metrics = BradleyTerryLoss()(
        torch.tensor([2.0, 0.0]),
        torch.tensor([0.0, 1.0]),
        preference=torch.tensor([0.75, 0.0]),
        weight=torch.tensor([1.0, 3.0]),
    ).metrics
    assert {key: value.item() for key, value in metrics.items()} == {
        "accuracy": (0.75 + 3) / 4,
        "margin": (0.75 * 2 - 0.25 * 2 + 3 * 1) / 4,
        "chosen_score": (0.75 * 2 + 3 * 1) / 4,
        "rejected_score": 0.25 * 2 / 4,
    }


def test_equal_scores_cost_ln_2_and_pull_by_a_half():
    chosen, rejected = (torch.full((1,), 0.7, requires_grad=True) for _ in range(2))
    loss = BradleyTerryLoss()(chosen, rejected).loss
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert chosen.grad.item() == pytest.approx(-0.5) and rejected.grad.item() == pytest.approx(0.5)


def test_swapping_a_pair_negates_its_gradients_at_equality_and_shares_one_pull_elsewhere():
    """sigmoid(-d) + sigmoid(d) = 1: the pulls of the two labels on one pair add up to 1 whatever the scores."""
    a, b = torch.tensor([0.3]), torch.tensor([1.9])

    def pull(chosen, rejected):
        chosen = chosen.clone().requires_grad_()
        BradleyTerryLoss()(chosen, rejected).loss.backward()
        return -chosen.grad.item()

    assert pull(a, b) + pull(b, a) == pytest.approx(1.0)
    assert pull(a, a) == pytest.approx(0.5)


def test_the_centre_alone_fixes_the_level():
    scores = torch.tensor([1.0, 2.0]), torch.tensor([0.0, -1.0])
    shifted = [x + 10 for x in scores]
    assert_close(BradleyTerryLoss()(*scores).loss, BradleyTerryLoss()(*shifted).loss)
    # (1 + 0)^2 = 1 and (2 - 1)^2 = 1, against 21^2
    plain = BradleyTerryLoss()(*scores).loss
    assert_close(BradleyTerryLoss(center=0.1)(*scores).loss, plain + 0.1)
    assert_close(BradleyTerryLoss(center=0.1)(*shifted).loss, plain + 44.1)


def test_a_margin_asks_for_a_gap():
    chosen, rejected = torch.tensor([1.5]), torch.tensor([0.5])
    assert BradleyTerryLoss(margin=1.0)(chosen, rejected).loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("gap", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_scores_keep_finite_gradients(gap, dtype):
    chosen, rejected = torch.tensor([gap], dtype=dtype, requires_grad=True), torch.zeros(1, dtype=dtype)
    loss = BradleyTerryLoss()(chosen, rejected).loss
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(max(0, -float(chosen.detach())))
    assert chosen.grad.item() == (0.0 if gap > 0 else -1.0)


def test_metrics_worked_by_hand():
    chosen = torch.tensor([1.0, 2.0, 0.0, 5.0], requires_grad=True)
    metrics = BradleyTerryLoss()(chosen, torch.tensor([0.0, 3.0, 0.0, 1.0])).metrics
    assert {key: value.item() for key, value in metrics.items()} == {
        "accuracy": 0.625,  # right, wrong, a tie that counts half, right
        "margin": 1.0,
        "chosen_score": 2.0,
        "rejected_score": 1.0,
    }
    assert all(x.ndim == 0 and not x.requires_grad for x in metrics.values())


@pytest.mark.parametrize("settings", [{"margin": -1.0}, {"center": -0.1}, {"center": math.nan}])
def test_impossible_settings_are_config_errors(settings):
    with pytest.raises(ConfigError, match=f"BradleyTerryLoss: {next(iter(settings))}"):
        BradleyTerryLoss(**settings)
