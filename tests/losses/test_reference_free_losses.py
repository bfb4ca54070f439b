"""CPO, ORPO and the likelihood term: numbers by hand, what is summed and what is averaged."""

import math

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.losses import (
    AOTLoss,
    ChosenNLL,
    CPOLoss,
    DPOLoss,
    IPOLoss,
    ORPOLoss,
    SFTLoss,
    SimPOLoss,
    WithSFT,
)
from tests.losses.catalogue import P, near, one_pair, pairs, random_pairs
from tests.reference.check import assert_close


def softplus(x):
    return math.log(1 + math.exp(x))


def test_cpo_worked_by_hand():
    """Log-probs -8 over 4 tokens and -17 over 8: a margin of 4.5 at beta 0.5, and 2 nats per chosen token."""
    pair = one_pair(-8.0, -17.0)
    assert CPOLoss(0.5, 0.5)(pair).loss.item() == pytest.approx(softplus(-4.5) + 1.0)
    assert CPOLoss(0.5, 0.5, nll_per="sequence")(pair).loss.item() == pytest.approx(softplus(-4.5) + 4.0)
    assert CPOLoss(0.5, 0.0)(pair).loss.item() == pytest.approx(softplus(-4.5))


def test_cpo_is_dpo_against_a_uniform_reference_and_a_likelihood_term():
    policy = random_pairs()
    nothing = policy._replace(chosen=torch.zeros(P), rejected=torch.zeros(P))
    assert_close(CPOLoss(0.3, 0.0)(policy).loss, DPOLoss(0.3)(policy, nothing).loss)
    assert_close(CPOLoss(0.3, 0.7)(policy).loss, WithSFT(DPOLoss(0.3), 0.7)(policy, nothing).loss)


def test_orpo_worked_by_hand():
    """0.8 per token against 0.5: odds 4 and 1, so -log sigmoid(log 4) = ln 1.25, which is also the NLL per token."""
    pair = one_pair(4 * math.log(0.8), 8 * math.log(0.5))
    out = ORPOLoss(0.3)(pair)
    assert out.loss.item() == pytest.approx(1.3 * math.log(1.25))
    assert out.metrics["chosen_reward"].item() == pytest.approx(math.log(4))
    assert out.metrics["margin"].item() == pytest.approx(math.log(4))


def test_a_token_that_is_certain_has_finite_odds():
    """At a log-prob of 0 the odds are those of -1e-6 per token: log 1e6."""
    pair = one_pair(0.0, -8.0)
    pair.chosen.requires_grad_()
    out = ORPOLoss(0.3)(pair)
    assert out.metrics["chosen_reward"].item() == pytest.approx(math.log(1e6), abs=1e-5)
    (pull,) = torch.autograd.grad(out.loss, pair.chosen)
    assert pull.item() == pytest.approx(-1 / 4)  # the likelihood term's alone


def test_long_replies_count_more_per_sequence_and_alike_per_token():
    """Saying every token twice doubles the one and leaves the other."""
    once = random_pairs()
    twice = type(once)(*(2 * column for column in once))
    assert_close(ChosenNLL(0.1, "sequence")(twice).loss, 2 * ChosenNLL(0.1, "sequence")(once).loss)
    assert_close(ChosenNLL(0.1, "token")(twice).loss, ChosenNLL(0.1, "token")(once).loss)


def test_per_token_with_lengths_as_weights_is_supervised_fine_tuning_on_all_chosen_tokens():
    """The mean over the batch's tokens, as `SFTLoss` and some libraries take it."""
    per_token = [torch.randn(length) for length in (3, 7, 5)]
    chosen, lengths = torch.stack([x.sum() for x in per_token]), torch.tensor([[3, 7, 5], [1, 1, 1]])
    nll = ChosenNLL(0.1, "token")(pairs(chosen, torch.zeros(3), lengths), weight=lengths[0].float())
    padded = torch.nn.utils.rnn.pad_sequence(per_token, batch_first=True)
    mask = torch.arange(7) < lengths[0].unsqueeze(1)
    torch.testing.assert_close(nll.loss, SFTLoss()(padded, mask).loss)


@pytest.mark.parametrize("loss", [DPOLoss(0.5), IPOLoss(0.5), SimPOLoss(2.0, 0.5), AOTLoss(0.5)])
def test_the_term_is_added_and_the_rest_is_the_loss_it_is_added_to(loss):
    reference = random_pairs()
    policy = near(reference)
    summed, plain = WithSFT(loss, 0.25)(policy, reference), loss(policy, reference)
    assert_close(summed.loss, plain.loss + 0.25 * (-policy.chosen / policy.chosen_length).mean())
    assert all(torch.equal(summed.metrics[name], plain.metrics[name]) for name in plain.metrics)
    wrapped = WithSFT(loss, 0.25)
    assert wrapped.beta == loss.beta and wrapped.needs_reference == loss.needs_reference
    assert wrapped.monotone == loss.monotone and wrapped.batch_coupled == loss.batch_coupled


def test_a_soft_label_mixes_the_likelihood_of_both_replies():
    """-8 over 4 tokens with probability 3/4, -17 over 8 with 1/4."""
    pair = one_pair(-8.0, -17.0)
    nll = ChosenNLL(0.1)(pair, preference=torch.tensor([0.75])).loss
    assert nll.item() == pytest.approx(0.75 * 2 + 0.25 * 17 / 8)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: CPOLoss(0.1, -1.0), "CPOLoss: nll_coefficient"),
        (lambda: CPOLoss(0.1, 1.0, nll_per="reply"), "CPOLoss: per='reply'"),
        (lambda: WithSFT(DPOLoss(0.1), 0.0), "WithSFT: coefficient"),
        (lambda: WithSFT(DPOLoss(0.1), 1.0, per="batch"), "ChosenNLL: per='batch'"),
        (lambda: ORPOLoss(-0.1), "ORPOLoss: beta"),
    ],
)
def test_impossible_settings_are_config_errors(make, name):
    with pytest.raises(ConfigError, match=name):
        make()
