"""KTO: its step by hand, exact however the batch is cut, and what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.batches import UnpairedBatch
from alignlab.errors import ConfigError
from alignlab.losses.preference import DPOLoss
from alignlab.losses.unpaired import KTOLoss, UnpairedBCOLoss
from alignlab.methods.optimization import AdamW
from alignlab.rows import UnpairedRow
from tests.methods.setting import fit, lora, make_data, make_method, trained
from tests.methods.test_methods import first_and_last

STEADY = AdamW(schedule="constant", max_grad_norm=None)


def moved(**settings: Any) -> Any:
    """KTO whose policy is no longer its reference, so that z is not 0."""
    method = make_method("kto", **{"loss": KTOLoss(beta=0.5), **settings})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.trained_parameters():
            parameter.mul_(1.0 + 0.05 * torch.randn(parameter.shape, generator=generator))
    return method


def first_batch(batch_size: int = 6) -> UnpairedBatch:
    batch = make_data(UnpairedRow, batch_size=batch_size).train_batch(0)
    assert isinstance(batch, UnpairedBatch) and len(set(batch.desirable.tolist())) == 2
    return batch


@torch.no_grad()
def log_ratios(method, sequences) -> list[float]:
    """log pi(y|x) / pi_ref(y|x) of each sequence, scored alone, token by token."""
    found = []
    for row in range(sequences.num_rows):
        ids, mask, labels = (x[row] for x in sequences)
        total = 0.0
        for model, sign in ((method.policy.model, 1), (method.reference.policy.model, -1)):
            logits = model(input_ids=ids[mask][None]).logits[0].double()
            for t in range(1, int(mask.sum())):
                if labels[t] >= 0:
                    total += sign * float(torch.log_softmax(logits[t - 1], -1)[ids[t]])
        found.append(total)
    return found


def test_a_step_by_hand():
    method, batch = moved(), first_batch()
    assert batch.kl_sequences is not None
    ratios, others = log_ratios(method, batch.sequences), log_ratios(method, batch.kl_sequences)
    z = max(sum(others) / len(others), 0.0)
    assert z > 0.01
    signs = [1 if desirable else -1 for desirable in batch.desirable.tolist()]
    by_hand = [1 - 1 / (1 + math.exp(-s * 0.5 * (ratio - z))) for s, ratio in zip(signs, ratios, strict=True)]
    loss, metrics = method.compute(batch)
    assert float(loss.detach()) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
    assert float(metrics["baseline"]) == pytest.approx(0.5 * z, rel=1e-4)
    right = [s * (ratio - z) > 0 for s, ratio in zip(signs, ratios, strict=True)]
    assert float(metrics["accuracy"]) == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_it_starts_at_a_half(adapter: str | None, tmp_path: Path):
    """sigmoid(0) of every reply, with z = 0."""
    fit(make_method("kto", adapter=lora() if adapter else None, max_steps=1), tmp_path)
    assert first_and_last(tmp_path, "train/loss")[0] == pytest.approx(0.5, abs=1e-6)
    assert first_and_last(tmp_path, "train/baseline")[0] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss", [KTOLoss(beta=0.1), UnpairedBCOLoss(beta=0.1)])
def test_the_loss_falls_and_held_out_replies_are_told_apart(loss: Any, tmp_path: Path):
    fit(make_method("kto", lr=3e-3, epochs=8, optimizer=STEADY, loss=loss), tmp_path)
    first, last = first_and_last(tmp_path, "train/loss")
    assert last < 0.7 * first
    assert first_and_last(tmp_path, "validation/accuracy")[1] > 0.8


def test_a_step_is_the_same_however_the_batch_is_cut(tmp_path: Path):
    """z is of the whole step: six rows at once, one by one, or four and two."""
    by_hand = float(moved().compute(first_batch()).loss.detach())
    runs, metrics = {}, {}
    for size in (None, 1, 4):
        folder = tmp_path / str(size)
        runs[size] = trained(fit(moved(max_steps=1, optimizer=STEADY), folder, micro_batch_size=size))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        metrics[size] = next(line for line in lines if "train/loss" in line)
        assert metrics[size]["train/loss"] == pytest.approx(by_hand, rel=1e-5)
    for size in (1, 4):
        for name in ("train/grad_norm", "train/baseline", "train/accuracy", "train/reward"):
            assert metrics[size][name] == pytest.approx(metrics[None][name], rel=1e-4), name
        for weight, value in runs[None].items():
            torch.testing.assert_close(runs[size][weight], value, rtol=2e-3, atol=2e-4)


def gradient_of_a_step(folder: Path, *, batch_size: int, micro_batch_size: int | None) -> torch.Tensor:
    """Of one step, before clipping: Adam's first moment after it is (1 - beta_1) times the gradient it was given."""
    settings = AdamW(schedule="constant", max_grad_norm=None, betas=(0.9, 0.999))
    method = moved(max_steps=1, optimizer=settings)
    assert method.loss.batch_coupled
    data = make_data(UnpairedRow, batch_size=batch_size)
    fit(method, folder, data=data, micro_batch_size=micro_batch_size)
    return torch.cat([state["exp_avg"].flatten() / 0.1 for state in method.trainer.optimizers[0].state.values()])


