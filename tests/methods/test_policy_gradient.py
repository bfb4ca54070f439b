"""RLOO, GRPO and REINFORCE: what a step is made of, by hand and by plain loops, however it is cut.

That their gradients are (or are not) that of the objective is in test_exact_gradients.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.losses.policy import PPOPolicyLoss
from alignlab.methods.baselines import RunningMean
from alignlab.methods.controllers import FixedKL
from alignlab.methods.experience import Experience, minibatches, repeated
from alignlab.methods.kl_penalty import KLPenalty
from alignlab.methods.optimization import AdamW
from alignlab.methods.policy_gradient import WEIGHTS, PolicyGradient
from tests.methods.setting import PROMPT_ROW, ROLLOUT_METHODS, fit, letter_reward, make_data, make_method

STEADY = AdamW(schedule="constant", max_grad_norm=None)
GRADIENTS = [name for name in ROLLOUT_METHODS if name != "online_dpo"]


def collected(method: Any, num_prompts: int = 6) -> tuple[Any, Experience, dict[str, torch.Tensor]]:
    batch = repeated(make_data(PROMPT_ROW, batch_size=num_prompts).train_batch(0), method.group_size)
    rollout = method.sample(batch, torch.Generator().manual_seed(3))
    return rollout, *method.collect(rollout, batch.rows)


def vowel_reward(prompts: Any, responses: Any) -> torch.Tensor:
    """How many vowels a reply has."""
    return torch.tensor([float(sum(reply.count(vowel) for vowel in "aeiou")) for reply in responses])


def metrics_of(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


def test_weights_by_hand():
    """Replies of 1 and 3 tokens, mean 2; longest 4. In a mean over 4 tokens, 2 per token is 1 per token and reply."""
    lengths, mean = torch.tensor([1.0, 3.0]).double(), torch.tensor(2.0).double()
    expected = {"sum": [2, 2], "constant": [0.5, 0.5], "sequence": [2, 2 / 3], "token": [1, 1]}
    for name, weights in expected.items():
        found = WEIGHTS[name](lengths, mean, 4) * torch.ones(2).double()
        torch.testing.assert_close(found, torch.tensor(weights).double())


@pytest.mark.parametrize("normalize", ["sum", "constant", "sequence", "token"])
@pytest.mark.parametrize("where", ["reward", "loss"])
def test_the_loss_is_what_plain_loops_say(normalize: str, where: str):
    """After the policy has moved, with a clip that bites on both sides, an entropy bonus and a KL."""
    kl_penalty = KLPenalty(where=where, estimator="k3" if where == "loss" else "k1", per="token")
    policy_loss = PPOPolicyLoss(0.05, clip_range_high=0.1, entropy_coefficient=0.03)
    method = make_method("grpo", normalize=normalize, kl_penalty=kl_penalty, policy_loss=policy_loss)
    method.kl = FixedKL(coefficient=0.3)
    _, experience, _ = collected(method)
    with torch.no_grad():
        for weight in method.policy.model.parameters():
            weight.mul_(1.03)
        out = method.policy(experience.sequences, entropy=True)
        reference = method.reference(experience.sequences)
    replies, clipped = [], 0
    for i in range(len(experience.rows)):
        terms = []
        for t in experience.mask[i].nonzero().flatten().tolist():
            ratio = float((out.logprobs[i, t] - experience.logprobs[i, t]).double().exp())
            advantage = float(experience.advantages[i, t])
            bounded = min(max(ratio, 0.95), 1.1)
            clipped += bounded != ratio
            term = -min(ratio * advantage, bounded * advantage) - 0.03 * float(out.entropy[i, t])
            d = (out.logprobs[i, t] - reference[i, t]).double()
            terms.append(term + (0.3 * float((-d).exp() - 1 + d) if where == "loss" else 0.0))
        replies.append(terms)
    counts = {
        "sum": sum(sum(terms) for terms in replies) / len(replies),
        "constant": sum(sum(terms) / 8 for terms in replies) / len(replies),
        "sequence": sum(sum(terms) / len(terms) for terms in replies) / len(replies),
        "token": sum(sum(terms) for terms in replies) / sum(len(terms) for terms in replies),
    }
    output = method.compute(method.before_update(experience))
    assert float(output.loss.detach()) == pytest.approx(counts[normalize], rel=1e-4)
    assert clipped and len({len(terms) for terms in replies}) > 1
    assert float(output.metrics["clip_fraction"]) == pytest.approx(clipped / sum(map(len, replies)), rel=1e-5)
    assert ("kl_loss" in output.metrics) == (where == "loss")


def test_the_penalty_in_the_reward_is_paid_before_the_comparison():
    method = make_method("rloo")
    with torch.no_grad():
        for weight in method.policy.model.parameters():
            weight.mul_(1.1)
    rollout, experience, metrics = collected(method)
    with torch.no_grad():
        kl = (experience.logprobs - method.reference(experience.sequences)).sum(-1)
    rewards = letter_reward(rollout.prompts, rollout.responses) - 0.05 * kl
    by_hand = [float(rewards[i] - (rewards[i // 3 * 3 : i // 3 * 3 + 3].sum() - rewards[i]) / 2) for i in range(18)]
    found = torch.where(experience.mask, experience.advantages, 0.0).sum(-1) / experience.mask.sum(-1)
    torch.testing.assert_close(found, torch.tensor(by_hand), rtol=1e-4, atol=1e-5)
    assert float(metrics["reward"]) == pytest.approx(float(rewards.mean()), rel=1e-5)
    assert abs(float(metrics["kl"])) > 0.01
    assert not experience.advantages[~experience.mask].any()


def test_with_the_penalty_in_the_loss_the_reward_is_the_score():
    _, _, metrics = collected(make_method("grpo"))
    assert float(metrics["reward"]) == float(metrics["score"])


def test_flat_groups_are_prompts_whose_replies_all_scored_the_same():
    rollout, _, metrics = collected(make_method("rloo"))
    scores = letter_reward(rollout.prompts, rollout.responses).view(6, 3).tolist()
    flat = sum(len(set(group)) == 1 for group in scores) / 6
    assert float(metrics["flat_groups"]) == pytest.approx(flat) and 0 < flat < 1
    assert "flat_groups" not in collected(make_method("reinforce"))[2]


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_first_ratio_is_one(name: str, tmp_path: Path):
    fit(make_method(name, max_steps=1, minibatch_size=None), tmp_path)
    [metrics] = metrics_of(tmp_path)
    assert metrics["train/ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["train/clip_fraction"] == 0 and metrics["train/approx_kl"] < 1e-10


@pytest.mark.parametrize("name", GRADIENTS)
def test_without_a_learning_rate_the_ratio_stays_one(name: str, tmp_path: Path):
    fit(make_method(name, lr=0.0, update_epochs=2, minibatch_size=4, max_steps=2), tmp_path)
    for metrics in metrics_of(tmp_path):
        assert metrics["train/updates"] > 2
        assert metrics["train/ratio_mean"] == pytest.approx(1.0, abs=1e-6) and metrics["train/clip_fraction"] == 0


@pytest.mark.parametrize("name", ROLLOUT_METHODS)
def test_a_step_does_not_depend_on_how_it_is_cut(name: str, tmp_path: Path):
    """Replies (pairs) one by one, or all at once: the same loss, gradient and metrics, though lengths differ (P18).

    One update: Adam makes large steps of small differences in the gradient.
    """
    settings: dict[str, Any] = {"max_steps": 1, "optimizer": STEADY, "minibatch_size": None, "reward": vowel_reward}
    fit(make_method(name, **settings), tmp_path / "a")
    fit(make_method(name, **settings), tmp_path / "b", micro_batch_size=1)
    [whole], [parts] = metrics_of(tmp_path / "a"), metrics_of(tmp_path / "b")
    for metrics in (whole, parts):
        metrics.pop("train/accuracy", None)  # of margins that are 0 up to rounding at the first step
    assert whole == pytest.approx(parts, rel=1e-4, abs=2e-6)
    assert whole["train/grad_norm"] > 1e-2


@pytest.mark.parametrize("name", ["rloo", "grpo", "dapo", "reinforce"])
def test_two_processes_make_one_step(name: str):
    """Half the prompts here, half there: sums over both give each the whole step's numbers.

    The one process writes down every sum it makes; each half must add up to it, and then, told the totals, get the
    same metrics, advantages and weights, so that the halves' losses, weighed by tokens, are the whole's.
    """
    method = make_method(name)
    rollout, _, _ = collected(method)

    def half(rows: slice) -> Any:
        sequences, tuples = type(rollout.sequences)(*(x[rows] for x in rollout.sequences)), rollout[3:]
        return rollout._replace(
            sequences=sequences,
            sampler_logprobs=rollout.sampler_logprobs[rows],
            complete=rollout.complete[rows],
            prompts=tuples[0][rows],
            responses=tuples[1][rows],
        )

    def step(part: Any, totals: list[torch.Tensor] | None) -> tuple[list[torch.Tensor], Experience, Any, Any]:
        own: list[torch.Tensor] = []

        def total(x: torch.Tensor) -> torch.Tensor:
            own.append(x)
            return x if totals is None else totals[len(own) - 1]

        method.sum_over_processes = total
        if isinstance(method.baseline, RunningMean):
            method.baseline.load_state({"mean": 0.0, "count": 0.0})
        experience, metrics = method.collect(part, torch.arange(len(part.responses)))
        experience = method.before_update(experience)
        return own, experience, metrics, method.compute(experience).loss.detach()

    middle = 4 * method.group_size  # shares of different sizes
    sums, whole, metrics, loss = step(rollout, None)
    halves = [step(half(slice(None, middle)), sums), step(half(slice(middle, None)), sums)]
    for a, b, both in zip(halves[0][0], halves[1][0], sums, strict=True):
        torch.testing.assert_close(a + b, both, rtol=1e-5, atol=1e-5)
    numbers = {key: float(value) for key, value in metrics.items()}
    assert all({key: float(value) for key, value in part[2].items()} == pytest.approx(numbers) for part in halves)
    torch.testing.assert_close(torch.cat([part[1].weights for part in halves]), whole.weights)
    advantages = torch.cat([part[1].advantages for part in halves])
    torch.testing.assert_close(advantages, whole.advantages, rtol=1e-5, atol=1e-5)
    tokens = [part[1].mask.sum() for part in halves]
    shared = sum(part[3] * n for part, n in zip(halves, tokens, strict=True)) / whole.mask.sum()
    torch.testing.assert_close(shared, loss, rtol=1e-4, atol=1e-6)


def test_minibatches_may_split_groups_for_advantages_are_there_before():
    method = make_method("rloo")
    _, experience, _ = collected(method)
    parts = list(minibatches(experience, 4, torch.Generator().manual_seed(0)))
    assert sorted(len(part.rows) for part in parts) == [4, 4, 5, 5]
    whole = sorted(experience.advantages.sum(-1).tolist())
    assert sorted(x for part in parts for x in part.advantages.sum(-1).tolist()) == pytest.approx(whole)


@pytest.mark.parametrize("name", ROLLOUT_METHODS)
def test_every_method_raises_its_reward(name: str, tmp_path: Path):
    settings = {"lr": 3e-3, "epochs": 8, "optimizer": AdamW(schedule="constant")}
    fit(make_method(name, **settings), tmp_path)
    metrics = metrics_of(tmp_path)
    assert metrics[-1]["train/score"] > metrics[0]["train/score"] + 0.5
    assert all(line.keys() == metrics[0].keys() for line in metrics)


def test_held_out_prompts_get_one_reply_each():
    method = make_method("rloo")
    batch = make_data(PROMPT_ROW, batch_size=4).train_batch(0)
    assert float(method.evaluate_batch(batch, "test")["count"]) == 4


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="group_size=1: LeaveOneOut"):
        make_method("rloo", group_size=1)
    with pytest.raises(ConfigError, match="normalize=mean"):
        make_method("grpo", normalize="mean")
    with pytest.raises(ConfigError, match="group_size=0"):
        make_method("reinforce", group_size=0)
    with pytest.raises(ConfigError, match="minibatch_size=0"):
        make_method("rloo", minibatch_size=0)
    assert isinstance(make_method("dapo"), PolicyGradient)


def test_dropout_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"the policy has a dropout of 0\.1"):
        fit(make_method("rloo", dropout=0.1), tmp_path)
