"""Methods as the study of gradients tries them: what is biased, what is not, and what undoes their normaliser."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from alignlab.losses.policy import PPOPolicyLoss, ValueLoss
from alignlab.methods.baselines import Baseline, GroupMean, GroupStandardized, LeaveOneOut
from alignlab.methods.controllers import FixedKL
from alignlab.methods.experience import Experience
from alignlab.methods.kl_penalty import KLPenalty
from alignlab.methods.optimization import AdamW
from alignlab.methods.policy_gradient import PolicyGradient
from alignlab.methods.ppo import PPO
from alignlab.models.policy import Policy
from alignlab.worlds.exact import ExactReward, ExactWorld

Normalize = Literal["sum", "constant", "sequence", "token"]

IN_REWARD = KLPenalty(where="reward", estimator="k1", per="sequence")
IN_LOSS = KLPenalty(where="loss", estimator="k2", per="sequence")
AS_GRPO = KLPenalty(where="loss", estimator="k3", per="token")


class Case(NamedTuple):
    """A method with a name, and what is known of its gradient."""

    name: str
    method: Any  # PPO or PolicyGradient
    factor: Callable[[Experience], float] | None  # what undoes its normaliser; None: the scale has no meaning
    is_unbiased: bool  # but for the factor
    has_exact_values: bool = False
    is_linear: bool = False  # a reply's share of the gradient depends on no other reply


def make_cases(policy: Policy, world: ExactWorld, group_size: int) -> list[Case]:
    """PPO(lambda) with a critic that says 0 or with exact values, RLOO, GRPO, and Dr. GRPO with the KL in its reward.

    All train this very policy, at the world's beta. Each copies it as it is now: that is its reference.
    """

    def ppo(gae_lambda: float, *, exact: bool = False, whiten: bool = False, is_unbiased: bool = True) -> Case:
        name = f"PPO({gae_lambda:g})" + ", exact V" * exact + ", whitened" * whiten
        method = make_ppo(policy, world, gae_lambda=gae_lambda, whiten=whiten)
        return Case(name, method, None if whiten else tokens_per_reply, is_unbiased, exact, is_linear=not whiten)

    def in_groups(
        name: str, baseline: Baseline, penalty: KLPenalty, normalize: Normalize, factor: float | None
    ) -> Case:
        method = make_in_groups(policy, world, baseline, penalty, normalize, group_size)
        return Case(name, method, None if factor is None else lambda _: factor, is_unbiased=factor is not None)

    undone = world.max_length * group_size / (group_size - 1)
    return [
        ppo(1.0),
        ppo(1.0, exact=True),
        ppo(0.95, exact=True),
        ppo(0.0, exact=True),
        ppo(1.0, whiten=True),
        ppo(0.95, is_unbiased=False),
        ppo(0.0, is_unbiased=False),
        in_groups("RLOO", LeaveOneOut(), IN_REWARD, "sum", 1.0),
        in_groups("RLOO, k2 in the loss", LeaveOneOut(), IN_LOSS, "sum", 1.0),
        in_groups("Dr. GRPO, k1", GroupMean(), IN_REWARD, "constant", undone),
        in_groups("GRPO", GroupStandardized(), AS_GRPO, "sequence", None),
    ]


def make_ppo(policy: Policy, world: ExactWorld, *, gae_lambda: float, whiten: bool) -> PPO:
    """PPO with a critic of its own, whose head starts at 0: it has no values to speak of before the first update."""
    return PPO(
        policy,
        reward=ExactReward(world),
        kl=FixedKL(coefficient=world.beta),
        policy_loss=PPOPolicyLoss(0.2),
        value_loss=ValueLoss(0.2),
        lr=0.0,
        optimizer=AdamW(),
        max_new_tokens=world.max_length,
        critic="separate",
        reference="copy",
        gamma=1.0,
        gae_lambda=gae_lambda,
        whiten_advantages=whiten,
    )


def make_in_groups(
    policy: Policy, world: ExactWorld, baseline: Baseline, penalty: KLPenalty, normalize: Normalize, group_size: int
) -> PolicyGradient:
    """A method without a critic."""
    return PolicyGradient(
        policy,
        reward=ExactReward(world),
        baseline=baseline,
        kl=FixedKL(coefficient=world.beta),
        kl_penalty=penalty,
        policy_loss=PPOPolicyLoss(0.2),
        normalize=normalize,
        group_size=group_size,
        lr=0.0,
        optimizer=AdamW(),
        max_new_tokens=world.max_length,
        reference="copy",
    )


def tokens_per_reply(experience: Experience) -> float:
    """What a mean over tokens has to be multiplied by to be a mean over replies."""
    return float(experience.mask.sum()) / len(experience.mask)
