"""Learning from one's own replies: what PPO, RLOO, GRPO, REINFORCE and online DPO share.

One training batch is one iteration: sample `group_size` replies to each prompt, score them, turn them into something
to learn from (`collect`, the method's own), and make a few updates on it (`improve`, with the method's own `compute`).

Log-probs of the sampled tokens are recomputed by the same forward pass that the update uses (dropout off, same
temperature), so the first ratio is 1; how far the sampler was from it is the metric `sampler_gap`.
"""

import hashlib
import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alignlab.batches import PromptBatch, Rollout, Sequences
from alignlab.errors import ConfigError
from alignlab.kernels.divergence import kl_estimate
from alignlab.methods.base import Method
from alignlab.methods.controllers import KLAdaptiveLR, KLController
from alignlab.methods.dpo import make_reference
from alignlab.methods.experience import Judged, minibatches, repeated, split
from alignlab.methods.optimization import AdamW
from alignlab.models.policy import Policy
from alignlab.rollout.generate import check_room, generate
from alignlab.rollout.scoring import Reward, score
from alignlab.rows import PromptRow


class OnPolicy(Method):
    """A policy, a reward, and a price for leaving the starting model. A method says `collect`, `count` and `compute`.

    `minibatch_size` counts what the method learns from, replies or pairs; None: all of the iteration in one update.
    """

    row_type = PromptRow
    produces = "policy"
    best_metric = ("validation/objective", "max")

    def __init__(
        self,
        policy: Policy,
        *,
        reward: Reward,
        kl: KLController,
        lr: float,
        optimizer: AdamW,
        max_new_tokens: int,
        temperature: float,
        reference: Literal["auto", "adapter_off", "copy"],
        group_size: int,
        update_epochs: int,
        minibatch_size: int | None,
        target_kl: float | None,
        missing_eos_penalty: float | None,
        missing_eos_score: float | None,
        adaptive_lr: KLAdaptiveLR | None,
        epochs: float,
        max_steps: int | None,
    ) -> None:
        super().__init__(lr=lr, optimizer=optimizer, epochs=epochs, max_steps=max_steps)
        if temperature <= 0:
            raise ConfigError(f"method.temperature={temperature}: must be positive")
        if update_epochs < 1 or (minibatch_size is not None and minibatch_size < 1):
            raise ConfigError(f"method.update_epochs={update_epochs}, minibatch_size={minibatch_size}: at least 1 each")
        if group_size < 1:
            raise ConfigError(f"method.group_size={group_size}: at least one reply per prompt")
        self.policy, self.reward, self.kl = policy, reward, kl
        self.max_new_tokens, self.temperature, self.group_size = max_new_tokens, temperature, group_size
        self.update_epochs, self.minibatch_size, self.target_kl = update_epochs, minibatch_size, target_kl
        self.missing_eos_penalty, self.missing_eos_score = missing_eos_penalty, missing_eos_score
        self.adaptive_lr = adaptive_lr
        self.reference = make_reference(policy, reference)
        self.num_updates = 0
        self.first_coefficient = kl.coefficient  # of the objective that checkpoints are compared by

    # -- what a method says ----------------------------------------------------------------------------------------
    def collect(self, rollout: Rollout, rows: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """Score a rollout: what the updates learn from (see `Part`), and the iteration's metrics, `kl` among them."""
        raise TypeError(f"{type(self).__name__} must say what it learns from a rollout")

    def before_update(self, minibatch: Any) -> Any:
        """`minibatch` with what depends on all of it, on all processes; called before it is cut further."""
        return minibatch

    def trained_modules(self) -> Iterable[nn.Module]:
        return [self.policy]

    def before_training(self, data: Any) -> None:
        for module in self.trained_modules():
            refuse_dropout(module)
        check_room(self.policy, data.longest_prompt, self.max_new_tokens)
        if hasattr(self.reward, "to"):
            self.reward.to(self.device)  # a reward model that is not one of our submodules

    def live_reference(self) -> Any:
        return self.reference

    # -- one iteration ---------------------------------------------------------------------------------------------
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        prompts = repeated(batch, self.group_size)
        rollout = self.sample(prompts, self._generator("sample", self.device))
        experience, metrics = self.collect(rollout, prompts.rows)
        updates, coefficient = self.improve(experience), self.kl.coefficient
        num_sequences = self.sum_over_processes(torch.tensor(float(len(prompts.rows)), device=self.device))
        self.kl.update(float(metrics["kl"]), int(num_sequences))
        if self.adaptive_lr is not None:
            updates["update_kl"] = self.update_kl(experience)
            self.adaptive_lr.update(float(updates["update_kl"]))
        self.seen_tokens += int(rollout.sequences.attention_mask.sum())
        self.finish_step({**updates, **metrics, "kl_coefficient": torch.tensor(coefficient)})

    def sample(self, batch: PromptBatch, generator: torch.Generator) -> Rollout:
        """Replies of the current policy, at the temperature that is trained."""
        settings = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature}
        return generate(self.policy, batch, **settings, generator=generator)

    def score(self, rollout: Rollout) -> Tensor:
        """The reward of each reply (B,), and what a reply that never ended costs."""
        return score(
            self.reward,
            rollout,
            missing_eos_penalty=self.missing_eos_penalty,
            missing_eos_score=self.missing_eos_score,
        )

    def judge(self, rollout: Rollout) -> Judged:
        """Read a rollout with the forward pass that the update uses, a micro-batch at a time."""
        rows = torch.arange(rollout.sequences.num_rows, device=self.device)
        return Judged.cat([self.judge_part(rollout, part) for part in rows.split(self.micro_size(len(rows)))])

    def judge_part(self, rollout: Rollout, part: Tensor) -> Judged:
        """Policy and reference on some of the replies."""
        sequences = Sequences(*(x[part] for x in rollout.sequences))
        out = self.policy(sequences, temperature=self.temperature, entropy=True)
        reference = self.reference(sequences, temperature=self.temperature)
        return Judged(out.mask, out.logprobs, reference, None, out.entropy)

    def improve(self, experience: Any) -> dict[str, Tensor]:
        """Epochs over minibatches of updates; stops where the policy has moved `target_kl` from the sampler."""
        totals: dict[str, Tensor] = {}
        num_updates, stopped = 0, False
        number = self.num_minibatches(len(experience.rows))
        for epoch in range(self.update_epochs):
            for minibatch in minibatches(experience, number, self._generator(f"minibatches {epoch}")):
                micro_batches = list(split(self.before_update(minibatch), self.micro_size(len(minibatch.rows))))
                scale = self.adaptive_lr.scale if self.adaptive_lr is not None else 1.0
                metrics = self.update(
                    micro_batches, self.terms, self.count, lr_step=self.completed_steps, lr_scale=scale
                )
                num_updates += 1
                totals = {name: totals.get(name, 0.0) + value for name, value in metrics.items()}
                stopped = self.target_kl is not None and float(metrics["approx_kl"]) > self.target_kl
                if stopped:
                    break
            if stopped:
                break
        self.num_updates += num_updates
        return {name: total / num_updates for name, total in totals.items()} | {
            "updates": torch.tensor(float(num_updates))
        }

    @torch.no_grad()
    def update_kl(self, experience: Any) -> Tensor:
        """How far an iteration's updates moved the policy on its own replies: k3 of old against new, nats per token."""
        kl = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in split(experience, self.micro_size(len(experience.rows))):
            new = self.policy(part.sequences, temperature=self.temperature).logprobs
            kl += (kl_estimate(part.logprobs, new, kind="k3") * part.mask).double().sum()
        return self.sum_over_processes(kl) / self.sum_over_processes(experience.mask.sum().double()).clamp(min=1)

    # -- held-out prompts ------------------------------------------------------------------------------------------
    @torch.no_grad()
    def evaluate_batch(self, batch: PromptBatch, split: str) -> dict[str, Tensor]:
        """Fresh replies to held-out prompts: score, sequence KL, and score - coefficient x KL, the objective."""
        generator = torch.Generator(self.device).manual_seed(_mix(self.seed, split, int(batch.rows[0])))
        rollout = self.sample(batch, generator)
        judged = self.judge(rollout)
        kl = (judged.logprobs - judged.ref_logprobs).double().sum(-1)
        scores = self.score(rollout).to(kl)
        return {
            "reward": scores.sum(),
            "kl": kl.sum(),
            "objective": (scores - self.first_coefficient * kl).sum(),
            "response_length": judged.mask.sum().double(),
            "eos_rate": rollout.complete.double().sum(),
            "count": torch.tensor(float(len(kl)), device=kl.device),
        }

    # -- state -----------------------------------------------------------------------------------------------------
    def method_state(self) -> dict[str, Any]:
        scale = self.adaptive_lr.scale if self.adaptive_lr is not None else 1.0
        return {"kl_coefficient": float(self.kl.coefficient), "lr_scale": float(scale), "num_updates": self.num_updates}

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.kl.coefficient, self.num_updates = state["kl_coefficient"], state["num_updates"]
        if self.adaptive_lr is not None:
            self.adaptive_lr.scale = state["lr_scale"]

    # -- helpers ---------------------------------------------------------------------------------------------------
    def micro_size(self, whole: int) -> int:
        """Replies or pairs in one forward pass: hardware.micro_batch_size, else a minibatch, else the whole."""
        return self.micro_batch_size or self.minibatch_size or max(whole, 1)

    def num_minibatches(self, own: int) -> int:
        """Minibatches of an epoch over `own` replies or pairs of this process; the same on every process."""
        if self.minibatch_size is None:
            return 1
        total = int(self.sum_over_processes(torch.tensor(own, device=self.device)))
        # the last batch of an epoch may be small: no process is left without a reply in any minibatch
        return min(math.ceil(total / self.minibatch_size), _fewest(own))

    def totals(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums by name, over all processes."""
        return dict(zip(sums, self.sum_over_processes(torch.stack(list(sums.values()))), strict=True))

    def _generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A stream that depends on seed, iteration, process and purpose alone: nothing to store for a resume."""
        rank = self.global_rank if self._trainer is not None else 0
        return torch.Generator(device).manual_seed(_mix(self.seed, purpose, self.completed_steps, rank))


def refuse_dropout(module: nn.Module) -> None:
    """The ratio must be 1 before the first update: two passes over the same tokens have to agree (P26)."""
    for part in module.modules():
        rate = part.p if isinstance(part, nn.Dropout) else getattr(part, "attention_dropout", 0.0)
        if isinstance(rate, float) and rate > 0:
            raise ConfigError(
                f"model.dropout, adapter.dropout: the {type(module).__name__.lower()} has a dropout of {rate}, and a "
                "method that learns from its own replies has to read them twice alike; set both to 0.0"
            )


def _fewest(count: int) -> int:
    """The smallest `count` of all processes."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return count
    counts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counts, count)
    return min(counts)


def _mix(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
