"""Supervised fine-tuning: maximise the likelihood of the reply, token by token.

loss = - sum over scored tokens of log pi(token | everything before it) / number of scored tokens of the step
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from alignlab.batches import SFTBatch
from alignlab.losses.base import LossOutput
from alignlab.losses.sft import SFTLoss
from alignlab.methods.base import Method
from alignlab.methods.optimization import AdamW
from alignlab.models.policy import Policy
from alignlab.rows import SFTRow


class SFT(Method):
    """Token-level cross-entropy over replies; the mean is over all tokens of the optimizer step."""

    row_type = SFTRow
    produces = "policy"
    best_metric = ("validation/loss", "min")

    def __init__(
        self,
        policy: Policy,
        *,
        loss: SFTLoss,
        lr: float,
        optimizer: AdamW,
        epochs: float = 1,
        max_steps: int | None = None,
    ) -> None:
        super().__init__(lr=lr, optimizer=optimizer, epochs=epochs, max_steps=max_steps)
        self.policy = policy
        self.loss = loss

    def trained_modules(self) -> Iterable[nn.Module]:
        return [self.policy]

    def count(self, batch: SFTBatch) -> Tensor:
        return batch.sequences.num_scored

    def compute(self, batch: SFTBatch) -> LossOutput:
        return self.scored(self.policy, batch, lambda part, out: self.loss(out.logprobs, out.mask))[0]

    def evaluate_batch(self, batch: SFTBatch, split: str) -> dict[str, Tensor]:
        out = self.policy(batch.sequences, greedy=True)
        return {"loss": -out.logprobs.sum(), "token_accuracy": out.greedy.sum(), "count": out.mask.sum()}

    def reduce_evaluation(self, totals: dict[str, float]) -> dict[str, float]:
        metrics = super().reduce_evaluation(totals)
        return {**metrics, "perplexity": float(torch.tensor(metrics["loss"]).exp())}
