"""AOT: what sorting does, by hand and against DPO."""

import math

import pytest
import torch

from alignlab.losses import AOTLoss, DPOLoss, UnpairedAOTLoss
from tests.losses.catalogue import P, near, pairs, random_pairs
from tests.reference.check import assert_close


def batch(chosen, rejected):
    lengths = torch.ones(2, len(chosen), dtype=torch.int64)
    return pairs(torch.tensor(chosen), torch.tensor(rejected), lengths)


def softplus(x):
    return math.log(1 + math.exp(x))


def test_paired_aot_worked_by_hand():
    """Policy margins 5 and 1, reference margins 0 and 2: sorted, they differ by 1 and 3; pair by pair by 5 and -1."""
    policy, reference = batch([5.0, 1.0], [0.0, 0.0]), batch([0.0, 2.0], [0.0, 0.0])
    assert AOTLoss(1.0)(policy, reference).loss.item() == pytest.approx((softplus(-1) + softplus(-3)) / 2)
    assert DPOLoss(1.0)(policy, reference).loss.item() == pytest.approx((softplus(1) + softplus(-5)) / 2)
    # what is logged is about pairs, not about ranks
    assert AOTLoss(1.0)(policy, reference).metrics["accuracy"].item() == 0.5


def test_unpaired_aot_worked_by_hand():
    """Log-ratios 2 and -1 of chosen, -3 and 0 of rejected: sorted, they differ by 2 and 2; pair by pair by 5 and -1."""
    policy, reference = batch([2.0, -1.0], [-3.0, 0.0]), batch([0.0, 0.0], [0.0, 0.0])
    assert UnpairedAOTLoss(1.0)(policy, reference).loss.item() == pytest.approx(softplus(-2))


@pytest.mark.parametrize("loss", [AOTLoss(0.3), UnpairedAOTLoss(0.3)])
def test_a_batch_of_one_is_dpo(loss):
    reference = random_pairs()
    policy = near(reference)
    one = [type(x)(*(column[:1] for column in x)) for x in (policy, reference)]
    assert_close(loss(*one).loss, DPOLoss(0.3)(*one).loss)


def test_unpaired_aot_does_not_see_which_replies_belong_together_and_paired_aot_does():
    reference = random_pairs()
    policy, order = near(reference), torch.randperm(P)

    def reshuffled(x):
        return x._replace(rejected=x.rejected[order], rejected_length=x.rejected_length[order])

    for loss, blind in ((UnpairedAOTLoss(0.3), True), (AOTLoss(0.3), False)):
        gap = loss(reshuffled(policy), reshuffled(reference)).loss - loss(policy, reference).loss
        assert (gap.abs() < 1e-12) == blind


def test_sorting_is_the_cheapest_matching():
    """Convex costs of a difference are least for sorted samples, so AOT is at most DPO on shuffled margins."""
    reference = random_pairs()
    policy = near(reference)
    assert AOTLoss(0.3)(policy, reference).loss < DPOLoss(0.3)(policy, reference).loss
