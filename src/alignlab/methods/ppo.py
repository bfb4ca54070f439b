"""Proximal policy optimisation of a policy against a reward, with a KL penalty to where it started.

What is PPO's own in an iteration: a critic, advantages by GAE (Schulman et al. 2016), and a few epochs of clipped
updates of policy and critic over minibatches (Schulman et al. 2017, eq. 7 and 9). The recipe is that of Ziegler et al.
2019 and "The N implementation details of RLHF with PPO" (Huang et al. 2024): the score stands on the reply's last
token, the KL penalty (k1) is paid token by token in the reward, advantages are whitened, mean included.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from alignlab.batches import Rollout, Sequences
from alignlab.errors import ConfigError
from alignlab.kernels.advantages import gae
from alignlab.losses.base import LossOutput
from alignlab.losses.policy import PPOPolicyLoss, ValueLoss
from alignlab.methods.controllers import KLAdaptiveLR, KLController
from alignlab.methods.experience import Experience, Judged, rollout_metrics, rollout_sums, token_rewards
from alignlab.methods.on_policy import OnPolicy
from alignlab.methods.optimization import AdamW
from alignlab.models.critic import Critic
from alignlab.models.heads import ValueHead
from alignlab.models.policy import Policy, PolicyOutput
from alignlab.models.reward_model import RewardModel
from alignlab.rollout.scoring import Reward


class PPO(OnPolicy):
    """PPO with GAE. `critic` says where values come from:

    shared    a zero-initialised head on the policy's own trunk (less memory; its gradient shapes the trunk too)
    separate  a network of its own: a copy of the starting policy's body with a zero-initialised head
    reward    a network of its own, started from the reward model (needs method/reward=model of the same tokenizer)
    """

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
        super().__init__(
            policy,
            reward=reward,
            kl=kl,
            lr=lr,
            optimizer=optimizer,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            reference=reference,
            group_size=1,
            update_epochs=update_epochs,
            minibatch_size=minibatch_size,
            target_kl=target_kl,
            missing_eos_penalty=missing_eos_penalty,
            missing_eos_score=missing_eos_score,
            adaptive_lr=adaptive_lr,
            epochs=epochs,
            max_steps=max_steps,
        )
        self.policy_loss, self.value_loss = policy_loss, value_loss
        self.gamma, self.gae_lambda, self.whiten_advantages = gamma, gae_lambda, whiten_advantages
        self.value_coefficient = value_coefficient
        self.critic = make_critic(critic, policy, reward)

    def trained_modules(self) -> Iterable[nn.Module]:
        return [self.policy] if self.critic is None else [self.policy, self.critic]

    # -- what a rollout teaches ------------------------------------------------------------------------------------
    @torch.no_grad()
    def collect(self, rollout: Rollout, rows: Tensor) -> tuple[Experience, dict[str, Tensor]]:
        """Score a rollout: log-probs, reference, values, rewards, advantages; and the iteration's metrics."""
        judged = self.judge(rollout)
        assert judged.values is not None  # see `judge_part`
        scores = self.score(rollout).to(judged.logprobs)
        rewards = token_rewards(scores, judged.logprobs, judged.ref_logprobs, judged.mask, self.kl.coefficient)
        advantages, returns = gae(rewards, judged.values, judged.mask, gamma=self.gamma, gae_lambda=self.gae_lambda)
        metrics = rollout_metrics(self.totals(rollout_sums(rollout, judged, scores, rewards, returns)))
        if self.whiten_advantages:
            advantages = self._whiten(advantages, judged.mask)
        fixed = (judged.mask, judged.logprobs, judged.values, advantages, returns)
        return Experience(rollout.sequences, *fixed, rows=rows), metrics

    def judge_part(self, rollout: Rollout, part: Tensor) -> Judged:
        """Policy, critic and reference on some of the replies."""
        sequences = Sequences(*(x[part] for x in rollout.sequences))
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

    # -- one update ------------------------------------------------------------------------------------------------
    def count(self, batch: Experience) -> Tensor:
        return batch.mask.sum()

    def policy_loss_of(self, batch: Experience, out: PolicyOutput) -> LossOutput:
        """PPO's loss of replies that the policy has read."""
        return self.policy_loss(out.logprobs, batch.logprobs, batch.advantages, batch.mask, entropy=out.entropy)

    def compute(self, batch: Experience) -> LossOutput:
        terms = list(self._terms(batch))
        return LossOutput(
            torch.stack([term.loss for term in terms]).sum(),
            {name: value for term in terms for name, value in term.metrics.items()},
        )

    def terms(self, batch: Experience) -> Iterable[LossOutput]:
        yield from self._terms(batch)

    def _terms(self, batch: Experience) -> Iterable[LossOutput]:
        """One of policy and critic on the same trunk; one each, the policy's first, of networks of their own."""
        shares_trunk = self.critic is None
        wants_entropy = self.policy_loss.entropy_coefficient > 0
        settings = {"temperature": self.temperature, "entropy": wants_entropy, "values": shares_trunk}
        policy, values = self.scored(self.policy, batch, self.policy_loss_of, **settings)
        of_policy = {**policy.metrics, "policy_loss": policy.loss.detach()}
        if self.critic is not None:
            yield LossOutput(policy.loss, of_policy)
            yield self._value_term(self.critic(batch.sequences), batch)
            return
        assert values is not None
        value = self._value_term(values, batch)
        yield LossOutput(policy.loss + value.loss, of_policy | value.metrics)

    def _value_term(self, values: Tensor, batch: Experience) -> LossOutput:
        """The value loss by its coefficient."""
        assert batch.values is not None and batch.returns is not None  # see `collect`
        value = self.value_loss(values, batch.values, batch.returns, batch.mask)
        metrics = {"value_loss": value.loss.detach(), "value_clip_fraction": value.metrics["clip_fraction"]}
        return LossOutput(self.value_coefficient * value.loss, metrics)


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
