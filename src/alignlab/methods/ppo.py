"""Proximal policy optimisation of a policy against a reward, with a KL penalty to where it started.

One training batch is one iteration: sample replies, score them, work out advantages with GAE (Schulman et al.
2016), then a few epochs of clipped updates over minibatches (Schulman et al. 2017, eq. 7 and 9). The recipe is
that of Ziegler et al. 2019 and "The N implementation details of RLHF with PPO" (Huang et al. 2024).

Log-probs of the sampled tokens are recomputed by the same forward pass that the update uses (dropout off, same
temperature), so the first ratio is 1; how far the sampler was from it is the metric `sampler_gap`.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alignlab.batches import PromptBatch, Rollout
from alignlab.errors import ConfigError
from alignlab.kernels.advantages import gae
from alignlab.kernels.divergence import kl_estimate
from alignlab.losses.base import LossOutput
from alignlab.losses.policy import PPOPolicyLoss, ValueLoss
from alignlab.methods.base import Method
from alignlab.methods.controllers import KLAdaptiveLR, KLController
from alignlab.methods.dpo import make_reference
from alignlab.methods.experience import Experience, Judged, rollout_metrics, rollout_sums, token_rewards
from alignlab.methods.optimization import AdamW
from alignlab.models.critic import Critic
from alignlab.models.heads import ValueHead
from alignlab.models.policy import Policy
from alignlab.models.reward_model import RewardModel
from alignlab.rollout.generate import generate
from alignlab.rollout.scoring import Reward, score
from alignlab.rows import PromptRow


class PPO(Method):
    """PPO with GAE. `critic` says where values come from:

    shared    a zero-initialised head on the policy's own trunk (less memory; its gradient shapes the trunk too)
    separate  a network of its own: a copy of the starting policy's body with a zero-initialised head
    reward    a network of its own, started from the reward model (needs method/reward=model of the same tokenizer)
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
        policy_loss: PPOPolicyLoss,
        value_loss: ValueLoss,
        lr: float,
        optimizer: AdamW,
        max_new_tokens: int,
        temperature: float = 1.0,
        critic: Literal["shared", "separate", "reward"] = "shared",
        reference: Literal["auto", "adapter_off", "copy"] = "auto",
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        whiten_advantages: bool = True,
        value_coefficient: float = 0.1,
        update_epochs: int = 2,
        minibatch_size: int = 32,
        target_kl: float | None = None,
        missing_eos_penalty: float | None = None,
        missing_eos_score: float | None = None,
        adaptive_lr: KLAdaptiveLR | None = None,
        epochs: float = 1,
        max_steps: int | None = None,
    ) -> None:
        super().__init__(lr=lr, optimizer=optimizer, epochs=epochs, max_steps=max_steps)
        if temperature <= 0:
            raise ConfigError(f"method.temperature={temperature}: must be positive")
        if update_epochs < 1 or minibatch_size < 1:
            raise ConfigError(f"method.update_epochs={update_epochs}, minibatch_size={minibatch_size}: at least 1 each")
        self.policy, self.reward, self.kl = policy, reward, kl
        self.policy_loss, self.value_loss = policy_loss, value_loss
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.gamma, self.gae_lambda, self.whiten_advantages = gamma, gae_lambda, whiten_advantages
        self.value_coefficient = value_coefficient
        self.update_epochs, self.minibatch_size, self.target_kl = update_epochs, minibatch_size, target_kl
        self.missing_eos_penalty, self.missing_eos_score = missing_eos_penalty, missing_eos_score
        self.adaptive_lr = adaptive_lr
        self.reference = make_reference(policy, reference)
        self.critic = make_critic(critic, policy, reward)
        self.num_updates = 0
        self.first_coefficient = kl.coefficient  # of the objective that checkpoints are compared by

    def trained_modules(self) -> Iterable[nn.Module]:
        return [self.policy] if self.critic is None else [self.policy, self.critic]

    def before_training(self, data: Any) -> None:
        refuse_dropout(self.policy, "the policy")
        if self.critic is not None:
            refuse_dropout(self.critic, "the critic")
        if hasattr(self.reward, "to"):
            self.reward.to(self.device)  # a reward model that is not one of our submodules

    def live_reference(self) -> Any:
        return self.reference

    # -- one iteration -------------------------------------------------------------------------------------------
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        rollout = self.sample(batch, self._generator("sample", self.device))
        experience, metrics = self.collect(rollout, batch.rows)
        updates, coefficient = self.improve(experience), self.kl.coefficient
        num_sequences = self.sum_over_processes(torch.tensor(float(len(batch.rows)), device=self.device))
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

    @torch.no_grad()
    def collect(self, rollout: Rollout, rows: Tensor) -> tuple[Experience, dict[str, Tensor]]:
        """Score a rollout: log-probs, reference, values, rewards, advantages; and the iteration's metrics."""
        judged = self._judge(rollout)
        scores = self.score(rollout).to(judged.logprobs)
        rewards = token_rewards(scores, judged.logprobs, judged.ref_logprobs, judged.mask, self.kl.coefficient)
        advantages, returns = gae(rewards, judged.values, judged.mask, gamma=self.gamma, gae_lambda=self.gae_lambda)
        sums = rollout_sums(rollout, judged, scores, rewards, returns)
        totals = self.sum_over_processes(torch.stack(list(sums.values())))
        metrics = rollout_metrics(dict(zip(sums, totals, strict=True)))
        if self.whiten_advantages:
            advantages = self._whiten(advantages, judged.mask)
        fixed = (judged.mask, judged.logprobs, judged.values, advantages, returns)
        return Experience(rollout.sequences, *fixed, rows=rows), metrics

    def improve(self, experience: Experience) -> dict[str, Tensor]:
        """Epochs over minibatches of clipped updates; stops where the policy has moved `target_kl` from the sampler."""
        totals: dict[str, Tensor] = {}
        num_updates, stopped = 0, False
        num_replies = self.sum_over_processes(torch.tensor(len(experience.rows), device=self.device))
        # the last batch of an epoch may be small: no process is left without a reply in any minibatch
        num_minibatches = min(math.ceil(int(num_replies) / self.minibatch_size), self._fewest(len(experience.rows)))
        for epoch in range(self.update_epochs):
            for minibatch in experience.minibatches(num_minibatches, self._generator(f"minibatches {epoch}")):
                micro_batches = list(minibatch.split(self.micro_batch_size or self.minibatch_size))
                scale = self.adaptive_lr.scale if self.adaptive_lr is not None else 1.0
                metrics = self.update(
                    micro_batches, self.compute, self.count, lr_step=self.completed_steps, lr_scale=scale
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
    def update_kl(self, experience: Experience) -> Tensor:
        """How far an iteration's updates moved the policy on its own replies: k3 of old against new, nats per token."""
        kl = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in experience.split(self.micro_batch_size or self.minibatch_size):
            new = self.policy(part.sequences, temperature=self.temperature).logprobs
            kl += (kl_estimate(part.logprobs, new, kind="k3") * part.mask).double().sum()
        return self.sum_over_processes(kl) / self.sum_over_processes(experience.mask.sum().double()).clamp(min=1)

    # -- one update ----------------------------------------------------------------------------------------------
    def count(self, batch: Experience) -> Tensor:
        return batch.mask.sum()

    def compute(self, batch: Experience) -> LossOutput:
        shares_trunk = self.critic is None
        wants_entropy = self.policy_loss.entropy_coefficient > 0
        out = self.policy(batch.sequences, temperature=self.temperature, entropy=wants_entropy, values=shares_trunk)
        values = out.values if self.critic is None else self.critic(batch.sequences)
        policy = self.policy_loss(out.logprobs, batch.logprobs, batch.advantages, batch.mask, entropy=out.entropy)
        value = self.value_loss(values, batch.values, batch.returns, batch.mask)
        loss = policy.loss + self.value_coefficient * value.loss
        metrics = {**policy.metrics, "policy_loss": policy.loss.detach(), "value_loss": value.loss.detach()}
        return LossOutput(loss, metrics | {"value_clip_fraction": value.metrics["clip_fraction"]})

    # -- held-out prompts ----------------------------------------------------------------------------------------
    @torch.no_grad()
    def evaluate_batch(self, batch: PromptBatch, split: str) -> dict[str, Tensor]:
        """Fresh replies to held-out prompts: score, sequence KL, and score - coefficient x KL, the objective."""
        generator = torch.Generator(self.device).manual_seed(_mix(self.seed, split, int(batch.rows[0])))
        rollout = self.sample(batch, generator)
        judged = self._judge(rollout)
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

    # -- helpers -----------------------------------------------------------------------------------------------
    def _generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A stream that depends on seed, iteration, process and purpose alone: nothing to store for a resume."""
        rank = self.global_rank if self._trainer is not None else 0
        return torch.Generator(device).manual_seed(_mix(self.seed, purpose, self.completed_steps, rank))

    def _parts(self, num_rows: int) -> list[Tensor]:
        size = self.micro_batch_size or self.minibatch_size
        return list(torch.arange(num_rows, device=self.device).split(size))

    @staticmethod
    def _fewest(count: int) -> int:
        """The smallest `count` of all processes."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return count
        counts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(counts, count)
        return min(counts)

    def _judge(self, rollout: Rollout) -> Judged:
        """Read a rollout with the forward pass that the update uses, a micro-batch at a time."""
        size = self.micro_batch_size or self.minibatch_size
        rows = torch.arange(rollout.sequences.num_rows, device=self.device)
        return Judged.cat([self._judge_part(rollout, part) for part in rows.split(size)])

    def _judge_part(self, rollout: Rollout, part: Tensor) -> Judged:
        sequences = type(rollout.sequences)(*(x[part] for x in rollout.sequences))
        out = self.policy(sequences, temperature=self.temperature, entropy=True, values=self.critic is None)
        values = out.values if self.critic is None else self.critic(sequences)
        reference = self.reference(sequences, temperature=self.temperature)
        return Judged(out.mask, out.logprobs, reference, values, out.entropy)

    def _whiten(self, x: Tensor, mask: Tensor) -> Tensor:
        """`masked_whiten` with mean and unbiased variance over the tokens of all processes."""
        count = self.sum_over_processes(mask.sum().double())
        mean = self.sum_over_processes((x * mask).double().sum()) / count.clamp(min=1)
        centred = (x.double() - mean) * mask
        variance = self.sum_over_processes((centred**2).sum()) / (count - 1).clamp(min=1)
        # 1e-8 guards a constant advantage (every reply scored alike); it is far below any real spread
        return (centred * torch.rsqrt(variance + 1e-8)).to(x.dtype)


def make_critic(kind: str, policy: Policy, reward: Reward) -> Critic | None:
    """The value network; None where values come from a head on the policy's trunk (which is put there)."""
    if kind == "shared":
        policy.value_head = ValueHead(policy.hidden_size).to(policy.device)
        return None
    if kind == "separate":
        return Critic.from_policy(policy)
    if kind == "reward":
        model = getattr(reward, "reward_model", None)
        if not isinstance(model, RewardModel):
            raise ConfigError("method.critic=reward: needs a trained reward model as reward (method/reward=model)")
        return Critic.from_reward_model(model, tokenizer=policy.tokenizer)
    raise ConfigError(f"method.critic={kind}: allowed are shared, separate and reward")


def refuse_dropout(module: nn.Module, name: str) -> None:
    """PPO's ratio must be 1 before the first update: two passes over the same tokens have to agree (P26)."""
    for part in module.modules():
        rate = part.p if isinstance(part, nn.Dropout) else getattr(part, "attention_dropout", 0.0)
        if isinstance(rate, float) and rate > 0:
            raise ConfigError(
                f"method=ppo: {name} has a dropout of {rate}; set model.dropout=0.0 and adapter.dropout=0.0"
            )


def _mix(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same on every machine."""
    import hashlib

    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
