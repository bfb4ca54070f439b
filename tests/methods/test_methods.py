"""Each method learns on a tiny model, and its step does not depend on how the batch is cut."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.errors import ConfigError, NonFiniteError
from alignlab.losses.preference import DPOLoss, SimPOLoss
from alignlab.methods.dpo import pair_logprobs
from alignlab.methods.optimization import AdamW
from tests.methods.setting import fit, lora, make_data, make_method, trained

STEADY = AdamW(schedule="constant", max_grad_norm=None)


def first_and_last(folder: Path, name: str) -> tuple[float, float]:
    import json

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values = [line[name] for line in lines if name in line]
    return values[0], values[-1]


@pytest.mark.parametrize(("name", "lr"), [("sft", 1e-2), ("reward", 3e-3), ("dpo", 1e-3)])
def test_the_loss_falls(name: str, lr: float, tmp_path: Path):
    fit(make_method(name, lr=lr, epochs=6, optimizer=STEADY), tmp_path)
    first, last = first_and_last(tmp_path, "train/loss")
    assert last < 0.8 * first


def test_ppo_raises_its_reward(tmp_path: Path):
    fit(make_method("ppo", lr=3e-3, epochs=8, optimizer=STEADY, adaptive_lr=None), tmp_path)
    first, last = first_and_last(tmp_path, "train/score")
    assert last > first + 0.5


@pytest.mark.parametrize("name", ["sft", "reward", "dpo"])
def test_one_batch_of_eight_equals_eight_of_one(name: str, tmp_path: Path):
    """Row lengths differ by several times, so a mean of micro-batch means would be another number (P18)."""
    settings: dict[str, Any] = {"max_steps": 1, "optimizer": STEADY}
    whole = fit(make_method(name, **settings), tmp_path / "a")
    parts = fit(make_method(name, **settings), tmp_path / "b", micro_batch_size=1)
    assert first_and_last(tmp_path / "a", "train/grad_norm")[0] == pytest.approx(
        first_and_last(tmp_path / "b", "train/grad_norm")[0], rel=1e-4
    )
    for weight, value in trained(whole).items():
        torch.testing.assert_close(value, trained(parts)[weight], rtol=2e-3, atol=2e-4)


def test_sft_divides_by_the_tokens_of_the_whole_step(tmp_path: Path):
    method = make_method("sft", max_steps=1)
    batch = make_data(method.row_type).train_batch(0)
    with torch.no_grad():
        out = method.policy(batch.sequences)
    by_hand = -(out.logprobs.sum() / out.mask.sum())
    fit(method, tmp_path, micro_batch_size=2)
    assert first_and_last(tmp_path, "train/loss")[0] == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_dpo_starts_at_log_two_with_no_margin(adapter: str | None, tmp_path: Path):
    method = make_method("dpo", adapter=lora() if adapter else None, max_steps=1)
    fit(method, tmp_path)
    assert first_and_last(tmp_path, "train/loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert first_and_last(tmp_path, "train/margin")[0] == pytest.approx(0.0, abs=1e-6)


def test_the_three_references_agree(tmp_path: Path):
    losses = {}
    for kind in ("adapter_off", "copy", "cached"):
        method = make_method("dpo", adapter=lora(), reference=kind, cache_folder=tmp_path / "cache", max_steps=4)
        fit(method, tmp_path / kind)
        losses[kind] = first_and_last(tmp_path / kind, "train/loss")[1]
    assert losses["adapter_off"] == pytest.approx(losses["copy"], rel=1e-5)
    assert losses["adapter_off"] == pytest.approx(losses["cached"], rel=1e-5)
    assert losses["copy"] != pytest.approx(math.log(2), abs=1e-4)  # it did move


def test_cached_log_probs_are_of_the_starting_weights_and_never_stale(tmp_path: Path):
    fit(make_method("dpo", reference="cached", cache_folder=tmp_path / "cache", max_steps=1), tmp_path / "a")
    files = set((tmp_path / "cache").iterdir())
    fit(make_method("dpo", reference="cached", cache_folder=tmp_path / "cache", max_steps=2), tmp_path / "b")
    assert set((tmp_path / "cache").iterdir()) == files
    other = make_method("dpo", reference="cached", cache_folder=tmp_path / "cache", max_steps=1)
    with torch.no_grad():
        next(iter(other.policy.parameters())).flatten()[0].add_(1e-3)
    fit(other, tmp_path / "c")
    assert len(set((tmp_path / "cache").iterdir())) == 2 * len(files)


def test_a_reference_free_loss_makes_no_reference():
    method = make_method("dpo", loss=SimPOLoss(beta=2.0, gamma=0.5))
    assert method.reference is None and method.cache is None


def test_log_probs_are_summed_not_averaged():
    logprobs = torch.tensor([[-1.0, -2.0, 0.0], [-1.0, 0.0, 0.0], [-3.0, -3.0, -3.0], [-1.0, 0.0, 0.0]])
    pairs = pair_logprobs(logprobs, logprobs != 0)
    assert pairs.chosen.tolist() == [-3.0, -1.0] and pairs.rejected.tolist() == [-9.0, -1.0]
    assert pairs.chosen_length.tolist() == [2, 1] and pairs.rejected_length.tolist() == [3, 1]


def test_the_reward_scale_is_fixed_after_training(tmp_path: Path):
    method = make_method("reward")
    data = make_data(method.row_type)
    fit(method, tmp_path, data=data)
    method.after_training(data)
    model = method.reward_model
    with torch.no_grad():
        scores = torch.cat([model.normalized(model(b.sequences)) for b in data.batches("train")])
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(scores.std()) == pytest.approx(1.0, abs=1e-4)


def test_dropout_is_on_in_training_where_it_was_asked_for(tmp_path: Path):
    """Lightning keeps the eval mode that loading leaves behind (P25); validation must not switch it off for good."""
    method = make_method("sft", dropout=0.1)
    modes = []
    method.policy.register_forward_pre_hook(lambda module, _: modes.append((module.training, torch.is_grad_enabled())))
    fit(method, tmp_path)
    assert all(training for training, learning in modes if learning)
    assert any(not training for training, learning in modes if not learning)


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(tmp_path: Path):
    method = make_method("sft")
    before = trained(method)
    with torch.no_grad():
        method.policy.model.lm_head.weight[:] = float("nan")
    with pytest.raises(NonFiniteError, match="step 1"):
        fit(method, tmp_path)
    assert all(torch.equal(before[n], p) for n, p in trained(method).items() if "lm_head" not in n and "embed" not in n)


def test_ppo_refuses_dropout(tmp_path: Path):
    with pytest.raises(ConfigError, match="dropout"):
        fit(make_method("ppo", dropout=0.1), tmp_path)


def test_zero_steps_and_a_beta_are_as_asked():
    assert make_method("sft", max_steps=0).num_steps(10) == 0
    assert make_method("sft", epochs=0.5).num_steps(10) == 5
    assert make_method("dpo", loss=DPOLoss(beta=0.3)).loss.beta == 0.3


def test_a_best_metric_of_ones_own_says_which_way_is_better():
    from omegaconf import OmegaConf

    from alignlab.app.work.training import best_metric

    method = make_method("dpo")
    task = {"best_metric": "validation/loss", "best_mode": None}
    with pytest.raises(ConfigError, match="best_mode"):
        best_metric(OmegaConf.create({"task": task}), method)
    assert best_metric(OmegaConf.create({"task": task | {"best_mode": "min"}}), method) == ("validation/loss", "min")
    assert best_metric(OmegaConf.create({"task": task | {"best_metric": None}}), method) == method.best_metric


def test_less_than_one_step_is_refused_rather_than_called_done():
    with pytest.raises(ConfigError, match="less than one step"):
        make_method("sft", epochs=0.04).num_steps(10)


def test_cached_log_probs_serve_a_run_that_has_nothing_left_to_train(tmp_path: Path):
    method = make_method("dpo", reference="cached", cache_folder=tmp_path)
    data = make_data(method.row_type)
    method.before_training(data)
    batch = next(iter(data.batches("test")))
    sums = method.evaluate_batch(batch, "test")
    assert float((sums["loss"] / sums["count"]).detach()) == pytest.approx(math.log(2), abs=1e-6)
