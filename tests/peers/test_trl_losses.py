"""Same inputs, same number as TRL 1.16, and the same gradients; where we differ on purpose, by exactly what."""

import pytest
import torch

pytest.importorskip("trl", reason="needs the extra `peers`")

from alignlab.batches import IGNORE
from alignlab.kernels.logprobs import token_logprobs
from alignlab.losses import (
    AlphaDivergence,
    AOTLoss,
    APODownLoss,
    APOZeroLoss,
    BCOLoss,
    ChosenNLL,
    CPOLoss,
    DiscoPOPLoss,
    DPOLoss,
    EXOLoss,
    FDivergenceDPOLoss,
    ForwardKL,
    HingeLoss,
    IPOLoss,
    JensenShannon,
    KTOLoss,
    LengthNormalizedDPOLoss,
    NCALoss,
    ORPOLoss,
    PairLogprobs,
    RobustDPOLoss,
    SimPOLoss,
    SPPOHardLoss,
    UnpairedAOTLoss,
    UnpairedLogprobs,
    WithSFT,
)
from alignlab.methods.dpo import pair_logprobs
from tests.peers.trl_trainers import PROMPT, Replies, cpo_loss, dpo_loss, kto_loss, orpo_loss, replies

CLOSE = {"rtol": 2e-5, "atol": 2e-6}
LENGTHS = [5, 1, 9, 3, 7, 2, 4, 6]  # 4 chosen, 4 rejected
ALIKE = [5] * 8

DPO_CASES = {  # TRL's settings beside beta = 0.3, and our loss
    "sigmoid": ({}, DPOLoss(0.3)),
    "hinge": ({"loss_types": ["hinge"]}, HingeLoss(0.3)),
    "robust": ({"loss_types": ["robust"], "label_smoothing": 0.1}, RobustDPOLoss(0.3, 0.1)),
    "exo_pair": ({"loss_types": ["exo_pair"], "label_smoothing": 0.01}, EXOLoss(0.3, 0.01)),
    "nca_pair": ({"loss_types": ["nca_pair"]}, NCALoss(0.3)),
    "sppo_hard": ({"loss_types": ["sppo_hard"]}, SPPOHardLoss(0.3)),
    "aot": ({"loss_types": ["aot"]}, AOTLoss(0.3)),
    "aot_unpaired": ({"loss_types": ["aot_unpaired"]}, UnpairedAOTLoss(0.3)),
    "apo_zero": ({"loss_types": ["apo_zero"]}, APOZeroLoss(0.3)),
    "apo_down": ({"loss_types": ["apo_down"]}, APODownLoss(0.3)),
    "discopop": ({"loss_types": ["discopop"]}, DiscoPOPLoss(0.3, tau=0.05)),
    "sigmoid_norm": ({"loss_types": ["sigmoid_norm"]}, LengthNormalizedDPOLoss(0.3)),
    "forward_kl": ({"f_divergence_type": "forward_kl"}, FDivergenceDPOLoss(0.3, ForwardKL())),
    "js_divergence": ({"f_divergence_type": "js_divergence"}, FDivergenceDPOLoss(0.3, JensenShannon())),
    # its alpha is 1 minus the paper's, which is ours
    "alpha_divergence": (
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.6},
        FDivergenceDPOLoss(0.3, AlphaDivergence(0.4)),
    ),
    # the paper's IPO sums; TRL's takes each log-ratio per token
    "ipo": ({"loss_types": ["ipo"]}, IPOLoss(0.3, length_normalized=True)),
    # TRL has no delta: BCO before it has seen a training batch
    "bco_pair": ({"loss_types": ["bco_pair"]}, BCOLoss(0.3).eval()),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def reference_of(policy: Replies) -> PairLogprobs:
    """Sums of a model a few nats away."""
    chosen, rejected = (policy.logprobs.detach().sum(1) + 2 * torch.randn(len(policy.mask))).chunk(2)
    return PairLogprobs(chosen, rejected, *policy.mask.sum(1).chunk(2))


