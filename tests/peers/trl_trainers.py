"""TRL's trainers without training: their own loss code, fed with given log-probs or logits.

A trainer is made without its constructor and given the attributes that its loss reads; the "model" answers with
tensors of the test. Nothing of TRL is copied: what runs is `_compute_loss` or `get_batch_loss_metrics` itself.
"""

from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

PROMPT = 3  # prompt tokens before every reply


class Replies(NamedTuple):
    """Log-probs of N replies token by token, right-padded, in shifted coordinates: column t belongs to token t + 1."""

    logprobs: Tensor  # (N, T - 1); 0 where `mask` is False, as TRL's fused head gives it
    mask: Tensor  # (N, T - 1)


def replies(lengths: Sequence[int], *, scale: float = 2.0) -> Replies:
    """Random log-probs of replies of these lengths; call `requires_grad_` on them for gradients."""
    columns = torch.arange(PROMPT - 1 + max(lengths))
    mask = (columns >= PROMPT - 1) & (columns < PROMPT - 1 + torch.tensor(lengths).unsqueeze(1))
    return Replies(-scale * torch.rand(mask.shape) * mask, mask)


def _accelerator() -> Any:
    """One process: gathering gives back what it gets."""
    return SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda model: model
    )


def _bare(trainer_class: type, **settings: Any) -> Any:
    trainer = trainer_class.__new__(trainer_class)
    common = {
        "accelerator": _accelerator(),
        "aux_loss_enabled": False,
        "ref_model": None,
        "precompute_ref_logps": True,  # the batch carries the reference's sums
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    vars(trainer).update({**common, **settings})
    return trainer


class _Scorer:
    """Answers as TRL's fused LM head does, with the log-probs it was given for these input ids."""

    training = True

    def __init__(self, **answers: Tensor):
        self.answers = answers

    def __call__(self, *, input_ids: Tensor, **rest: Any) -> Any:
        logprobs = self.answers["mismatched" if bool((input_ids == 1).all()) else "matched"]
        zeros = torch.zeros_like(logprobs)
        return SimpleNamespace(log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def _inputs(mask: Tensor, token: int) -> dict[str, Tensor]:
    whole = torch.cat([torch.zeros(len(mask), 1, dtype=torch.bool), mask], 1)
    ids = torch.full(whole.shape, token)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": whole.long()}


def dpo_loss(policy: Replies, ref_chosen: Tensor, ref_rejected: Tensor, **settings: Any) -> Tensor:
    """`DPOTrainer`'s loss of P pairs (policy: 2P replies, chosen first) against the reference's sums."""
    defaults = {
        "loss_types": ["sigmoid"],
        "loss_weights": [1.0],
        "beta": 0.3,
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "ld_alpha": None,
        "use_weighting": False,
        "args": SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
    }
    model = _Scorer(matched=policy.logprobs)
    trainer = _bare(DPOTrainer, model=model, **{**defaults, **settings})
    batch = {**_inputs(policy.mask, 2), "ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}
    return trainer._compute_loss(model, batch, return_outputs=False)


def kto_loss(
    policy: Replies,
    reference: Tensor,
    desirable: Tensor,
    mismatched: Replies,
    mismatched_reference: Tensor,
    **settings: Any,
) -> Tensor:
    """`KTOTrainer`'s loss of B replies and their B mismatched ones, against the reference's sums."""
    defaults = {"loss_type": "kto", "beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    model = _Scorer(matched=policy.logprobs, mismatched=mismatched.logprobs)
    trainer = _bare(KTOTrainer, model=model, calculate_KL=True, **{**defaults, **settings})
    batch = {
        **_inputs(policy.mask, 2),
        **{f"KL_{name}": value for name, value in _inputs(mismatched.mask, 1).items()},
        "label": desirable,
        "ref_logps": reference,
        "ref_KL_logps": mismatched_reference,
    }
    return trainer._compute_loss(model, batch, return_outputs=False)


def _from_logits(trainer: Any, logits: Tensor, ids: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
    """`get_batch_loss_metrics` of 2P sequences (chosen first); `labels` is -100 where a token is prompt or padding."""
    num_pairs = len(ids) // 2
    batch = {}
    for side, rows in (("chosen", slice(0, num_pairs)), ("rejected", slice(num_pairs, None))):
        attended = torch.ones_like(ids[rows])
        attended[:, PROMPT:] = (labels[rows, PROMPT:] != -100).long()
        batch[f"{side}_input_ids"], batch[f"{side}_labels"] = ids[rows], labels[rows]
        batch[f"{side}_attention_mask"] = attended

    def model(*args: Any, **kwargs: Any) -> Any:
        return SimpleNamespace(logits=logits)

    return trainer.get_batch_loss_metrics(model, batch)


def cpo_loss(logits: Tensor, ids: Tensor, labels: Tensor, **settings: Any) -> tuple[Tensor, dict[str, float]]:
    """`CPOTrainer`'s loss and metrics."""
    defaults = {"loss_type": "sigmoid", "beta": 0.3, "label_smoothing": 0.0, "cpo_alpha": 1.0, "alpha": 0.0}
    trainer = _bare(CPOTrainer, is_encoder_decoder=False, pad_token_id=0, **{**defaults, **settings})
    return _from_logits(trainer, logits, ids, labels)


def orpo_loss(logits: Tensor, ids: Tensor, labels: Tensor, *, beta: float) -> tuple[Tensor, dict[str, float]]:
    """`ORPOTrainer`'s loss and metrics."""
    trainer = _bare(ORPOTrainer, is_encoder_decoder=False, padding_value=0, beta=beta)
    return _from_logits(trainer, logits, ids, labels)
