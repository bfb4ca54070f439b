"""Bradley-Terry reward models: the chosen reply should score above the rejected one.

loss = - mean over pairs of log sigmoid(r(x, y_chosen) - r(x, y_rejected) - margin) + centering
(Bradley & Terry 1952; Ouyang et al. 2022, eq. 1; margin as in Touvron et al. 2023.) A soft label weighs a pair's two
orders; a weight counts in the mean.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.batches import PreferenceBatch
from alignlab.losses.base import LossOutput
from alignlab.losses.reward import BradleyTerryLoss, wins
from alignlab.methods.base import Method
from alignlab.methods.optimization import AdamW
from alignlab.models.reward_model import RewardModel
from alignlab.rows import PreferenceRow

CALIBRATION_BINS = 10


class Reward(Method):
    """Trains a scalar head on a decoder or an encoder; afterwards fixes the scale of its scores.

    Scores are only defined up to a shift per prompt, and their scale drifts, so a KL coefficient means nothing
    before they are normalised: `after_training` stores gain and bias such that the training replies score mean 0
    and standard deviation 1 (N implementation details of RLHF, RM 3).
    """

    row_type = PreferenceRow
    produces = "reward_model"
    best_metric = ("validation/accuracy", "max")

    def __init__(
        self,
        reward_model: RewardModel,
        *,
        loss: BradleyTerryLoss,
        lr: float,
        optimizer: AdamW,
        epochs: float = 1,
        max_steps: int | None = None,
        normalize_pairs: int = 512,
    ) -> None:
        super().__init__(lr=lr, optimizer=optimizer, epochs=epochs, max_steps=max_steps)
        self.reward_model = reward_model
        self.loss = loss
        self.normalize_pairs = normalize_pairs

    def trained_modules(self) -> Iterable[nn.Module]:
        return [self.reward_model]

    def count(self, batch: PreferenceBatch) -> Tensor:
        return batch.total_weight

    def compute(self, batch: PreferenceBatch) -> LossOutput:
        chosen, rejected = self.reward_model(batch.sequences).chunk(2)
        return self.loss(chosen, rejected, preference=batch.preference, weight=batch.weight)

    def evaluate_batch(self, batch: PreferenceBatch, split: str) -> dict[str, Tensor]:
        chosen, rejected = self.reward_model(batch.sequences).double().chunk(2)
        margin = chosen - rejected
        label = torch.ones_like(margin) if batch.preference is None else batch.preference.double()
        weight = torch.ones_like(margin) if batch.weight is None else batch.weight.double()
        ahead = wins(margin)  # a tie is half right
        right = label * ahead + (1 - label) * (1 - ahead)
        confidence = torch.sigmoid(margin.abs())  # of the answer it gives, in [0.5, 1]
        bins = ((confidence - 0.5) * 2 * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
        sums = {
            "loss": -(weight * (label * F.logsigmoid(margin) + (1 - label) * F.logsigmoid(-margin))).sum(),
            "accuracy": (weight * right).sum(),
            "margin": (weight * (2 * label - 1) * margin).sum(),
            "score": (weight * (chosen + rejected)).sum() / 2,
            "count": batch.total_weight,
        }
        for name, value in (("right", right), ("confidence", confidence)):
            for b in range(CALIBRATION_BINS):
                sums[f"_{name}_{b}"] = (weight * value)[bins == b].sum()
        return sums

    def reduce_evaluation(self, totals: dict[str, float]) -> dict[str, float]:
        """Means, and the expected calibration error: the mean gap between confidence and share right, by bin."""
        plain = {name: value for name, value in totals.items() if not name.startswith("_")}
        gaps = sum(abs(totals[f"_right_{b}"] - totals[f"_confidence_{b}"]) for b in range(CALIBRATION_BINS))
        return {**super().reduce_evaluation(plain), "calibration_error": gaps / (totals["count"] or 1.0)}

    def after_training(self, data: Any) -> None:
        """Fix gain and bias on the first `normalize_pairs` training pairs, chosen and rejected alike."""
        self.reward_model.eval()
        scores = []
        with torch.no_grad():
            for batch in data.batches("train", limit=self.normalize_pairs):
                scores.append(self.reward_model(self._on_device(batch)).double().cpu())
        self.reward_model.normalize(torch.cat(scores))

    def _on_device(self, batch: PreferenceBatch) -> Any:
        return type(batch.sequences)(*(x.to(self.reward_model.device) for x in batch.sequences))
