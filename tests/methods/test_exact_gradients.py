"""Which policy gradients are exact: expectations over all replies of a closed world, against the gradient of J."""

from typing import Any

import pytest
import torch

from alignlab.losses.policy import PPOPolicyLoss
from alignlab.methods.baselines import GroupMean, GroupStandardized, LeaveOneOut, RunningMean
from alignlab.methods.controllers import FixedKL
from alignlab.methods.kl_penalty import KLPenalty
from alignlab.methods.optimization import AdamW
from alignlab.methods.policy_gradient import PolicyGradient
from tests.methods.closed_world import (
    LONGEST,
    all_logprobs,
    distance,
    expected_gradient,
    gradient,
    misdirection,
    move,
    objective_gradient,
    rollout_of,
    world_policy,
    world_reward,
)

BETA = 0.4
EXACT = 1e-10


def penalty(where: Any, estimator: Any, per: Any) -> KLPenalty:
    return KLPenalty(where=where, estimator=estimator, per=per)


IN_REWARD = penalty("reward", "k1", "sequence")


def make(
    baseline: Any, *, kl_penalty: KLPenalty = IN_REWARD, beta: float = BETA, normalize: Any = "sum", **settings: Any
) -> PolicyGradient:
    common: dict[str, Any] = {"lr": 1e-3, "optimizer": AdamW(), "group_size": 2, "max_new_tokens": LONGEST}
    method = PolicyGradient(
        world_policy(),
        reward=world_reward,
        baseline=baseline,
        kl=FixedKL(coefficient=beta),
        kl_penalty=kl_penalty,
        policy_loss=PPOPolicyLoss(0.2),
        normalize=normalize,
        **common | settings,
    )
    move(method)
    return method


def test_the_closed_world_is_closed():
    method = make(LeaveOneOut())
    logprobs, reference = all_logprobs(method)
    assert float(logprobs.exp().sum().detach()) == pytest.approx(1, abs=1e-12)
    assert float(reference.exp().sum()) == pytest.approx(1, abs=1e-12)
    kl = (logprobs.exp() * (logprobs - reference)).sum()
    assert 0.01 < float(kl.detach()) < 2 and logprobs.exp().max() < 0.9


@pytest.mark.parametrize("group_size", [2, 3])
def test_rloo_is_the_gradient_of_the_objective(group_size: int):
    method = make(LeaveOneOut(), group_size=group_size)
    assert distance(-expected_gradient(method, group_size), objective_gradient(method, BETA)) < EXACT


def test_the_kl_of_whole_replies_is_exact_as_a_loss_with_k2():
    method = make(LeaveOneOut(), kl_penalty=penalty("loss", "k2", "sequence"))
    assert distance(-expected_gradient(method, 2), objective_gradient(method, BETA)) < EXACT


def test_dr_grpo_is_the_gradient_of_the_objective_up_to_its_factor():
    method = make(GroupMean(), normalize="constant")
    factor = (2 - 1) / 2 / LONGEST
    assert distance(-expected_gradient(method, 2), factor * objective_gradient(method, BETA)) < EXACT


def test_reinforce_is_exact_whatever_its_baseline_remembers():
    method = make(RunningMean(decay=0.9), group_size=1)
    remembers = {"mean": 0.7, "count": 12.0}
    found = expected_gradient(method, 1, before=lambda: method.baseline.load_state(remembers))
    assert distance(-found, objective_gradient(method, BETA)) < EXACT


def test_reinforces_first_step_is_exact_too():
    method = make(RunningMean(decay=None), group_size=1)
    nothing = {"mean": 0.0, "count": 0.0}
    found = expected_gradient(method, 2, before=lambda: method.baseline.load_state(nothing))
    assert distance(-found, objective_gradient(method, BETA)) < EXACT


def test_at_another_temperature_it_is_the_tempered_policy_that_is_trained():
    method = make(LeaveOneOut(), temperature=0.7)
    assert distance(-expected_gradient(method, 2), objective_gradient(method, BETA)) < EXACT


@pytest.mark.parametrize(
    ("baseline", "normalize"),
    [(GroupStandardized(), "sum"), (LeaveOneOut(), "sequence"), (LeaveOneOut(), "token")],
    ids=["std of the group", "length of the reply", "tokens of the step"],
)
def test_what_grpo_and_dapo_divide_by_is_a_bias(baseline: Any, normalize: str):
    """Not a matter of scale: the direction is another one. Without a KL, so that nothing else differs."""
    method = make(baseline, normalize=normalize, beta=0.0)
    assert misdirection(-expected_gradient(method, 2), objective_gradient(method, 0.0)) > 0.02


@pytest.mark.parametrize(
    ("where", "estimator", "per"),
    [
        ("loss", "k3", "token"),
        ("loss", "k3", "sequence"),
        ("loss", "k2", "token"),
        ("reward", "k3", "token"),
        ("reward", "k2", "sequence"),
    ],
)
def test_the_other_kl_conventions_are_biased(where: str, estimator: str, per: str):
    method = make(LeaveOneOut(), kl_penalty=penalty(where, estimator, per))
    of_kl = objective_gradient(method, BETA) - objective_gradient(method, 0.0)
    found = -expected_gradient(method, 2) - objective_gradient(method, 0.0)
    assert distance(found, of_kl) > 0.05


def test_off_the_sampler_the_kl_loss_is_the_mean_price_of_the_samplers_replies(monkeypatch: pytest.MonkeyPatch):
    """Rewards alike, so that only the penalty moves: d/d pi of the sum over y of sampler(y) 0.5 d(y)^2."""
    method = make(LeaveOneOut(), kl_penalty=penalty("loss", "k2", "sequence"))
    monkeypatch.setattr(method, "score", lambda rollout: torch.zeros(len(rollout.responses)))
    sampler = all_logprobs(method)[0].detach().exp()
    experiences = [method.collect(rollout_of([i, i]), torch.zeros(2, dtype=torch.long))[0] for i in range(7)]
    move(method, seed=2)
    found = sum(
        p * gradient(method, method.compute(method.before_update(e)).loss)
        for p, e in zip(sampler, experiences, strict=True)
    )
    logprobs, reference = all_logprobs(method)
    expected = gradient(method, BETA * (sampler * 0.5 * (logprobs - reference) ** 2).sum())
    assert isinstance(found, torch.Tensor) and distance(found, expected) < EXACT


def test_at_the_optimum_nothing_is_left_to_learn_from_any_reply(monkeypatch: pytest.MonkeyPatch):
    """Where reward = beta log pi / ref + a constant, pi is the optimum, and every reply's advantage is 0."""
    method = make(LeaveOneOut())
    logprobs, reference = (x.detach() for x in all_logprobs(method))
    rewards = BETA * (logprobs - reference) + 3.0
    monkeypatch.setattr(method, "score", lambda rollout: rewards[[0, 3, 5, 6]])
    experience, _ = method.collect(rollout_of([0, 3, 5, 6]), torch.zeros(4, dtype=torch.long))
    assert experience.advantages.abs().max() < 1e-12
