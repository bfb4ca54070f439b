"""What an optimizer step and an iteration of PPO do beside their loss: clip, follow the schedule, hold fixed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alignlab.losses.policy import ValueLoss
from alignlab.methods.checkpoint import read_checkpoint
from alignlab.methods.optimization import AdamW
from alignlab.methods.reference_cache import SPLITS
from alignlab.rollout.rewards.length import LengthReward
from tests.methods.setting import PROMPT_ROW, fit, make_data, make_method


def lines_of(folder: Path, name: str) -> list[float]:
    """What was logged under a name, step by step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def make(name: str, **settings: Any) -> Any:
    """A method whose own attributes are looked at."""
    return make_method(name, **settings)


def rolled_out(**settings: Any):
    """PPO with what it learns from in its first iteration, and the rollout."""
    method = make("ppo", **settings)
    batch = make_data(PROMPT_ROW).train_batch(0)
    rollout = method.sample(batch, torch.Generator().manual_seed(3))
    return method, method.collect(rollout, batch.rows)[0], rollout


# -- a step ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("limit", [0.5, None])
def test_the_gradient_is_clipped_by_its_whole_norm_and_the_norm_before_is_logged(limit: float | None, tmp_path: Path):
    """After one step Adam's first moment is (1 - beta_1) times the gradient it was given."""
    settings = AdamW(max_grad_norm=limit, betas=(0.9, 0.999), schedule="constant")
    method = fit(make("sft", max_steps=1, optimizer=settings), tmp_path)
    moments = [state["exp_avg"].flatten() for state in method.trainer.optimizers[0].state.values()]
    given = float(torch.cat(moments).norm()) / 0.1
    [before] = lines_of(tmp_path, "train/grad_norm")
    assert before > 1.0
    assert given == pytest.approx(before if limit is None else limit, rel=1e-3)