def both(policy: Replies, reference: PairLogprobs, ours, **settings):
    """Our loss and TRL's, each with its gradient to the log-probs of the tokens."""
    policy.logprobs.requires_grad_()
    losses = (
        ours(pair_logprobs(policy.logprobs, policy.mask), reference).loss,
        dpo_loss(policy, reference.chosen, reference.rejected, **settings),
    )
    return [(loss, torch.autograd.grad(loss, policy.logprobs)[0] * policy.mask) for loss in losses]


@pytest.mark.parametrize("name", DPO_CASES)
def test_the_losses_of_the_dpo_trainer(name):
    settings, loss = DPO_CASES[name]
    policy = replies(LENGTHS)
    (ours, gradient), (theirs, their_gradient) = both(policy, reference_of(policy), loss, **settings)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    torch.testing.assert_close(gradient, their_gradient, **CLOSE)
    assert gradient.abs().max() > 1e-4


def test_ipo_sums_here_and_averages_there():
    """The same number where every reply is one token; else TRL's is ours with each log-ratio divided by its length."""
    one_token = replies([1] * 8)
    (ours, _), (theirs, _) = both(one_token, reference_of(one_token), IPOLoss(0.3), loss_types=["ipo"])
    torch.testing.assert_close(ours, theirs, **CLOSE)
    policy = replies(LENGTHS)
    reference = reference_of(policy)
    sums = pair_logprobs(policy.logprobs, policy.mask)
    per_token = [
        x._replace(chosen=x.chosen / x.chosen_length, rejected=x.rejected / x.rejected_length)
        for x in (sums, reference)
    ]
    theirs = dpo_loss(policy, reference.chosen, reference.rejected, loss_types=["ipo"])
    torch.testing.assert_close(IPOLoss(0.3)(*per_token).loss, theirs, **CLOSE)
    assert (IPOLoss(0.3)(sums, reference).loss - theirs).abs() > 1


def test_bco_has_a_running_mean_here_and_none_there():
    """Ours is TRL's against a reference whose log-probs are delta / beta higher."""
    policy, loss = replies(LENGTHS), BCOLoss(0.3)
    reference = reference_of(policy)
    reference = reference._replace(chosen=reference.chosen - 3, rejected=reference.rejected - 3)
    ours = loss(pair_logprobs(policy.logprobs, policy.mask), reference).loss
    shift = loss.delta.value.float() / 0.3
    theirs = dpo_loss(policy, reference.chosen + shift, reference.rejected + shift, loss_types=["bco_pair"])
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert (ours - dpo_loss(policy, reference.chosen, reference.rejected, loss_types=["bco_pair"])).abs() > 1e-2


