"""Broken losses: each is caught by the contract that is meant to catch it, with a message that says so."""

import re

import pytest
from torch import nn

from alignlab.contracts import check
from alignlab.contracts.finding import Violation
from alignlab.losses.preference import PreferenceLoss
from alignlab.losses.unpaired import KTOLoss, UnpairedBCOLoss
from tests.contracts import broken as spoilt

BETA = 0.3


def violations(loss: nn.Module) -> list[Violation]:
    return [violation for outcome in check(loss) for violation in outcome.violations]


def broken(loss: nn.Module) -> set[str]:
    return {violation.contract for violation in violations(loss)}


CAUGHT_BY_ONE = [  # the contract, and a word of what it says
    (spoilt.ExpOverflows, "finite", "gradient of policy_chosen"),
    (spoilt.LogOfSigmoid, "finite", "logsigmoid"),
    (spoilt.MetricAttached, "metrics", "hold on to the graph \\(raw\\)"),
    (spoilt.RewardsLopsided, "antisymmetric", "treats the two replies differently"),
    (spoilt.ReferenceReadAllTheSame, "needs_reference", "set needs_reference = True"),
    (spoilt.LengthCounted, "shift_invariant", "a length divides the log-probs"),
    (spoilt.RewardsForgotten, "antisymmetric", "implied_rewards was not overridden"),
    (spoilt.ValueOfAnotherBeta, "value_at_reference", "a pair costs 2.77778, off by: 0.889"),
    (spoilt.BetaTwice, "optimum", "ref exp\\(r / beta\\) / Z by: 0.4"),
    (spoilt.FormUnknown, "optimum", "closed forms are rlhf, ipo"),
    (spoilt.WeightIgnored, "labels", "ignores preference or weight"),
    (spoilt.LabelUnknown, "labels", "unexpected keyword argument 'preference'"),
    (spoilt.CoupledAndDeaf, "labels", "without a ConfigError"),
]
CAUGHT_BY_SEVERAL = [  # the one that is meant to, first
    (spoilt.SumForMean, ["batch", "padding", "labels"], "a sum stands where a mean belongs"),
    (spoilt.SignFlipped, ["monotone", "optimum"], "chosen and rejected are mixed up"),
    (spoilt.ReferenceIgnored, ["needs_reference", "antisymmetric"], "never reads reference"),
    (spoilt.BatchMeanSubtracted, ["batch", "padding", "per_pair", "labels", "optimum"], "a statistic of the batch"),
    (spoilt.NeighbourCompared, ["batch", "padding", "per_pair", "labels"], "compared with their neighbours"),
    (spoilt.RunningBaseline, ["batch", "padding"], "running state"),
    (spoilt.MetricUnderIf, ["metrics", "batch"], "some steps only \\(lost\\)"),
    (spoilt.MetricOfTheBatch, ["batch", "labels"], "a metric is not a mean over rows"),
    (spoilt.MetricIsAVector, ["metrics"], "not scalar tensors \\(margins\\)"),
    (spoilt.LossIsAVector, ["metrics"], "instead of their mean"),
    (spoilt.Downcast, ["gradcheck", "optimum"], "a cast to float32 inside"),
    (spoilt.RejectedDetached, ["gradcheck", "optimum"], "detach"),
    (spoilt.HalfInside, ["precision", "gradcheck", "batch"], "without autocast_off and upcast"),
    (spoilt.ForwardIsElse, ["per_pair", "batch", "padding", "labels"], "something else than the mean of per_pair"),
    (spoilt.SFTTermUndeclared, ["shift_invariant", "antisymmetric"], "an SFT term"),
]


@pytest.mark.parametrize(("loss", "contract", "says"), CAUGHT_BY_ONE)
def test_a_broken_loss_is_caught_by_its_contract_alone(loss: type[PreferenceLoss], contract: str, says: str):
    found = violations(loss(BETA))
    assert {violation.contract for violation in found} == {contract}
    assert any(re.search(says, str(violation)) for violation in found), found


@pytest.mark.parametrize(("loss", "contracts", "says"), CAUGHT_BY_SEVERAL)
def test_a_broken_loss_is_caught(loss: type[PreferenceLoss], contracts: list[str], says: str):
    found = violations(loss(BETA))
    assert set(contracts) <= {violation.contract for violation in found}
    assert any(re.search(says, str(violation)) for violation in found if violation.contract == contracts[0]), found


def test_a_downcast_is_told_in_bits_too():
    assert any(
        "bits lost" in violation.what and violation.amount == 32 for violation in violations(spoilt.Downcast(BETA))
    )


def test_what_the_broken_ones_were_made_from_is_right():
    assert broken(spoilt.Logistic(BETA)) == set()


def test_a_violation_says_what_broke_by_how_much_and_the_usual_cause():
    [violation] = violations(spoilt.BetaTwice(BETA))
    assert str(violation).startswith(
        "optimum: the minimum over all pairs of an exact world misses ref exp(r / beta) / Z by: "
    )
    assert violation.amount > 0.1 and violation.allowed == "at most 1e-09"
    assert "Usual cause: beta stands at another place than in DPO" in str(violation)


@pytest.mark.parametrize(
    ("loss", "contract"),
    [
        (spoilt.LabelsIgnored(BETA), "declared inputs"),
        (spoilt.KLUnread(BETA), "declared inputs"),
        (spoilt.KLReadAllTheSame(BETA), "declared inputs"),
        (spoilt.ReferenceUnread(BETA), "declared inputs"),
        (spoilt.ScoresOverflow(), "finite"),
        (spoilt.ScoresUnweighted(), "labels"),
        (spoilt.MetricOverPadding(), "masked positions"),
        (spoilt.MaskMultiplied(), "masked positions"),
        (spoilt.MeanOverAll(), "batch"),
        (spoilt.NormalizerIgnored(0.2), "normalizer"),
        (spoilt.BonusPerBatch(0.2), "normalizer"),
        (spoilt.AdvantageUnmasked(0.2), "masked positions"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else x,
)
def test_other_kinds_of_losses_are_caught_too(loss: nn.Module, contract: str):
    assert contract in broken(loss)


def test_wrong_values_of_unpaired_losses_are_caught():
    loss = KTOLoss(BETA)
    loss.value_at_reference = 1.0
    assert broken(loss) == {"value_at_reference"}
    loss = KTOLoss(BETA, desirable_weight=2.0)
    loss.value_at_reference = 0.5
    assert broken(loss) == {"value_at_reference"}
    loss = UnpairedBCOLoss(BETA)
    loss.value_at_reference = None  # set on purpose, and not true
    assert broken(loss) == {"value_at_reference"}
    for loss in (KTOLoss(BETA), UnpairedBCOLoss(BETA)):
        loss.batch_coupled = False
        assert "batch" in broken(loss)


def test_what_an_unpaired_loss_says_of_its_coupling_is_held_against_it():
    loss = KTOLoss(BETA)
    loss.coupled_by_kl_alone = False  # and nobody could cut its batch
    [violation] = violations(loss)
    assert violation.contract == "coupling" and "declare coupled_by_kl_alone = True" in violation.usual_cause
    [violation] = violations(spoilt.BaselineOfTheBatch(BETA))
    assert violation.contract == "coupling" and "set coupled_by_kl_alone = False" in violation.usual_cause
    loss = UnpairedBCOLoss(BETA)
    loss.coupled_by_kl_alone = True
    assert broken(loss) == {"coupling"}
