"""Learning from single replies that were called desirable or not: KTO and every unpaired loss beside it.

For KTO (Ethayarajh et al. 2024, eq. 7) the loss of a reply is
    lambda_y - lambda_y sigmoid(s beta [log pi(y|x) - log pi_ref(y|x) - z]),   s = 1 (desirable) or -1
where z estimates KL(pi || pi_ref): the mean of log pi(y'|x) / pi_ref(y'|x), not below 0, over the *mismatched* pairs of
the optimizer step (each prompt with another row's reply, see `batches.UnpairedBatch`). No gradient goes through z.

z is of the whole step: it is worked out before the update, over all micro-batches and processes, so cutting the batch
does not change it; a loss that shares more than z is refused then. On held-out data z is that of each batch (of this
process's part of it).
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alignlab.batches import Sequences, UnpairedBatch
from alignlab.errors import ConfigError
from alignlab.losses.base import LossOutput
from alignlab.losses.unpaired import UnpairedLogprobs, UnpairedLoss
from alignlab.methods.base import Method
from alignlab.methods.dpo import make_reference, refuse_cut_batches
from alignlab.methods.optimization import AdamW
from alignlab.models.policy import Policy
from alignlab.models.reference import AdapterOff
from alignlab.rows import UnpairedRow


class KTO(Method):
    """Any `UnpairedLoss` on summed log-probs of replies.

    `reference`, how log pi_ref of the starting model is had, is as for DPO but never cached: the mismatched pairs are
    others in each epoch.
    """

    row_type = UnpairedRow
    produces = "policy"
    best_metric = ("validation/accuracy", "max")

    def __init__(
        self,
        policy: Policy,
        *,
        loss: UnpairedLoss,
        lr: float,
        optimizer: AdamW,
        reference: Literal["auto", "adapter_off", "copy"] = "auto",
        epochs: float = 1,
        max_steps: int | None = None,
    ) -> None:
        super().__init__(lr=lr, optimizer=optimizer, epochs=epochs, max_steps=max_steps)
        if not isinstance(loss, UnpairedLoss):
            raise ConfigError(
                f"method.loss: {type(loss).__name__} is no loss of single replies, which method=kto trains on; "
                "choose method/loss=kto or another one of single replies, or method=dpo for pairs"
            )
        if reference not in ("auto", "adapter_off", "copy"):
            raise ConfigError(f"method.reference={reference}: method=kto allows auto, adapter_off and copy")
        self.policy = policy
        self.loss = loss
        self.reference: Callable[[Sequences], Tensor] | None = None
        if loss.needs_reference or loss.needs_kl:
            self.reference = make_reference(policy, reference)

    def trained_modules(self) -> Iterable[nn.Module]:
        return [self.policy]

    def before_training(self, data: Any) -> None:
        if not self.loss.coupled_by_kl_alone:
            refuse_cut_batches(self.loss, self.micro_batch_size)
        if self.loss.needs_kl and data.batch_size < 2:
            raise ConfigError(
                f"data.batch_size={data.batch_size}: {type(self.loss).__name__} pairs each prompt with another row's "
                "reply, so a batch needs at least 2 rows; 16 or more make its KL estimate useful"
            )

    def live_reference(self) -> Callable[..., Tensor] | None:
        if self.reference is None and self.policy.has_adapter:
            return AdapterOff(self.policy)
        return self.reference

    # -- one optimizer step --------------------------------------------------------------------------------------
    def training_step(self, batch: UnpairedBatch, batch_idx: int) -> None:
        micro_batches = list(batch.split(self.micro_batch_size or max(len(batch.rows), 1)))
        mismatched = [self.mismatched_logprobs(micro) for micro in micro_batches]
        kl = _over_processes(torch.cat(mismatched, dim=1)) if self.loss.needs_kl else None
        metrics = self.update(
            micro_batches, lambda micro: [self._loss_of(micro, kl)], self.count, lr_step=self.completed_steps
        )
        self.seen_tokens += int(batch.sequences.attention_mask.sum())
        self.finish_step(metrics)

    def count(self, batch: UnpairedBatch) -> Tensor:
        return torch.tensor(len(batch.rows))

    def compute(self, batch: UnpairedBatch) -> LossOutput:
        return self._loss_of(batch, self.mismatched_logprobs(batch) if self.loss.needs_kl else None)

    @torch.no_grad()
    def mismatched_logprobs(self, batch: UnpairedBatch) -> Tensor:
        """(2, B): summed log-probs of the batch's mismatched pairs under the policy and under the reference."""
        if not self.loss.needs_kl or batch.kl_sequences is None:
            return torch.zeros(2, 0, device=batch.rows.device)
        assert self.reference is not None  # needs_kl
        sequences = batch.kl_sequences
        return torch.stack([self.policy(sequences).logprobs.sum(-1), self.reference(sequences).sum(-1)])

    def _loss_of(self, batch: UnpairedBatch, kl: Tensor | None) -> LossOutput:
        out = self.policy(batch.sequences)
        # summed, not averaged: beta is per sequence
        policy = UnpairedLogprobs(out.logprobs.sum(-1), out.mask.sum(-1), batch.desirable)
        reference = None
        if self.reference is not None:
            reference = policy._replace(logprobs=self.reference(batch.sequences).sum(-1))
        kl_policy, kl_reference = (None, None) if kl is None or not kl.numel() else kl
        return self.loss(policy, reference, kl_policy=kl_policy, kl_reference=kl_reference)

    def evaluate_batch(self, batch: UnpairedBatch, split: str) -> dict[str, Tensor]:
        loss, metrics = self.compute(batch)
        count = torch.tensor(float(len(batch.rows)), dtype=torch.float64, device=loss.device)
        return {**{name: value.double() * count for name, value in {"loss": loss, **metrics}.items()}, "count": count}


def _over_processes(columns: Tensor) -> Tensor:
    """`columns` (2, B) of all processes side by side; they may have different numbers of rows."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return columns
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, columns.cpu())
    return torch.cat(everyone, dim=1).to(columns.device)
