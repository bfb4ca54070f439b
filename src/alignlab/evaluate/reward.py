"""What a reward model is worth: how often it prefers the chosen reply of held-out pairs, and how far to believe it.

Symbols: margin = r(chosen) - r(rejected). Under Bradley-Terry the model says that chosen wins with probability
sigmoid(margin). Orientation: on each pair the model bets on the reply it scores higher, with confidence
sigmoid(|margin|) in [0.5, 1]; it is right where margin > 0. A calibrated model is right as often as it is confident.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from alignlab.batches import PreferenceBatch, Sequences
from alignlab.errors import ConfigError, DataError
from alignlab.models.backbone import evaluating
from alignlab.statistics import mean_interval, share_interval

if TYPE_CHECKING:
    from alignlab.models.reward_model import RewardModel


class CalibrationBin(NamedTuple):
    """Pairs whose confidence lies in [low, high): `accuracy` should equal `confidence`."""

    low: float
    high: float
    count: int
    confidence: float | None  # mean of sigmoid(|margin|); None in an empty bin
    accuracy: float | None  # share of right bets, ties half; None in an empty bin


@dataclass(frozen=True, slots=True)
class RewardEvaluation:
    """Figures of one reward model on held-out pairs, and what its plots need.

    Args:
        metrics: accuracy (+ _low, _high: Wilson, ties half), margin (+ _low, _high: t), loss (mean of
            -log sigmoid(margin)), calibration_error (ECE: mean over pairs of |accuracy - confidence| of their bin),
            chosen_score, rejected_score, score_std, num_pairs.
        margins: r(chosen) - r(rejected), one per pair, raw scores.
        calibration: equal-width bins of confidence over [0.5, 1].
    """

    metrics: dict[str, float]
    margins: list[float]
    calibration: list[CalibrationBin] = field(default_factory=list)


def evaluate_reward_model(
    reward_model: "RewardModel", pairs: Iterable[PreferenceBatch], *, num_bins: int = 10
) -> RewardEvaluation:
    """Scores all pairs (eval mode, no gradients; the model's mode is restored) and compares.

    Raises:
        ConfigError: num_bins below 1.
        DataError: there are no pairs.
    """
    if num_bins < 1:
        raise ConfigError(f"evaluation: num_bins={num_bins} must be at least 1")
    chosen: list[float] = []
    rejected: list[float] = []
    with torch.no_grad(), evaluating(reward_model):
        for batch in pairs:
            sequences = Sequences(*(tensor.to(reward_model.device) for tensor in batch.sequences))
            scores = reward_model(sequences).double().cpu()  # (2 pairs,): all chosen, then all rejected
            chosen += scores[: len(batch.rows)].tolist()
            rejected += scores[len(batch.rows) :].tolist()
    if not chosen:
        raise DataError("evaluation: no pairs came; is the test split empty?")
    return summarise_scores(chosen, rejected, num_bins=num_bins)


def summarise_scores(chosen: Sequence[float], rejected: Sequence[float], *, num_bins: int = 10) -> RewardEvaluation:
    """The evaluation from the two scores of every pair."""
    margins = [good - bad for good, bad in zip(chosen, rejected, strict=True)]
    accuracy = share_interval(math.fsum(_right(margin) for margin in margins), len(margins))
    margin = mean_interval(margins)
    scores = torch.tensor([*chosen, *rejected], dtype=torch.float64)
    bins = calibration_bins(margins, num_bins=num_bins)
    metrics = {
        "accuracy": accuracy.mean,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "margin": margin.mean,
        "loss": float(torch.nn.functional.softplus(-torch.tensor(margins, dtype=torch.float64)).mean()),
        "calibration_error": _calibration_error(bins),
        "chosen_score": math.fsum(chosen) / len(chosen),
        "rejected_score": math.fsum(rejected) / len(rejected),
        "score_std": float(scores.std()),
        "num_pairs": float(len(margins)),
    }
    if margin.count > 1:
        metrics |= {"margin_low": margin.low, "margin_high": margin.high}
    return RewardEvaluation(metrics, margins, bins)


def calibration_bins(margins: Sequence[float], *, num_bins: int) -> list[CalibrationBin]:
    """Reliability diagram of sigmoid(|margin|) in `num_bins` equal bins over [0.5, 1] (Guo et al. 2017, section 2)."""
    members: list[list[float]] = [[] for _ in range(num_bins)]
    width = 0.5 / num_bins
    for margin in margins:
        # The last bin is closed: a confidence that rounds to 1.0 belongs to it.
        members[min(num_bins - 1, int((_confidence(margin) - 0.5) / width))].append(margin)
    return [_bin(0.5 + index * width, 0.5 + (index + 1) * width, found) for index, found in enumerate(members)]


def _bin(low: float, high: float, margins: Sequence[float]) -> CalibrationBin:
    if not margins:
        return CalibrationBin(low, high, 0, None, None)
    confidence = math.fsum(map(_confidence, margins)) / len(margins)
    return CalibrationBin(low, high, len(margins), confidence, math.fsum(map(_right, margins)) / len(margins))


def _calibration_error(bins: Sequence[CalibrationBin]) -> float:
    gaps = [
        each.count * abs(each.accuracy - each.confidence)
        for each in bins
        if each.accuracy is not None and each.confidence is not None
    ]
    return math.fsum(gaps) / sum(each.count for each in bins)


def _confidence(margin: float) -> float:
    return 1 / (1 + math.exp(-abs(margin)))


def _right(margin: float) -> float:
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0
