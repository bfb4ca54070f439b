"""What a loss says of itself is held against it both ways: claims that do not hold, and denials of what does."""

import math

import pytest
import torch.nn.functional as F

from alignlab.contracts import check
from alignlab.losses.anchored import BCOLoss, NCALoss
from alignlab.losses.preference import (
    DPOLoss,
    IPOLoss,
    PreferenceLoss,
    RobustDPOLoss,
    SimPOLoss,
    log_ratio_difference,
)
from alignlab.worlds.exact.world import ExactWorld
from tests.contracts.broken import Logistic
from tests.contracts.test_broken_losses import BETA, broken


def lies(loss: PreferenceLoss, **claims: object) -> set[str]:
    """The contracts broken once a right loss makes wrong claims."""
    for name, claim in claims.items():
        setattr(loss, name, claim)
    return broken(loss)


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("shift_invariant", False),
        ("antisymmetric", False),
        ("monotone", False),
        ("value_at_reference", None),
        ("value_at_reference", 0.5),
        ("optimum", None),
        ("optimum", "ipo"),
        ("optimum", "rlhf_under_flips"),
    ],
)
def test_a_right_loss_that_says_something_else_of_itself_is_caught(name: str, claim: object):
    assert lies(Logistic(BETA), **{name: claim}) == {name}


def test_a_claim_that_is_too_good_is_caught():
    assert lies(IPOLoss(BETA), monotone=True) == {"monotone"}
    assert lies(IPOLoss(BETA, length_normalized=True), shift_invariant=True) == {"shift_invariant"}
    assert lies(IPOLoss(BETA), optimum="rlhf") == {"optimum"}
    assert lies(DPOLoss(BETA, label_smoothing=0.1), optimum="rlhf") == {"optimum"}
    assert lies(DPOLoss(BETA, label_smoothing=0.1), optimum="rlhf_under_flips") == {"optimum"}  # it is robust DPO's
    assert lies(RobustDPOLoss(BETA, label_smoothing=0.1), optimum="rlhf") == {"optimum"}
    assert lies(SimPOLoss(2.0, gamma=0.5), value_at_reference=0.97) == {"value_at_reference"}
    assert lies(NCALoss(BETA), antisymmetric=True) == {"antisymmetric"}


def test_a_loss_that_denies_that_it_couples_rows_is_caught_and_one_that_needlessly_says_so():
    assert "batch" in lies(BCOLoss(BETA), batch_coupled=False)
    assert lies(Logistic(BETA), batch_coupled=True) == {"batch"}


def test_a_small_error_in_a_closed_form_is_seen_at_every_beta():
    """A label smoothing of one in ten thousand; at beta = 0.001 the optimum is one response, a KL sees nothing."""
    for beta in (0.001, 0.1, 5.0):
        loss = DPOLoss(beta, label_smoothing=1e-4)
        loss.optimum = "rlhf"
        assert broken(loss) == {"optimum"}
        assert broken(DPOLoss(beta)) == set()


def test_what_is_left_unsaid_is_told_and_not_held_against_the_loss():
    class Unsaid(PreferenceLoss):
        def per_pair(self, policy, reference):
            return F.softplus(-self.beta * log_ratio_difference(policy, reference))

    outcomes = {outcome.contract: outcome for outcome in check(Unsaid(BETA))}
    assert not any(outcome.violations for outcome in outcomes.values())
    assert outcomes["optimum"].remark == "not declared; in an exact world it is 'rlhf'"
    assert outcomes["value_at_reference"].remark.endswith("every pair costs 0.693147")


def test_the_value_at_the_reference_is_looked_at_in_the_exact_world_too(monkeypatch: pytest.MonkeyPatch):
    plain = ExactWorld.population_loss
    monkeypatch.setattr(ExactWorld, "population_loss", lambda *args, **given: 2 * plain(*args, **given))
    [outcome] = [outcome for outcome in check(Logistic(BETA)) if outcome.contract == "value_at_reference"]
    [violation] = outcome.violations
    assert "in the exact world, 1.38629" in violation.what and abs(violation.amount - math.log(2)) < 1e-12