def test_the_sft_term_weighs_replies_alike_here_and_tokens_alike_there():
    """The same number for chosen replies of one length; else TRL's is ours with the lengths as weights."""
    mixed = {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    alike = replies(ALIKE)
    (ours, gradient), (theirs, their_gradient) = both(alike, reference_of(alike), WithSFT(DPOLoss(0.3), 0.5), **mixed)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    torch.testing.assert_close(gradient, their_gradient, **CLOSE)
    policy = replies(LENGTHS)
    sums = pair_logprobs(policy.logprobs, policy.mask)
    term = dpo_loss(policy, sums.chosen, sums.rejected, loss_types=["sft"])
    by_length = ChosenNLL(0.3)(sums, weight=sums.chosen_length.float()).loss
    torch.testing.assert_close(by_length, term, **CLOSE)
    assert (ChosenNLL(0.3)(sums).loss - term).abs() > 1e-3


@pytest.mark.parametrize("above", [2.0, -2.0], ids=["kl above 0", "kl below 0"])
@pytest.mark.parametrize(
    "labels", [[1, 0, 1, 1, 0, 0, 1, 0], [1] * 8, [0] * 8], ids=["both", "desirable", "undesirable"]
)
def test_kto(above, labels):
    policy, mismatched, desirable = replies(LENGTHS), replies(LENGTHS[::-1]), torch.tensor(labels, dtype=torch.bool)
    reference = policy.logprobs.sum(1) + 2 * torch.randn(8)
    mismatched_reference = mismatched.logprobs.sum(1) - above + 0.3 * torch.randn(8)
    policy.logprobs.requires_grad_()
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    lengths = policy.mask.sum(1)
    ours = KTOLoss(0.3, **weights)(
        UnpairedLogprobs(policy.logprobs.sum(1), lengths, desirable),
        UnpairedLogprobs(reference, lengths, desirable),
        kl_policy=mismatched.logprobs.sum(1),
        kl_reference=mismatched_reference,
    ).loss
    theirs = kto_loss(policy, reference, desirable, mismatched, mismatched_reference, **weights)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    gradient, their_gradient = (torch.autograd.grad(x, policy.logprobs)[0] * policy.mask for x in (ours, theirs))
    torch.testing.assert_close(gradient, their_gradient, **CLOSE)


# the trainers without a reference start from logits


def sequences(lengths):
    """Logits, ids, labels of 2P sequences, and our sums of them."""
    mask = replies(lengths).mask
    ids = torch.randint(1, 11, (len(mask), mask.shape[1] + 1))
    labels = torch.where(torch.cat([torch.zeros(len(mask), 1, dtype=torch.bool), mask], 1), ids, IGNORE)
    logits = 2 * torch.randn(*ids.shape, 11)
    return logits, ids, labels, pair_logprobs(token_logprobs(logits[:, :-1], labels[:, 1:]), mask)


def test_simpo():
    *given, sums = sequences(LENGTHS)
    theirs, _ = cpo_loss(*given, loss_type="simpo", beta=2.0, simpo_gamma=0.7, cpo_alpha=0.0)
    torch.testing.assert_close(SimPOLoss(2.0, gamma=0.7)(sums).loss, theirs, **CLOSE)


def test_the_contrast_of_cpo_sums():
    *given, sums = sequences(LENGTHS)
    theirs, _ = cpo_loss(*given, cpo_alpha=0.0)
    torch.testing.assert_close(CPOLoss(0.3, 0.0)(sums).loss, theirs, **CLOSE)


def test_conservative_dpo_is_what_cpo_calls_label_smoothing():
    """With a reference that gives every reply the same (TRL's DPO trainer has no label smoothing of its own)."""
    *given, sums = sequences(LENGTHS)
    theirs, _ = cpo_loss(*given, cpo_alpha=0.0, label_smoothing=0.1)
    nothing = sums._replace(chosen=torch.zeros(4), rejected=torch.zeros(4))
    torch.testing.assert_close(DPOLoss(0.3, label_smoothing=0.1)(sums, nothing).loss, theirs, **CLOSE)


def test_the_likelihood_of_cpo_weighs_replies_alike_here_and_tokens_alike_there():
    """The same loss for chosen replies of one length; else TRL's term is ours with the lengths as weights."""
    *given, sums = sequences(ALIKE)
    torch.testing.assert_close(CPOLoss(0.3, 0.5)(sums).loss, cpo_loss(*given, cpo_alpha=0.5)[0], **CLOSE)
    *given, sums = sequences(LENGTHS)
    _, metrics = cpo_loss(*given)
    by_length = ChosenNLL(0.3)(sums, weight=sums.chosen_length.float()).loss
    assert by_length.item() == pytest.approx(metrics["nll_loss"], rel=1e-5)
    assert ChosenNLL(0.3)(sums).loss.item() != pytest.approx(metrics["nll_loss"], rel=1e-3)


def test_orpo_leaves_the_prompt_out_here_and_counts_it_there():
    """The odds-ratio term is the same number; TRL's likelihood term is that of all tokens, the prompt's included."""
    logits, ids, labels, sums = sequences(LENGTHS)
    theirs, metrics = orpo_loss(logits, ids, labels, beta=0.3)
    ours = ORPOLoss(0.3)(sums).loss - ChosenNLL(0.3)(sums).loss
    torch.testing.assert_close(ours, theirs - metrics["nll_loss"], **CLOSE)
    every_token = labels.clone()
    every_token[:, 1:PROMPT] = ids[:, 1:PROMPT]
    mask = every_token[:, 1:] != IGNORE
    whole = pair_logprobs(token_logprobs(logits[:, :-1], every_token[:, 1:]), mask)
    by_length = ChosenNLL(0.3)(whole, weight=whole.chosen_length.float()).loss
    assert by_length.item() == pytest.approx(metrics["nll_loss"], rel=1e-5)
