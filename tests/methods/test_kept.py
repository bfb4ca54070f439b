"""Weights kept at validations: the latest so many, loaded again to the same bits, refused by name; weights counted."""

from pathlib import Path

import pytest
import torch

from alignlab.errors import AlignlabError, ConfigError
from alignlab.methods.census import counted
from alignlab.methods.checkpoint import BEST, LAST, newest_checkpoint
from alignlab.methods.kept import KeepWeights, kept_files, put_into, read_kept
from alignlab.models.saving import load_policy, load_reward_model, save_policy, save_reward_model
from tests.methods import setting
from tests.methods.setting import lora, make_method, trained


@pytest.fixture
def fit_and_keep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Fit a method with its validations' weights kept; gives the weights at each validation."""

    def fit(method, most: int) -> dict[int, dict[str, torch.Tensor]]:
        seen: dict[int, dict[str, torch.Tensor]] = {}

        class Watched(KeepWeights):
            def on_validation_end(self, trainer, pl_module) -> None:
                super().on_validation_end(trainer, pl_module)
                seen[pl_module.completed_steps] = trained(pl_module)

        real = setting.L.Trainer
        keep = Watched(tmp_path / "checkpoints", most=most)
        monkeypatch.setattr(
            setting.L, "Trainer", lambda **words: real(**words | {"callbacks": [*words["callbacks"], keep]})
        )
        setting.fit(method, tmp_path, validate_every=2)
        return seen

    return fit


def test_the_latest_validations_are_kept(fit_and_keep, tmp_path: Path):
    seen = fit_and_keep(make_method("sft"), most=2)
    assert sorted(seen) == [2, 4, 6, 8]
    assert [path.name for path in kept_files(tmp_path / "checkpoints")] == ["step-000006.ckpt", "step-000008.ckpt"]
    assert newest_checkpoint(tmp_path / "checkpoints")["step"] == 8, "a run goes on from last, not from a kept one"
    for step in (6, 8):
        kept = read_kept(tmp_path, step)
        assert all(torch.equal(kept[name], value) for name, value in seen[step].items())
    assert any(not torch.equal(seen[6][name], value) for name, value in seen[8].items())


@pytest.mark.parametrize("adapter", [None, lora()], ids=["all weights", "lora"])
def test_a_policy_goes_back_to_a_kept_step(adapter, fit_and_keep, tmp_path: Path):
    method = make_method("ppo", adapter=adapter) if adapter else make_method("ppo")
    seen = fit_and_keep(method, most=9)
    save_policy(method.policy, tmp_path)
    (tmp_path / "run.json").write_text("{}")
    policy = load_policy(tmp_path)
    put_into(policy, read_kept(tmp_path, 2), prefix="policy")
    own = {f"policy.{name}": value for name, value in policy.named_parameters()}
    wanted = {name: value for name, value in seen[2].items() if name.startswith("policy.") and "value_head" not in name}
    assert wanted and all(torch.equal(own[name], value) for name, value in wanted.items())
    assert any(not torch.equal(seen[8][name], value) for name, value in wanted.items())


def test_a_reward_model_with_an_adapter_goes_back_too(fit_and_keep, tmp_path: Path):
    method = make_method("reward", adapter=lora())
    seen = fit_and_keep(method, most=9)
    save_reward_model(method.reward_model, tmp_path)
    (tmp_path / "run.json").write_text("{}")
    model = load_reward_model(tmp_path, merge=False)
    put_into(model, read_kept(tmp_path, 2), prefix="reward_model")
    own = {f"reward_model.{name}": value for name, value in model.named_parameters()}
    assert seen[2] and all(torch.equal(own[name], value) for name, value in seen[2].items())


def test_a_checkpoint_that_is_not_there_is_refused_and_the_others_are_listed(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"no checkpoint; task\.keep"):
        read_kept(tmp_path, "best")
    for name in (BEST, LAST, "step-000040.ckpt"):
        torch.save({"step": 1, "weights": {}}, folder / name)
    for wrong in (41, "first", "."):
        with pytest.raises(ConfigError, match=r"evaluation.checkpoint=.* has best, last, 40;"):
            read_kept(tmp_path, wrong)
    with pytest.raises(AlignlabError, match="no weights of a reward model"):
        put_into(torch.nn.Linear(1, 1), {"policy.weight": torch.zeros(1)}, prefix="reward_model")
    with pytest.raises(ConfigError, match=r"task\.keep=-1"):
        KeepWeights(folder, most=-1)


def test_adapters_and_heads_are_counted_apart():
    """tiny GPT-2: 2 layers, 32 wide; LoRA of rank 4 on the four linear layers of each; the value head has 32 + 1."""
    sizes = counted(make_method("ppo", adapter=lora()))
    per_block = sum(4 * (wide + narrow) for wide, narrow in ((32, 96), (32, 32), (32, 128), (128, 32)))
    assert sizes["parameters/adapter"] == 2 * per_block
    assert sizes["parameters/heads"] == 32 + 1 and sizes["parameters/body"] == 0
    assert sizes["parameters/trained"] == 2 * per_block + 33
    whole = counted(make_method("ppo"))
    assert whole["parameters/adapter"] == 0 and whole["parameters/heads"] == 33
    assert whole["parameters/trained"] == whole["parameters/total"] == whole["parameters/body"] + 33
    assert sizes["parameters/total"] == whole["parameters/total"] + 2 * per_block
    reward = counted(make_method("reward", adapter=lora()))
    assert (reward["parameters/heads"], reward["parameters/adapter"]) == (32, 2 * per_block)


def test_a_frozen_network_that_policy_and_critic_share_is_counted_once():
    """A separate critic under LoRA has adapters and a head of its own beside the policy's frozen weights."""
    shared, separate = (counted(make_method("ppo", adapter=lora(), critic=kind)) for kind in ("shared", "separate"))
    assert separate["parameters/adapter"] == 2 * shared["parameters/adapter"]
    assert separate["parameters/total"] == shared["parameters/total"] + shared["parameters/adapter"]
