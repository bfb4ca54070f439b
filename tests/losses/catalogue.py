"""Every pairwise loss with its naive twin, and the pairs that they are tried on."""

from collections.abc import Callable
from typing import NamedTuple

import torch

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
    LengthNormalizedDPOLoss,
    NCALoss,
    ORPOLoss,
    PairLogprobs,
    PreferenceLoss,
    ReverseKL,
    RobustDPOLoss,
    SimPOLoss,
    SPPOHardLoss,
    UnpairedAOTLoss,
    WithSFT,
)
from tests.reference import losses as plain
from tests.reference import pairwise as twins
from tests.reference.pairwise import BatchTwin, mean_of

P = 48
LENGTHS = torch.randint(1, 20, (2, P), generator=torch.Generator().manual_seed(0))
METRICS = {"accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_logprob", "rejected_logprob"}
ALPHA = 0.4


class Case(NamedTuple):
    make: Callable[[], PreferenceLoss]
    twin: BatchTwin


CASES = {
    "dpo": Case(lambda: DPOLoss(0.3), mean_of(lambda p, r, n: plain.dpo(p, r, 0.3))),
    "cdpo": Case(lambda: DPOLoss(0.3, label_smoothing=0.2), mean_of(lambda p, r, n: plain.dpo(p, r, 0.3, 0.2))),
    "robust": Case(
        lambda: RobustDPOLoss(0.3, label_smoothing=0.2), mean_of(lambda p, r, n: plain.robust_dpo(p, r, 0.3, 0.2))
    ),
    "ipo": Case(lambda: IPOLoss(0.3), mean_of(lambda p, r, n: plain.ipo(p, r, 0.3))),
    "ipo per token": Case(
        lambda: IPOLoss(0.3, length_normalized=True), mean_of(lambda p, r, n: plain.ipo_per_token(p, r, 0.3, *n))
    ),
    "hinge": Case(lambda: HingeLoss(0.3), mean_of(lambda p, r, n: plain.hinge(p, r, 0.3))),
    "simpo": Case(lambda: SimPOLoss(2.0, gamma=0.7), mean_of(lambda p, r, n: plain.simpo(p, 2.0, 0.7, *n))),
    "dpo per token": Case(
        lambda: LengthNormalizedDPOLoss(2.0), mean_of(lambda p, r, n: twins.dpo_per_token(p, r, n, 2.0))
    ),
    "exo": Case(lambda: EXOLoss(0.3, label_smoothing=0.02), mean_of(lambda p, r, n: twins.exo(p, r, 0.3, 0.02))),
    "discopop": Case(lambda: DiscoPOPLoss(0.3), mean_of(lambda p, r, n: twins.discopop(p, r, 0.3, 0.05))),
    "discopop, wide": Case(lambda: DiscoPOPLoss(0.3, tau=0.8), mean_of(lambda p, r, n: twins.discopop(p, r, 0.3, 0.8))),
    "f-dpo, reverse kl": Case(
        lambda: FDivergenceDPOLoss(0.3, ReverseKL()), mean_of(lambda p, r, n: twins.f_dpo(p, r, 0.3, torch.log))
    ),
    "f-dpo, forward kl": Case(
        lambda: FDivergenceDPOLoss(0.3, ForwardKL()), mean_of(lambda p, r, n: twins.f_dpo(p, r, 0.3, lambda u: -1 / u))
    ),
    "f-dpo, js": Case(
        lambda: FDivergenceDPOLoss(0.3, JensenShannon()),
        mean_of(lambda p, r, n: twins.f_dpo(p, r, 0.3, lambda u: torch.log(2 * u / (1 + u)))),
    ),
    "f-dpo, alpha": Case(
        lambda: FDivergenceDPOLoss(0.3, AlphaDivergence(ALPHA)),
        mean_of(lambda p, r, n: twins.f_dpo(p, r, 0.3, lambda u: (1 - u**-ALPHA) / ALPHA)),
    ),
    "nca": Case(lambda: NCALoss(0.3), mean_of(lambda p, r, n: twins.nca(p, r, 0.3))),
    "sppo": Case(lambda: SPPOHardLoss(0.3), mean_of(lambda p, r, n: twins.sppo_hard(p, r, 0.3))),
    "apo zero": Case(lambda: APOZeroLoss(0.3), mean_of(lambda p, r, n: twins.apo_zero(p, r, 0.3))),
    "apo down": Case(lambda: APODownLoss(0.3), mean_of(lambda p, r, n: twins.apo_down(p, r, 0.3))),
    "bco": Case(lambda: BCOLoss(0.3), lambda p, r, n: twins.bco(p, r, n, 0.3)),
    "aot": Case(lambda: AOTLoss(0.3), lambda p, r, n: twins.aot(p, r, n, 0.3)),
    "aot unpaired": Case(lambda: UnpairedAOTLoss(0.3), lambda p, r, n: twins.aot_unpaired(p, r, n, 0.3)),
    "cpo": Case(lambda: CPOLoss(0.3, 0.5), mean_of(lambda p, r, n: twins.cpo(p, n, 0.3, 0.5, "token"))),
    "cpo per sequence": Case(
        lambda: CPOLoss(0.3, 0.5, nll_per="sequence"), mean_of(lambda p, r, n: twins.cpo(p, n, 0.3, 0.5, "sequence"))
    ),
    "cpo, bare": Case(lambda: CPOLoss(0.3, 0.0), mean_of(lambda p, r, n: twins.cpo(p, n, 0.3, 0.0, "token"))),
    "orpo": Case(lambda: ORPOLoss(0.3), mean_of(lambda p, r, n: twins.orpo(p, n, 0.3))),
    "nll": Case(lambda: ChosenNLL(0.3), mean_of(lambda p, r, n: twins.nll(p, n, "token"))),
    "dpo + sft": Case(
        lambda: WithSFT(DPOLoss(0.3), 0.7),
        mean_of(lambda p, r, n: plain.dpo(p, r, 0.3) + 0.7 * twins.nll(p, n, "token")),
    ),
    "simpo + sft": Case(
        lambda: WithSFT(SimPOLoss(2.0, gamma=0.7), 0.7, per="sequence"),
        mean_of(lambda p, r, n: plain.simpo(p, 2.0, 0.7, *n) + 0.7 * twins.nll(p, n, "sequence")),
    ),
    "bco + sft": Case(
        lambda: WithSFT(BCOLoss(0.3), 0.7),
        lambda p, r, n: twins.bco(p, r, n, 0.3) + 0.7 * mean_of(lambda p, r, n: twins.nll(p, n, "token"))(p, r, n),
    ),
}


def pairs(chosen: torch.Tensor, rejected: torch.Tensor, lengths: torch.Tensor = LENGTHS) -> PairLogprobs:
    """Log-probs with two rows of lengths (chosen, rejected)."""
    return PairLogprobs(chosen, rejected, lengths[0], lengths[1])


def random_pairs(scale: float = 4.0) -> PairLogprobs:
    """P pairs at up to `scale` nats per token, float64."""
    return pairs(*(-scale * torch.rand(2, P, dtype=torch.float64) * LENGTHS))


def near(x: PairLogprobs, scale: float = 3.0) -> PairLogprobs:
    """The same replies under a model a few nats away, so that log-ratios are of the size they have in training."""
    chosen, rejected = (y + scale * torch.randn(P, dtype=torch.float64) for y in (x.chosen, x.rejected))
    return x._replace(chosen=chosen.clamp(max=-0.05), rejected=rejected.clamp(max=-0.05))  # they are log-probs


def one_pair(chosen: float, rejected: float) -> PairLogprobs:
    """One pair of 4 and 8 tokens."""
    lengths = torch.tensor([[4], [8]])
    return pairs(*torch.tensor([[chosen], [rejected]], dtype=torch.float64), lengths)