def test_one_times_eight_and_eight_times_one_give_one_gradient(tmp_path: Path):
    """Though replies are coupled: by z alone, which is that of the eight."""
    whole = gradient_of_a_step(tmp_path / "whole", batch_size=8, micro_batch_size=None)
    assert float(whole.norm()) > 0.1
    for size in (1, 3):
        parts = gradient_of_a_step(tmp_path / str(size), batch_size=8, micro_batch_size=size)
        assert float((parts - whole).norm() / whole.norm()) < 1e-5


def test_no_gradient_flows_through_the_mismatched_pairs():
    method, batch = moved(), first_batch()
    kl = method.mismatched_logprobs(batch)
    assert kl.shape == (2, 6) and not kl.requires_grad
    assert not torch.allclose(kl[0], kl[1])


def test_a_batch_that_may_not_be_cut_is_refused(tmp_path: Path):
    method = make_method("kto", loss=UnpairedBCOLoss(beta=0.1), max_steps=1)
    with pytest.raises(
        ConfigError, match=r"hardware.micro_batch_size=2, 1 processes: UnpairedBCOLoss couples the rows"
    ):
        fit(method, tmp_path, micro_batch_size=2)


def test_a_batch_of_one_row_has_nobody_to_borrow_from(tmp_path: Path):
    method = make_method("kto", max_steps=1)
    with pytest.raises(ConfigError, match=r"data.batch_size=1: KTOLoss pairs each prompt with another row's reply"):
        fit(method, tmp_path, data=make_data(UnpairedRow, batch_size=1))


@pytest.mark.parametrize(
    ("name", "loss", "message"),
    [
        ("kto", DPOLoss(beta=0.1), "DPOLoss is no loss of single replies.*choose method/loss=kto.*or method=dpo"),
        ("dpo", KTOLoss(beta=0.1), "KTOLoss is no loss of pairs.*choose method/loss=dpo.*or method=kto"),
    ],
)
def test_losses_of_the_other_kind_are_refused(name: str, loss: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        make_method(name, loss=loss)


def test_a_reference_that_cannot_be_had_is_refused():
    with pytest.raises(ConfigError, match=r"method.reference=cached: method=kto allows auto, adapter_off and copy"):
        make_method("kto", reference="cached")


def test_the_references_agree(tmp_path: Path):
    losses = []
    for kind in ("adapter_off", "copy"):
        method = make_method("kto", adapter=lora(), reference=kind, max_steps=4, lr=1e-2)
        fit(method, tmp_path / kind)
        losses.append(first_and_last(tmp_path / kind, "train/loss")[1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] != pytest.approx(0.5, abs=1e-4)


def test_a_running_baseline_is_resumed_too(tmp_path: Path):
    losses = [UnpairedBCOLoss(beta=0.1) for _ in range(3)]
    fit(make_method("kto", loss=losses[0]), tmp_path / "whole")
    fit(make_method("kto", loss=losses[1]), tmp_path / "killed", kill_at=5)
    fit(make_method("kto", loss=losses[2]), tmp_path / "killed")
    means = [[float(mean.value) for mean in (loss.desirable_mean, loss.undesirable_mean)] for loss in losses]
    assert means[0] == means[2] != means[1] and all(means[0])


@torch.no_grad()
def test_held_out_figures_are_means_over_rows():
    method = moved()
    batches = list(make_data(UnpairedRow, batch_size=4).batches("test"))
    assert [len(batch.rows) for batch in batches] == [4, 2]
    sums = [method.evaluate_batch(batch, "test") for batch in batches]
    found = method.reduce_evaluation({name: sum(float(s[name]) for s in sums) for name in sums[0]})
    for name in ("loss", "accuracy", "reward"):
        own = [float({"loss": out.loss, **out.metrics}[name]) for out in map(method.compute, batches)]
        assert found[name] == pytest.approx((4 * own[0] + 2 * own[1]) / 6, rel=1e-5)
