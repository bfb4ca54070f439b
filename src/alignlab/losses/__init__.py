"""Losses: tensors in, `LossOutput(loss, metrics)` out. No model, tokenizer, config or rank inside."""

from alignlab.losses.anchored import APODownLoss, APOZeroLoss, BCOLoss, NCALoss, SPPOHardLoss
from alignlab.losses.base import LossOutput
from alignlab.losses.f_divergence import AlphaDivergence, FDivergenceDPOLoss, ForwardKL, JensenShannon, ReverseKL
from alignlab.losses.margin import DiscoPOPLoss, EXOLoss, LengthNormalizedDPOLoss
from alignlab.losses.ordering import AOTLoss, UnpairedAOTLoss
from alignlab.losses.policy import PPOPolicyLoss, ValueLoss
from alignlab.losses.preference import (
    DPOLoss,
    HingeLoss,
    IPOLoss,
    PairLogprobs,
    PreferenceLoss,
    RobustDPOLoss,
    SimPOLoss,
)
from alignlab.losses.reference_free import CPOLoss, ORPOLoss
from alignlab.losses.reward import BradleyTerryLoss
from alignlab.losses.sft import SFTLoss
from alignlab.losses.sft_term import ChosenNLL, WithSFT
from alignlab.losses.unpaired import KTOLoss, UnpairedBCOLoss, UnpairedLogprobs, UnpairedLoss

__all__ = [
    "AOTLoss",
    "APODownLoss",
    "APOZeroLoss",
    "AlphaDivergence",
    "BCOLoss",
    "BradleyTerryLoss",
    "CPOLoss",
    "ChosenNLL",
    "DPOLoss",
    "DiscoPOPLoss",
    "EXOLoss",
    "FDivergenceDPOLoss",
    "ForwardKL",
    "HingeLoss",
    "IPOLoss",
    "JensenShannon",
    "KTOLoss",
    "LengthNormalizedDPOLoss",
    "LossOutput",
    "NCALoss",
    "ORPOLoss",
    "PPOPolicyLoss",
    "PairLogprobs",
    "PreferenceLoss",
    "ReverseKL",
    "RobustDPOLoss",
    "SFTLoss",
    "SPPOHardLoss",
    "SimPOLoss",
    "UnpairedAOTLoss",
    "UnpairedBCOLoss",
    "UnpairedLogprobs",
    "UnpairedLoss",
    "ValueLoss",
    "WithSFT",
]
