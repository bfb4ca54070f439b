"""A training small enough to repeat many times: character rows, 2-layer networks, a plain Lightning trainer."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch

from alignlab.app.runs.loggers import FileLogger
from alignlab.data.module import DataModule
from alignlab.losses.policy import PPOPolicyLoss, ValueLoss
from alignlab.losses.preference import DPOLoss
from alignlab.losses.reward import BradleyTerryLoss
from alignlab.losses.sft import SFTLoss
from alignlab.losses.unpaired import KTOLoss
from alignlab.methods.base import Method
from alignlab.methods.baselines import GroupMean, GroupStandardized, LeaveOneOut, RunningMean
from alignlab.methods.checkpoint import Checkpointer, newest_checkpoint
from alignlab.methods.controllers import AdaptiveKL, FixedKL, KLAdaptiveLR
from alignlab.methods.dpo import DPO
from alignlab.methods.kl_penalty import KLPenalty
from alignlab.methods.kto import KTO
from alignlab.methods.online_dpo import OnlineDPO
from alignlab.methods.optimization import AdamW
from alignlab.methods.policy_gradient import PolicyGradient
from alignlab.methods.ppo import PPO
from alignlab.methods.reward import Reward
from alignlab.methods.sft import SFT
from alignlab.models.adapters import LoRA, NoAdapter
from alignlab.models.source import ModelSource
from alignlab.rows import PreferenceRow, PromptRow, Split, rows_as
from tests.tiny_models import make_peaky, tiny_architecture, tiny_tokenizer

ROLLOUT_METHODS = ("rloo", "grpo", "dr_grpo", "dapo", "reinforce", "online_dpo")
WORDS = ("red", "blue", "a cat", "the dog sat", "no", "yes sir", "one two three", "ok")


class Rows:
    """Pairs in which the chosen reply says yes, with replies of very different lengths."""

    def rows(self, row_type: Any, split: Split) -> Iterator[Any]:
        sizes = {"train": 24, "validation": 6, "test": 6}
        for i in range(sizes[split]):
            word = WORDS[i % len(WORDS)]
            row = PreferenceRow(
                f"{split} {i}: {word}?", f" yes {word}"[: 4 + i % 9], f" no, not {word} at all"[: 5 + i % 7]
            )
            served = rows_as(row, row_type)
            yield served[i % len(served)]  # of a pair as unpaired rows: now the chosen reply, now the rejected one


def letter_reward(prompts: Any, responses: Any) -> torch.Tensor:
    """How many e's a reply has, at most three."""
    return torch.tensor([float(min(reply.count("e"), 3)) for reply in responses])


def policy_gradient(name: str) -> dict[str, Any]:
    """What conf/method/<name>.yaml says, small; a fresh baseline, for one of them remembers."""
    in_reward = KLPenalty(where="reward", estimator="k1", per="sequence")
    in_loss = KLPenalty(where="loss", estimator="k3", per="token")
    common = {"reward": letter_reward, "max_new_tokens": 8, "policy_loss": PPOPolicyLoss(0.2), "group_size": 3}
    own: dict[str, dict[str, Any]] = {
        "rloo": {"baseline": LeaveOneOut(), "normalize": "sum", "kl_penalty": in_reward},
        "grpo": {"baseline": GroupStandardized(), "normalize": "sequence", "kl_penalty": in_loss},
        "dr_grpo": {"baseline": GroupMean(), "normalize": "constant", "kl_penalty": in_reward},
        "dapo": {
            "baseline": GroupStandardized(),
            "normalize": "token",
            "kl_penalty": in_loss,
            "minibatch_size": 5,
            "policy_loss": PPOPolicyLoss(0.2, clip_range_high=0.28),
        },
        "reinforce": {
            "baseline": RunningMean(decay=0.9),
            "normalize": "sum",
            "kl_penalty": in_reward,
            "group_size": 1,
        },
    }
    return common | {"kl": FixedKL(coefficient=0.0 if name in ("dr_grpo", "dapo") else 0.05)} | own[name]


