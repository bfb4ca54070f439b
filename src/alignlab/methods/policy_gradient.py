"""Policy gradients without a critic: RLOO, GRPO and its variants, REINFORCE. A whole reply is one action.

    sum over replies i, tokens t of  w_i * -min(ratio_it A_i, clip(ratio_it) A_i)  +  KL term, if it is in the loss

A_i is the reply's reward against a baseline (`methods/baselines.py`), the same for all of its tokens; w_i is chosen by
`normalize`, the KL by `KLPenalty`. At the first update after a rollout every ratio is 1 and the gradient is that of
-w_i A_i log pi(y_i | x_i), REINFORCE (Williams 1992); ratios, per token, matter only where there are more updates.

The score is the reply's, so it does not matter on which token it stands. With `normalize: sum`, a baseline that is
unbiased and an exact KL (see `KLPenalty`), the expected gradient is that of J = E[score] - coefficient KL(pi || ref).
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.batches import Rollout
from alignlab.errors import ConfigError
from alignlab.losses.base import LossOutput
from alignlab.losses.policy import PPOPolicyLoss
from alignlab.methods.baselines import Baseline
from alignlab.methods.controllers import KLAdaptiveLR, KLController
from alignlab.methods.experience import Experience, rollout_metrics, rollout_sums
from alignlab.methods.kl_penalty import KLPenalty
from alignlab.methods.on_policy import OnPolicy
from alignlab.methods.optimization import AdamW
from alignlab.models.policy import Policy, PolicyOutput
from alignlab.rollout.scoring import Reward

WEIGHTS: dict[str, Callable[[Tensor, Tensor, int], Tensor | float]] = {
    "sum": lambda lengths, mean_length, longest: mean_length,
    "constant": lambda lengths, mean_length, longest: mean_length / longest,
    "sequence": lambda lengths, mean_length, longest: mean_length / lengths,
    "token": lambda lengths, mean_length, longest: 1.0,
}
"""What a reply's tokens weigh, from (lengths [B], mean length in the update, max_new_tokens).

