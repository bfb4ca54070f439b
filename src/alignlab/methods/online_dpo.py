"""Online DPO: preference learning on pairs that the policy itself has just written.

One iteration (Guo et al. 2024): two replies to each prompt, a label from their scores, and an update of any
`PreferenceLoss` on the pairs, the starting model being the reference. With DPO's loss
    -[p log sigmoid(beta h) + (1 - p) log sigmoid(-beta h)],   h = log pi/ref(first) - log pi/ref(second)
p being the label, and no gradient through the sampling, as in the paper. Log-probs of policy and reference are at the
temperature that was sampled at, as everywhere in these methods.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from alignlab.batches import PreferenceBatch, Rollout
from alignlab.errors import ConfigError
from alignlab.losses.base import LossOutput
from alignlab.losses.preference import PreferenceLoss
from alignlab.methods.controllers import FixedKL
from alignlab.methods.dpo import pair_loss
from alignlab.methods.experience import rollout_metrics, rollout_sums
from alignlab.methods.on_policy import OnPolicy
from alignlab.methods.optimization import AdamW
from alignlab.models.policy import Policy
from alignlab.rollout.scoring import Reward

LABELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "best": lambda gap, uniform: torch.heaviside(gap, gap.new_tensor(0.5)),
    "bradley_terry": lambda gap, uniform: (uniform < gap.sigmoid()).to(gap),
    "bradley_terry_soft": lambda gap, uniform: gap.sigmoid(),
}
"""The probability [P] that the first reply is the better one, from (its score less the other's, a uniform number)."""


class OnlineDPO(OnPolicy):
    """Any `PreferenceLoss` that takes soft labels. `labels` says how a pair's scores become its label:

    best                the higher score is the better reply; equal scores: either, by half (p = 0.5)
    bradley_terry       a coin of probability sigmoid(score difference), as a human's or a judge's word is
    bradley_terry_soft  that probability itself: the same gradient on average, with less noise

    `kl_coefficient` is the price of KL in the metrics `reward` and `validation/objective`, by which checkpoints are
    compared; what trains is the loss's own beta. `minibatch_size` counts pairs.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        reward: Reward,
        loss: PreferenceLoss,
        labels: Literal["best", "bradley_terry", "bradley_terry_soft"],
        kl_coefficient: float,
        lr: float,
        optimizer: AdamW,
        max_new_tokens: int,
        temperature: float = 1.0,
        reference: Literal["auto", "adapter_off", "copy"] = "auto",
        update_epochs: int = 1,
        minibatch_size: int | None = None,
        missing_eos_penalty: float | None = None,
        missing_eos_score: float | None = None,
        epochs: float = 1,
        max_steps: int | None = None,
    ) -> None:
        super().__init__(
            policy,
            reward=reward,
            kl=FixedKL(coefficient=kl_coefficient),
            lr=lr,
            optimizer=optimizer,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            reference=reference,
            group_size=2,
            update_epochs=update_epochs,
            minibatch_size=minibatch_size,
            target_kl=None,
            missing_eos_penalty=missing_eos_penalty,
            missing_eos_score=missing_eos_score,
            adaptive_lr=None,
            epochs=epochs,
            max_steps=max_steps,
        )
        if labels not in LABELS:
            raise ConfigError(f"method.labels={labels}: allowed are {', '.join(LABELS)}")
        if loss.batch_coupled:
            raise ConfigError(
                f"method.loss: {type(loss).__name__} couples the pairs of a batch and takes no soft labels, which ties "
                "are; choose a loss of single pairs, such as method/loss=dpo"
            )
        self.loss, self.labels = loss, labels

    # -- what a rollout teaches ------------------------------------------------------------------------------------
    @torch.no_grad()
    def collect(self, rollout: Rollout, rows: Tensor) -> tuple[PreferenceBatch, dict[str, Tensor]]:
        """Score and label a rollout whose rows 2i and 2i + 1 answer the same prompt; and the iteration's metrics."""
        judged = self.judge(rollout)
        scores = self.score(rollout).to(judged.logprobs)
        gap = scores[0::2] - scores[1::2]
        uniform = torch.rand(len(gap), generator=self._generator("labels"), dtype=torch.float64).to(gap.device)
        preference = LABELS[self.labels](gap, uniform)
        rewards = scores - self.kl.coefficient * (judged.logprobs - judged.ref_logprobs).sum(-1)
        sums = {"pairs": torch.ones_like(gap), "ties": gap == 0, "gap": gap.abs()}
        sums = {name: value.double().sum() for name, value in sums.items()}
        totals = self.totals(rollout_sums(rollout, judged, scores, rewards) | sums)
        metrics = rollout_metrics(totals) | {
            "tie_rate": totals["ties"] / totals["pairs"],
            "score_gap": totals["gap"] / totals["pairs"],
        }
        index = torch.arange(len(rows), device=self.device)
        order = torch.cat([index[0::2], index[1::2]])
        reference = judged.ref_logprobs.sum(-1)[order]
        pairs = PreferenceBatch(rollout.sequences.take(order), rows[0::2], preference, ref_logprobs=reference)
        return pairs, metrics

    # -- one update ------------------------------------------------------------------------------------------------
    def count(self, batch: PreferenceBatch) -> Tensor:
        return torch.tensor(len(batch.rows))

    def compute(self, batch: PreferenceBatch) -> LossOutput:
        loss_of = partial(pair_loss, self.loss)
        return self.scored(
            self.policy, batch, loss_of, is_separable=self.loss.is_separable, temperature=self.temperature
        )[0]
