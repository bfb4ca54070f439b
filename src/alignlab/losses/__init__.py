"""Losses: tensors in, `LossOutput(loss, metrics)` out. No model, tokenizer, config or rank inside."""

from alignlab.losses.base import LossOutput
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
from alignlab.losses.reward import BradleyTerryLoss
from alignlab.losses.sft import SFTLoss

__all__ = [
    "BradleyTerryLoss",
    "DPOLoss",
    "HingeLoss",
    "IPOLoss",
    "LossOutput",
    "PPOPolicyLoss",
    "PairLogprobs",
    "PreferenceLoss",
    "RobustDPOLoss",
    "SFTLoss",
    "SimPOLoss",
    "ValueLoss",
]