They stand in a mean over the tokens of the update; the factor `mean_length` makes that a mean over its replies.
"""


class PolicyGradient(OnPolicy):
    """Replies in groups of `group_size` per prompt, compared with a baseline. `normalize` says what is averaged:

    sum       mean over replies of the sum over tokens: the policy gradient itself (RLOO, REINFORCE)
    constant  the same, divided by max_new_tokens (Dr. GRPO)
    sequence  mean over replies of the mean over tokens: tokens of long replies count less (GRPO)
    token     mean over all tokens of the update: long replies count more (DAPO)
    """

    def __init__(
        self,
        policy: Policy,
        *,
        reward: Reward,
        baseline: Baseline,
        kl: KLController,
        kl_penalty: KLPenalty,
        policy_loss: PPOPolicyLoss,
        normalize: Literal["sum", "constant", "sequence", "token"],
        group_size: int,
        lr: float,
        optimizer: AdamW,
        max_new_tokens: int,
        temperature: float = 1.0,
        reference: Literal["auto", "adapter_off", "copy"] = "auto",
        update_epochs: int = 1,
        minibatch_size: int | None = None,
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
            group_size=group_size,
            update_epochs=update_epochs,
            minibatch_size=minibatch_size,
            target_kl=target_kl,
            missing_eos_penalty=missing_eos_penalty,
            missing_eos_score=missing_eos_score,
            adaptive_lr=adaptive_lr,
            epochs=epochs,
            max_steps=max_steps,
        )
        if normalize not in WEIGHTS:
            raise ConfigError(f"method.normalize={normalize}: allowed are {', '.join(WEIGHTS)}")
        if group_size < baseline.smallest_group:
            raise ConfigError(
                f"method.group_size={group_size}: {type(baseline).__name__} compares the replies to a prompt with each "
                f"other; set at least {baseline.smallest_group}"
            )
        self.baseline, self.kl_penalty, self.policy_loss, self.normalize = baseline, kl_penalty, policy_loss, normalize

    # -- what a rollout teaches ------------------------------------------------------------------------------------
    @torch.no_grad()
    def collect(self, rollout: Rollout, rows: Tensor) -> tuple[Experience, dict[str, Tensor]]:
        """Score a rollout: log-probs, reference, rewards, advantages; and the iteration's metrics."""
        judged = self.judge(rollout)
        scores = rewards = self.score(rollout).to(judged.logprobs)
        if self.kl_penalty.where == "reward":
            price = self.kl_penalty.of_replies(judged.logprobs, judged.ref_logprobs, judged.mask)
            rewards = scores - self.kl.coefficient * price
        advantages = self.baseline.advantages(rewards, self.group_size, self.sum_over_processes)
        totals = self.totals(rollout_sums(rollout, judged, scores, rewards) | group_sums(scores, self.group_size))
        metrics = rollout_metrics(totals)
        if self.group_size > 1:
            metrics["flat_groups"] = totals["flat_groups"] / totals["groups"]
        fixed = (judged.mask, judged.logprobs, None, advantages[:, None] * judged.mask, None, rows)
        return Experience(rollout.sequences, *fixed, ref_logprobs=judged.ref_logprobs), metrics

    # -- one update ------------------------------------------------------------------------------------------------
    def before_update(self, minibatch: Experience) -> Experience:
        """With the weight of each reply's tokens, which depends on the mean length in the update."""
        lengths = minibatch.mask.sum(-1).double()
        ones = torch.ones_like(lengths)
        sums = self.totals({"tokens": lengths.sum(), "replies": ones.sum()})
        weights = WEIGHTS[self.normalize](lengths, sums["tokens"] / sums["replies"], self.max_new_tokens) * ones
        return minibatch._replace(weights=weights.to(minibatch.logprobs.dtype))

    def count(self, batch: Experience) -> Tensor:
        return batch.mask.sum()

    def compute(self, batch: Experience) -> LossOutput:
        wants_entropy = self.policy_loss.entropy_coefficient > 0
        return self.scored(self.policy, batch, self.loss_of, temperature=self.temperature, entropy=wants_entropy)[0]

    def loss_of(self, batch: Experience, out: PolicyOutput) -> LossOutput:
        """The loss of replies that the policy has read."""
        assert batch.weights is not None and batch.ref_logprobs is not None  # see `collect` and `before_update`
        weights = batch.weights[:, None].expand_as(batch.mask)
        policy = self.policy_loss(
            out.logprobs, batch.logprobs, batch.advantages, batch.mask, entropy=out.entropy, weights=weights
        )
        loss, metrics = policy.loss, {**policy.metrics, "policy_loss": policy.loss.detach()}
        if self.kl_penalty.where == "loss":
            prices = self.kl_penalty.of_replies(out.logprobs, batch.ref_logprobs, batch.mask)
            penalty = (batch.weights * prices).sum() / batch.mask.sum().clamp(min=1)
            loss, metrics = loss + self.kl.coefficient * penalty, metrics | {"kl_loss": penalty.detach()}
        return LossOutput(loss, metrics)

    # -- state -----------------------------------------------------------------------------------------------------
    def method_state(self) -> dict[str, Any]:
        return super().method_state() | {"baseline": self.baseline.state()}

    def load_method_state(self, state: dict[str, Any]) -> None:
        super().load_method_state(state)
        self.baseline.load_state(state["baseline"])


def group_sums(scores: Float[Tensor, "B"], group_size: int) -> dict[str, Float[Tensor, ""]]:
    """Prompts, and those whose replies all scored the same: comparing them teaches nothing."""
    groups = scores.double().view(-1, group_size)
    is_flat = groups.amax(1) == groups.amin(1)
    return {"groups": torch.ones_like(groups[:, 0]).sum(), "flat_groups": is_flat.double().sum()}