def test_a_step_leaves_no_gradient_behind(tmp_path: Path):
    """The second step of a run that does not move is that of its batch alone."""
    steady = AdamW(max_grad_norm=None, schedule="constant")
    fit(make("sft", lr=0.0, max_steps=2, optimizer=steady), tmp_path)
    method, norms = make("sft"), []
    for step in (0, 1):
        method.compute(make_data(method.row_type).train_batch(step)).loss.backward()
        gradients = [p.grad.flatten() for p in method.trained_parameters() if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        method.zero_grad()
    assert lines_of(tmp_path, "train/grad_norm") == pytest.approx(norms, rel=1e-4)


def test_the_learning_rate_follows_the_schedule(tmp_path: Path):
    """Four steps of a linear fall; Adam's first step moves a weight by the rate, whatever its gradient is."""
    settings = AdamW(schedule="linear", warmup=0.0, max_grad_norm=None)
    fit(make("sft", lr=0.4, max_steps=4, optimizer=settings), tmp_path)
    assert lines_of(tmp_path, "train/lr") == pytest.approx([0.4, 0.3, 0.2, 0.1])
    method = make("sft", lr=0.4, max_steps=1, optimizer=AdamW(warmup=3))
    head = method.policy.model.lm_head.weight
    before = head.detach().clone()
    fit(method, tmp_path / "warm")
    assert float((head.detach() - before).abs().max()) == pytest.approx(0.1, rel=1e-3)


def test_under_a_loss_scaler_the_optimizer_does_not_unscale_by_itself():
    """Fused AdamW would do so inside its own step, and the clipping before it would see scaled gradients."""
    weights = [nn.Parameter(torch.ones(2, 2))]
    assert AdamW().build(weights, lr=1.0).defaults["fused"]
    assert not AdamW().build(weights, lr=1.0, loss_scaling=True).defaults["fused"]


def test_cached_reference_sums_are_of_the_policy_without_dropout(tmp_path: Path):
    method = make("dpo", reference="cached", cache_folder=tmp_path, dropout=0.3)
    data: Any = make_data(method.row_type)
    method.policy.train()
    method.before_training(data)
    assert method.policy.training and method.cache is not None
    method.policy.eval()
    for split in SPLITS:
        for batch in data.batches(split):
            with torch.no_grad():
                expected = method.policy(batch.sequences).logprobs.sum(-1).view(2, -1)
            torch.testing.assert_close(method.cache.lookup(split, batch.rows), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("metric", "mode", "best_of"), [("loss", "min", min), ("margin", "max", max)])
def test_the_best_checkpoint_is_that_of_the_best_validation(metric: str, mode: str, best_of, tmp_path: Path):
    method, metric = make("dpo", epochs=3), f"validation/{metric}"
    method.best_metric = (metric, mode)
    fit(method, tmp_path, validate_every=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    validations = {line["step"]: line[metric] for line in lines if metric in line}
    assert len(set(validations.values())) > 2
    state = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert validations[state["step"]] == state["extra"]["best"] == best_of(validations.values())


# -- an iteration of PPO -----------------------------------------------------------------------------------------------
def test_what_the_sampler_said_is_never_learnt_from():
    """Old log-probs come from the training forward: a sampler that is off shows in a metric and nowhere else."""
    method, experience, rollout = rolled_out()
    off = rollout._replace(sampler_logprobs=rollout.sampler_logprobs - 1.0)
    again, metrics = method.collect(off, experience.rows)
    assert float(metrics["sampler_gap"]) > 0.5
    for name in ("logprobs", "advantages", "returns", "values"):
        assert torch.equal(getattr(again, name), getattr(experience, name)), name


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_at_another_temperature_too_the_first_loss_is_at_a_ratio_of_one(critic: str):
    method, experience, _ = rolled_out(temperature=0.7, critic=critic)
    metrics = method.compute(experience).metrics
    assert float(metrics["ratio_mean"]) == pytest.approx(1.0, abs=1e-5)
    assert float(metrics["approx_kl"]) == pytest.approx(0.0, abs=1e-6)


def test_values_are_clipped_around_what_they_were_and_weigh_what_was_asked():
    """Values that were 0 are now 1: with a range of 0.2 the error is the larger of those of 1 and of 0.2."""
    method, experience, _ = rolled_out(value_loss=ValueLoss(0.2), value_coefficient=0.3)
    with torch.no_grad():
        method.policy.value_head.linear.bias.fill_(1.0)
    loss, metrics = method.compute(experience)
    returns = experience.returns[experience.mask]
    by_hand = 0.5 * torch.maximum((1.0 - returns).square(), (0.2 - returns).square()).mean()
    assert float(metrics["value_loss"]) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(metrics["value_clip_fraction"]) == 1.0
    assert float(loss.detach()) == pytest.approx(float(metrics["policy_loss"] + 0.3 * metrics["value_loss"]), rel=1e-5)


def test_what_comes_later_counts_less():
    """With values of 0 and no KL yet, a token's advantage is its reply's score, discounted once a token."""
    method, experience, rollout = rolled_out(gamma=0.9, gae_lambda=1.0, whiten_advantages=False)
    scores = method.score(rollout)
    assert scores.max() > 0
    for row, score in enumerate(scores.tolist()):
        found = experience.advantages[row][experience.mask[row]]
        expected = [score * 0.9 ** (len(found) - 1 - t) for t in range(len(found))]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("target_kl", "updates"), [(1e-9, 2), (1e9, 4)])
def test_updates_stop_once_the_policy_has_left_the_sampler(target_kl: float, updates: int, tmp_path: Path):
    """Two epochs of two minibatches; before the first update nothing has moved, before the second something has."""
    reward = LengthReward(unit="characters")  # which tells any two replies apart
    method = make("ppo", lr=1e-2, max_steps=1, update_epochs=2, target_kl=target_kl, reward=reward)
    fit(method, tmp_path)
    assert lines_of(tmp_path, "train/updates") == [updates]
