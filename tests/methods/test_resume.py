"""A run that is killed anywhere and started again ends in the same bits, for every method."""

from pathlib import Path

import pytest
import torch

from alignlab.errors import AlignlabError
from alignlab.kernels.plain import choose_plain
from alignlab.methods.base import Method
from alignlab.methods.checkpoint import newest_checkpoint, read_checkpoint, write_checkpoint
from alignlab.rows import PreferenceRow
from tests.data.test_streams import Stream
from tests.methods.setting import ROLLOUT_METHODS, fit, lora, make_data, make_method, trained


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "kto", "ppo", *ROLLOUT_METHODS])
def test_a_killed_run_goes_on_to_the_same_bits(name: str, tmp_path: Path):
    """Dropout is on where the method allows it, so the random state matters; 8 batches, killed before 3, 4 and 7."""
    settings = {"dropout": 0.0 if name in ("ppo", *ROLLOUT_METHODS) else 0.1}
    whole = fit(make_method(name, **settings), tmp_path / "whole")
    for kill_at in (3, 4, 7):
        fit(make_method(name, **settings), tmp_path / "killed", kill_at=kill_at)
    resumed = fit(make_method(name, **settings), tmp_path / "killed")
    assert resumed.completed_steps == whole.completed_steps == 8
    for weight, value in trained(whole).items():
        assert torch.equal(value, trained(resumed)[weight]), weight
    assert resumed.method_state() == whole.method_state()
    metrics = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "killed")]
    assert metrics[0] == metrics[1]


def test_a_stream_goes_on_where_it_stopped(tmp_path: Path):
    def go_on(folder: Path, kill_at: int | None = None) -> Method:
        data = make_data(PreferenceRow, source=Stream())
        return fit(make_method("dpo", dropout=0.1, max_steps=6), folder, data=data, kill_at=kill_at)

    whole = go_on(tmp_path / "whole")
    go_on(tmp_path / "killed", kill_at=4)
    resumed = go_on(tmp_path / "killed")
    assert resumed.completed_steps == 6
    assert all(torch.equal(value, trained(resumed)[name]) for name, value in trained(whole).items())
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "killed/metrics.jsonl").read_text()


def test_a_resumed_run_computes_its_steps_as_it_is_told_now(tmp_path: Path):
    """A checkpoint has the moments, not the way they were made: of a run that goes on with hardware.plain=[adamw]."""
    first = fit(make_method("sft"), tmp_path, kill_at=4)
    assert [group["fused"] for group in first.trainer.optimizers[0].param_groups] == [True, True]
    choose_plain(["adamw"])
    resumed = fit(make_method("sft"), tmp_path)
    assert [group["fused"] for group in resumed.trainer.optimizers[0].param_groups] == [None, None]
    choose_plain([])
    whole = fit(make_method("sft"), tmp_path / "whole")
    for name, value in trained(whole).items():
        torch.testing.assert_close(trained(resumed)[name], value, rtol=1e-5, atol=1e-6)


def test_checkpoints_fewer_than_steps_lose_steps_but_no_bits(tmp_path: Path):
    whole = fit(make_method("sft"), tmp_path / "whole", every=3)
    fit(make_method("sft"), tmp_path / "killed", every=3, kill_at=5)
    resumed = fit(make_method("sft"), tmp_path / "killed", every=3)
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "killed/metrics.jsonl").read_text()
    assert all(torch.equal(value, trained(resumed)[name]) for name, value in trained(whole).items())


def test_an_adapter_run_stores_the_adapter_alone(tmp_path: Path):
    fit(make_method("dpo", adapter=lora()), tmp_path, kill_at=2)
    state = newest_checkpoint(tmp_path / "checkpoints")
    assert state is not None
    parameters = [name for name in state["weights"] if "lora" in name]
    assert parameters and len(parameters) == len(state["weights"])


def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_used(tmp_path: Path):
    fit(make_method("sft"), tmp_path, kill_at=4)  # last was taken after 4 batches, the one before after 3
    last = tmp_path / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    with pytest.raises(AlignlabError, match=r"damaged|whole"):
        read_checkpoint(last)
    with pytest.warns(UserWarning, match="going back"):
        state = newest_checkpoint(tmp_path / "checkpoints")
    assert state is not None and state["step"] == 3


def test_a_failing_write_leaves_the_old_checkpoint_whole(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    write_checkpoint({"step": 1}, path)
    with pytest.raises(Exception):  # noqa: B017 - whatever torch raises for what it cannot pickle
        write_checkpoint({"step": lambda: None}, path)
    assert read_checkpoint(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
