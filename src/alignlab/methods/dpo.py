"""Learning from pairs without a reward model: DPO and every pairwise loss beside it.

For DPO (Rafailov et al. 2023, eq. 7) the loss of a pair is
    -log sigmoid(beta [(log pi(y_c|x) - log pi_ref(y_c|x)) - (log pi(y_r|x) - log pi_ref(y_r|x))])
where log pi(y|x) is the sum over the reply's tokens, its end token included. Which loss it is, is a choice
(`method/loss=ipo`); this module only asks the policy, asks the reference, and asks the loss.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor, nn

from alignlab.batches import PreferenceBatch, Sequences
from alignlab.errors import ConfigError
from alignlab.losses.base import LossOutput
from alignlab.losses.preference import PairLogprobs, PreferenceLoss
from alignlab.methods.base import Method
from alignlab.methods.optimization import AdamW
from alignlab.methods.reference_cache import ReferenceCache
from alignlab.models.policy import Policy, PolicyOutput
from alignlab.models.reference import AdapterOff, FrozenCopy
from alignlab.rows import PreferenceRow


class DPO(Method):
    """Any `PreferenceLoss` on summed log-probs of chosen and rejected replies; soft labels and weights of pairs count.

    `reference` says how log pi_ref is had; it is always the model that training starts from:
      adapter_off  the policy with its new adapter off (needs an adapter; no second copy of the weights)
      copy         a frozen copy of the starting weights
      cached       the sums of every pair, computed once before the first step and kept on disk
      auto         adapter_off where there is an adapter, else copy
    """

    row_type = PreferenceRow
    produces = "policy"
    best_metric = ("validation/accuracy", "max")

    def __init__(
        self,
        policy: Policy,
        *,
        loss: PreferenceLoss,
        lr: float,
        optimizer: AdamW,
        reference: Literal["auto", "adapter_off", "copy", "cached"] = "auto",
        epochs: float = 1,
        max_steps: int | None = None,
        cache_folder: str | Path | None = None,
    ) -> None:
        super().__init__(lr=lr, optimizer=optimizer, epochs=epochs, max_steps=max_steps)
        if not isinstance(loss, PreferenceLoss):
            raise ConfigError(
                f"method.loss: {type(loss).__name__} is no loss of pairs of replies, which method=dpo trains on; "
                "choose method/loss=dpo or another one of pairs, or method=kto for single replies"
            )
        if reference == "cached" and cache_folder is None:
            raise ConfigError("method.reference=cached: needs cache_folder, where the log-probs are kept")
        self.policy = policy
        self.loss = loss
        self.reference: Callable[[Sequences], Tensor] | None = None
        self.cache: ReferenceCache | None = None
        if loss.needs_reference:
            if reference == "cached":
                self.cache = ReferenceCache(policy, Path(str(cache_folder)))
            else:
                self.reference = make_reference(policy, reference)

    def trained_modules(self) -> Iterable[nn.Module]:
        return [self.policy]

    def before_training(self, data: Any) -> None:
        refuse_cut_batches(self.loss, self.micro_batch_size)
        if self.cache is not None:
            precision = self._trainer.precision_plugin if self._trainer is not None else None
            with precision.forward_context() if precision is not None else nullcontext():
                self.cache.fill(data, precision=str(precision.precision) if precision is not None else "32-true")

    def live_reference(self) -> Callable[..., Tensor] | None:
        if self.reference is None and self.policy.has_adapter:
            return AdapterOff(self.policy)
        return self.reference

    def count(self, batch: PreferenceBatch) -> Tensor:
        return batch.total_weight

    def compute(self, batch: PreferenceBatch) -> LossOutput:
        batch = self.with_reference(batch, "train")
        return self.scored(self.policy, batch, self.loss_of, is_separable=self.loss.is_separable)[0]

    def with_reference(self, batch: PreferenceBatch, split: str) -> PreferenceBatch:
        """The batch with what the reference says of its replies, looked up or asked; as it is where none is needed."""
        if self.cache is not None:
            return batch._replace(ref_logprobs=self.cache.lookup(split, batch.rows).flatten().to(batch.rows.device))
        if self.reference is not None:
            return batch._replace(ref_logprobs=self.reference(batch.sequences).sum(-1))
        return batch

    def loss_of(self, batch: PreferenceBatch, out: PolicyOutput) -> LossOutput:
        """The loss of pairs of which policy and reference have been asked."""
        return pair_loss(self.loss, batch, out)

    def evaluate_batch(self, batch: PreferenceBatch, split: str) -> dict[str, Tensor]:
        batch = self.with_reference(batch, split)
        loss, metrics = self.loss_of(batch, self.policy(batch.sequences))
        count = batch.total_weight
        return {**{name: value.double() * count for name, value in {"loss": loss, **metrics}.items()}, "count": count}


def pair_loss(loss: PreferenceLoss, batch: PreferenceBatch, out: PolicyOutput) -> LossOutput:
    """`loss` of a batch that has `ref_logprobs`, if they are needed."""
    policy, reference = pair_logprobs(out.logprobs, out.mask), None
    if batch.ref_logprobs is not None:
        chosen, rejected = batch.ref_logprobs.chunk(2)
        reference = PairLogprobs(chosen, rejected, policy.chosen_length, policy.rejected_length)
    return loss(policy, reference, preference=batch.preference, weight=batch.weight)


def pair_logprobs(logprobs: Tensor, mask: Tensor) -> PairLogprobs:
    """Per-token log-probs [2P, T] (chosen first) as sums over each reply, with the replies' lengths."""
    # summed, not averaged: beta is per sequence
    chosen, rejected = logprobs.sum(-1).chunk(2)
    chosen_length, rejected_length = mask.sum(-1).chunk(2)
    return PairLogprobs(chosen, rejected, chosen_length, rejected_length)


def refuse_cut_batches(loss: Any, micro_batch_size: int | None) -> None:
    """ConfigError if `loss` couples what is in a batch, and micro-batches or processes would cut the batch."""
    num_processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if loss.batch_coupled and (micro_batch_size is not None or num_processes > 1):
        raise ConfigError(
            f"hardware.micro_batch_size={micro_batch_size}, {num_processes} processes: {type(loss).__name__} couples "
            "the rows of a batch, so cutting the batch would change it; use one process, micro_batch_size=null and a "
            "smaller data.batch_size"
        )


def make_reference(policy: Policy, kind: str) -> AdapterOff | FrozenCopy:
    """The starting model as a frozen callable; call it before the first step."""
    if kind == "auto":
        kind = "adapter_off" if policy.has_adapter else "copy"
    if kind == "adapter_off":
        if not policy.has_adapter:
            raise ConfigError(
                "method.reference=adapter_off: there is no adapter; choose adapter=lora or reference=copy"
            )
        return AdapterOff(policy)
    if kind == "copy":
        return FrozenCopy(policy)
    raise ConfigError(f"method.reference={kind}: allowed are auto, adapter_off, copy and cached")
