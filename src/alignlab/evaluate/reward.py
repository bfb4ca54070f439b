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
from jaxtyping import Float
from torch import Tensor

from alignlab.batches import PreferenceBatch, Sequences
from alignlab.errors import ConfigError, DataError
from alignlab.evaluate.pairs import (
    Matrix,
    SubsetFigures,
    accuracy_of,
    by_subset,
    length_figures,
    margin_of,
    right,
    style_figures,
    style_matrix,
)
from alignlab.models.backbone import evaluating
from alignlab.rows import PairFacts

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
            chosen_score, rejected_score, score_std, num_pairs; where facts of the pairs are known also those of
            `pairs.length_figures` and `pairs.style_figures`, accuracy/<subset>, and accuracy_over_subsets (their mean).
        margins: r(chosen) - r(rejected), one per pair, raw scores.
        calibration: equal-width bins of confidence over [0.5, 1].
        subsets: figures of each part of the data; empty where it has none.
        styles: accuracy by style of chosen (row) and of rejected (column); empty where pairs have none.
    """

    metrics: dict[str, float]
    margins: list[float]
    calibration: list[CalibrationBin] = field(default_factory=list)
    subsets: list[SubsetFigures] = field(default_factory=list)
    styles: Matrix = field(default_factory=list)


def evaluate_reward_model(
    reward_model: "RewardModel",
    pairs: Iterable[PreferenceBatch],
    *,
    facts: Sequence[PairFacts] | None = None,
    num_bins: int = 10,
) -> RewardEvaluation:
    """Scores all pairs (eval mode, no gradients; the model's mode is restored) and compares.

    `facts` holds what else is known of each pair, by its number in `batch.rows`. Chosen is the reply that the label
    says is likelier the better one; a pair of preference 1/2 is left out. Each other counts once, whatever its weight.

    Raises:
        ConfigError: num_bins below 1.
        DataError: there are no pairs.
        NonFiniteError: a score is not a number.
    """
    if num_bins < 1:
        raise ConfigError(f"evaluation: num_bins={num_bins} must be at least 1")
    chosen: list[float] = []
    rejected: list[float] = []
    rows: list[int] = []
    with torch.no_grad(), evaluating(reward_model):
        for batch in (each.likelier() for each in pairs):
            if not len(batch.rows):
                continue
            sequences = Sequences(*(tensor.to(reward_model.device) for tensor in batch.sequences))
            scores = _scores(reward_model, sequences)  # (2 pairs,): all chosen, then all rejected
            chosen += scores[: len(batch.rows)].tolist()
            rejected += scores[len(batch.rows) :].tolist()
            rows += batch.rows.tolist()
    if not chosen:
        raise DataError("evaluation: no pairs came; is the test split empty?")
    known = None if facts is None else [facts[row] for row in rows]
    return summarise_scores(chosen, rejected, facts=known, num_bins=num_bins)


def summarise_scores(
    chosen: Sequence[float], rejected: Sequence[float], *, facts: Sequence[PairFacts] | None = None, num_bins: int = 10
) -> RewardEvaluation:
    """The evaluation from the two scores of every pair, and what else is known of it."""
    margins = [good - bad for good, bad in zip(chosen, rejected, strict=True)]
    accuracy, margin = accuracy_of(margins, facts or ()), margin_of(margins, facts or ())
    scores = torch.tensor([*chosen, *rejected], dtype=torch.float64)
    bins = calibration_bins(margins, num_bins=num_bins)
    metrics = {
        "accuracy": accuracy.mean,
        "margin": margin.mean,
        "loss": float(torch.nn.functional.softplus(-torch.tensor(margins, dtype=torch.float64)).mean()),
        "calibration_error": _calibration_error(bins),
        "chosen_score": math.fsum(chosen) / len(chosen),
        "rejected_score": math.fsum(rejected) / len(rejected),
        "score_std": float(scores.std()),
        "num_pairs": float(len(margins)),
    }
    for name, interval in (("accuracy", accuracy), ("margin", margin)):
        if math.isfinite(interval.low):  # one pair has no spread of margins, one prompt none at all
            metrics |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    if facts is None:
        return RewardEvaluation(metrics, margins, bins)
    subsets = by_subset(margins, facts)
    metrics |= length_figures(margins, facts) | style_figures(margins, facts)
    metrics |= {f"accuracy/{subset.name}": subset.metrics["accuracy"] for subset in subsets}
    if subsets:
        metrics["accuracy_over_subsets"] = math.fsum(s.metrics["accuracy"] for s in subsets) / len(subsets)
    return RewardEvaluation(metrics, margins, bins, subsets, style_matrix(margins, facts))


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
    return CalibrationBin(low, high, len(margins), confidence, math.fsum(map(right, margins)) / len(margins))


def _calibration_error(bins: Sequence[CalibrationBin]) -> float:
    gaps = [
        each.count * abs(each.accuracy - each.confidence)
        for each in bins
        if each.accuracy is not None and each.confidence is not None
    ]
    return math.fsum(gaps) / sum(each.count for each in bins)


def _confidence(margin: float) -> float:
    return 1 / (1 + math.exp(-abs(margin)))


def _scores(reward_model: "RewardModel", sequences: Sequences) -> Float[Tensor, "B"]:
    """Scores in float64 on the CPU. A reply that stands in several pairs of the batch is scored once."""
    keys = torch.cat([sequences.input_ids, sequences.attention_mask.to(sequences.input_ids), sequences.labels], 1)
    _, which = torch.unique(keys, dim=0, return_inverse=True)  # (B,): the same number, the same sequence
    first: dict[int, int] = {}
    for row, number in enumerate(which.tolist()):
        first.setdefault(number, row)
    if len(first) == sequences.num_rows:
        return reward_model(sequences).double().cpu()
    place = {number: i for i, number in enumerate(first)}
    index = torch.tensor(list(first.values()), device=sequences.input_ids.device)
    scores = reward_model(sequences.take(index)).double().cpu()
    return scores[torch.tensor([place[number] for number in which.tolist()])]