def make_data(row_type: Any, *, source: Any = None, batch_size: int = 6, seed: int = 0) -> DataModule:
    data = DataModule(
        source=source or Rows(),
        tokenizer=tiny_tokenizer(),
        row_type=row_type,
        stop_token_ids=(2,),
        seed=seed,
        max_length=64,
        batch_size=batch_size,
        add_bos=True,
    )
    data.prepare()
    return data


def source(kind: str = "llama", *, dropout: float = 0.0) -> ModelSource:
    return ModelSource(architecture=tiny_architecture(kind), tokenizer=tiny_tokenizer(), dropout=dropout, seed=0)


def make_method(name: str, *, adapter: Any = None, dropout: float = 0.0, **settings: Any) -> Method:
    """`name` is sft, reward, dpo, kto, ppo or one of ROLLOUT_METHODS; peaky starting weights, so that a wrong shift
    is not hidden."""
    adapter = adapter or NoAdapter()
    common: dict[str, Any] = {"lr": 1e-3, "optimizer": AdamW(schedule="linear", warmup=0.2), "epochs": 2}
    if name == "reward":
        model = source(dropout=dropout).load_reward_model(adapter)
        return Reward(model, **common | {"loss": BradleyTerryLoss()} | settings)
    policy = source(dropout=dropout).load_policy(adapter)
    make_peaky(policy.model, 3.0)
    if name == "sft":
        return SFT(policy, loss=SFTLoss(), **common | settings)
    if name == "dpo":
        return DPO(policy, **common | {"loss": DPOLoss(beta=0.1)} | settings)
    if name == "online_dpo":
        online: dict[str, Any] = {"reward": letter_reward, "max_new_tokens": 8, "labels": "best", "kl_coefficient": 0.1}
        return OnlineDPO(policy, **common | online | {"loss": DPOLoss(beta=0.1)} | settings)
    if name in ROLLOUT_METHODS:
        return PolicyGradient(policy, **common | policy_gradient(name) | settings)
    if name == "kto":
        return KTO(policy, **common | {"loss": KTOLoss(beta=0.1)} | settings)
    ppo: dict[str, Any] = {
        "reward": letter_reward,
        "kl": AdaptiveKL(coefficient=0.05, target=2.0, horizon=50),
        "policy_loss": PPOPolicyLoss(0.2),
        "value_loss": ValueLoss(0.2),
        "max_new_tokens": 8,
        "minibatch_size": 3,
        "adaptive_lr": KLAdaptiveLR(target=0.01),
    }
    return PPO(policy, **common | ppo | settings)


def lora() -> LoRA:
    return LoRA(4, alpha=8)


class StopAt(L.Callback):
    """Ends a run before training batch `step`, as a kill would: nothing of it is tidied up."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.completed_steps == self.step:
            raise KilledError


class KilledError(Exception):
    """Stands for kill -9."""


def fit(
    method: Method,
    folder: Path,
    *,
    data: DataModule | None = None,
    micro_batch_size: int | None = None,
    kill_at: int | None = None,
    every: int = 1,
    validate_every: int = 3,
    **trainer_settings: Any,
) -> Method:
    """Train `method` in `folder`, going on from its last checkpoint; `kill_at` stops it before that batch."""
    data = data or make_data(method.row_type)
    total = method.num_steps(data.steps_per_epoch)
    method.plan(seed=0, total_steps=total, micro_batch_size=micro_batch_size)
    state = newest_checkpoint(folder / "checkpoints")
    start = state["step"] if state else 0
    data.set_range(start, total)
    metric, mode = method.best_metric
    checkpointer = Checkpointer(folder / "checkpoints", every=every, metric=metric, mode=mode, state=state)
    folder.mkdir(exist_ok=True, parents=True)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        val_check_interval=validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[checkpointer, *([StopAt(kill_at)] if kill_at is not None else [])],
        logger=[FileLogger(folder, resumed_step=start)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        **trainer_settings,
    )
    trainer.fit_loop.epoch_loop.batch_progress.total.ready = start
    torch.manual_seed(0)
    with contextlib.suppress(KilledError):
        trainer.fit(method, datamodule=data)
    return method


def trained(method: Method) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in method.named_parameters() if p.requires_grad}


PROMPT_ROW = PromptRow
