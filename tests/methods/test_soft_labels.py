"""Soft labels and weights in DPO and reward training: the loss by hand, and exact steps however the batch is cut."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.batches import PreferenceBatch, Sequences
from alignlab.data.collate import collate
from alignlab.evaluate.preference import evaluate_pairs
from alignlab.evaluate.reward import evaluate_reward_model
from alignlab.losses.preference import DPOLoss, IPOLoss, SimPOLoss
from alignlab.losses.reward import BradleyTerryLoss
from alignlab.methods.optimization import AdamW
from alignlab.rows import PreferenceRow
from tests.methods.setting import fit, make_data, make_method, trained
from tests.methods.test_methods import first_and_last

STEADY = AdamW(schedule="constant", max_grad_norm=None)
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "ipo": {"loss": IPOLoss(beta=0.2)},
    "simpo": {"loss": SimPOLoss(beta=2.0, gamma=0.3)},
    "reward": {"loss": BradleyTerryLoss(margin=0.4, center=0.01)},
}


class SoftRows:
    """Pairs with soft labels and weights of very different size; `scale` multiplies the weights."""

    def __init__(self, scale: float = 1.0, num_rows: int = 6):
        self.scale, self.num_rows = scale, num_rows

    def rows(self, row_type, split):
        for i in range(self.num_rows):
            chosen, rejected = f" yes {'very ' * (i % 3)}{i}", f" no {'way ' * (i % 4)}{i}"
            yield PreferenceRow(f"{split} {i}?", chosen, rejected, (0.0, 1.0, 0.3, 0.5)[i % 4], self.scale * (1 + i**2))


def make(name: str, **settings: Any):
    """A method whose policy is no longer its reference, so that margins are not 0."""
    method = make_method("reward" if name == "reward" else "dpo", **{**METHODS[name], **settings})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.trained_parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return method


def soft_batch(scale: float = 1.0) -> PreferenceBatch:
    data = make_data(PreferenceRow, source=SoftRows(scale), batch_size=6)
    return data.train_batch(0)


def alone(batch: PreferenceBatch, pair: int, *, swapped: bool = False) -> PreferenceBatch:
    """One pair with a certain label, the two replies exchanged if asked."""
    places = torch.tensor([pair, pair + len(batch.rows)])
    return PreferenceBatch(batch.sequences.take(places.flip(0) if swapped else places), batch.rows[pair : pair + 1])


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_of_a_batch_is_that_of_its_pairs_one_by_one(name: str):
    """p loss(c, r) + (1 - p) loss(r, c) for each pair, and their weighted mean; metrics likewise."""
    method, batch = make(name), soft_batch()
    total, metrics, weights = 0.0, {}, 0.0
    for pair in range(len(batch.rows)):
        p, w = float(batch.preference[pair]), float(batch.weight[pair])
        kept, other = method.compute(alone(batch, pair)), method.compute(alone(batch, pair, swapped=True))
        total += w * (p * float(kept.loss.detach()) + (1 - p) * float(other.loss.detach()))
        for key in kept.metrics:
            mean = p * float(kept.metrics[key]) + (1 - p) * float(other.metrics[key])
            metrics[key] = metrics.get(key, 0.0) + w * mean
        weights += w
    loss, found = method.compute(batch)
    assert float(loss.detach()) == pytest.approx(total / weights, rel=1e-5)
    for key, value in metrics.items():
        assert float(found[key]) == pytest.approx(value / weights, rel=1e-4, abs=1e-5), key
    assert float(found["margin"]) != 0


@pytest.mark.parametrize("name", METHODS)
def test_a_preference_of_0_is_the_swapped_pair(name: str):
    method, batch = make(name), soft_batch()
    pair = batch.preference.tolist().index(0.0)
    soft = alone(batch, pair)._replace(preference=torch.zeros(1))
    (loss, metrics), expected = method.compute(soft), method.compute(alone(batch, pair, swapped=True))
    assert float(loss.detach()) == pytest.approx(float(expected.loss.detach()), rel=1e-6)
    assert {key: float(x) for key, x in metrics.items()} == pytest.approx(
        {key: float(x) for key, x in expected.metrics.items()}
    )


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_a_weight_of_2_is_the_row_twice(name: str):
    gradients = []
    data = make_data(PreferenceRow, source=SoftRows(num_rows=3), batch_size=3)
    for index, weight in (([0, 1, 2], [1.0, 2.0, 1.0]), ([1, 0, 2, 1], [1.0] * 4)):
        method, batch = make(name), collate(data.train_rows, index, pad_id=0)
        assert isinstance(batch, PreferenceBatch)
        method.compute(batch._replace(weight=torch.tensor(weight))).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in method.trained_parameters()]))
    assert gradients[0].norm() > 0.01
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_a_step_is_the_same_however_the_batch_is_cut(name: str, tmp_path: Path):
    """Weights from 1 to 26: a mean of micro-batch means would be another number, and so would a mean by pairs."""
    by_hand = float(make(name).compute(soft_batch()).loss.detach())
    runs = {}
    for size in (None, 1, 4):
        data = make_data(PreferenceRow, source=SoftRows(), batch_size=6)
        method = make(name, max_steps=1, optimizer=STEADY)
        runs[size] = trained(fit(method, tmp_path / str(size), data=data, micro_batch_size=size))
        assert first_and_last(tmp_path / str(size), "train/loss")[0] == pytest.approx(by_hand, rel=1e-5)
    norms = [first_and_last(tmp_path / str(size), "train/grad_norm")[0] for size in runs]
    assert norms[1:] == pytest.approx(norms[:1] * 2, rel=1e-4)
    for weight, value in runs[None].items():
        torch.testing.assert_close(runs[1][weight], value, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_the_size_of_the_weights_means_nothing_even_if_they_sum_to_less_than_one(name: str, tmp_path: Path):
    found = []
    for scale in (1.0, 1e-4):
        data = make_data(PreferenceRow, source=SoftRows(scale), batch_size=6)
        fit(make(name, max_steps=1, optimizer=STEADY), tmp_path / str(scale), data=data, validate_every=1)
        folder = tmp_path / str(scale)
        found.append([first_and_last(folder, key)[0] for key in ("train/loss", "train/grad_norm", "validation/loss")])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@torch.no_grad()
def test_held_out_figures_of_dpo_are_weighted_by_pairs():
    method = make("dpo")
    batch = soft_batch()
    whole = method.evaluate_batch(batch, "test")
    parts = [method.evaluate_batch(part, "test") for part in batch.split(4)]
    loss, metrics = method.compute(batch)
    expected = {"loss": float(loss.detach()), **{key: float(x) for key, x in metrics.items()}}
    assert method.reduce_evaluation({key: float(x) for key, x in whole.items()}) == pytest.approx(expected, rel=1e-5)
    summed = {key: sum(float(part[key]) for part in parts) for key in whole}
    assert method.reduce_evaluation(summed) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert summed["count"] == float(batch.weight.sum())


def test_held_out_figures_of_a_reward_model_by_hand(monkeypatch: pytest.MonkeyPatch):
    """Margins 2 and -1, preferences 0.9 and 0.25, weights 1 and 3."""
    method = make("reward")
    scores = torch.tensor([2.0, 0.0, 0.0, 1.0])  # two chosen, then two rejected
    monkeypatch.setattr(type(method.reward_model), "forward", lambda self, sequences: scores)
    batch = soft_batch()
    two = PreferenceBatch(batch.sequences, batch.rows[:2], torch.tensor([0.9, 0.25]), torch.tensor([1.0, 3.0]))
    sums = {name: float(value) for name, value in method.evaluate_batch(two, "test").items()}
    found = method.reduce_evaluation(sums)
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    first, second = 0.9 * softplus(-2) + 0.1 * softplus(2), 0.25 * softplus(1) + 0.75 * softplus(-1)
    assert found["loss"] == pytest.approx((first + 3 * second) / 4)
    assert found["accuracy"] == pytest.approx((0.9 + 3 * 0.75) / 4)
    assert found["margin"] == pytest.approx((0.8 * 2 + 3 * -0.5 * -1) / 4)
    assert found["score"] == pytest.approx((2 + 3 * 1) / 8)
    confidence = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))]
    gaps = abs(0.9 - confidence[0]) + 3 * abs(0.75 - confidence[1])
    assert found["calibration_error"] == pytest.approx(gaps / 4)


def test_cached_reference_sums_go_with_soft_labels(tmp_path: Path):
    losses = []
    for kind in ("copy", "cached"):
        data = make_data(PreferenceRow, source=SoftRows(), batch_size=4)
        method = make_method("dpo", reference=kind, cache_folder=tmp_path, max_steps=3, loss=DPOLoss(beta=0.5))
        fit(method, tmp_path / kind, data=data)
        losses.append(first_and_last(tmp_path / kind, "train/loss")[1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] != pytest.approx(math.log(2), abs=1e-4)


class Turned:
    """Two pairs whose first reply is the better one, written as such or the other way round; one that says nothing."""

    def __init__(self, preference: float):
        self.preference = preference

    def rows(self, row_type, split):
        for i in range(2):
            better, worse = f" yes {'very ' * i}{i}", f" no {'way ' * 3 * i}{i}"
            both = (better, worse) if self.preference > 0.5 else (worse, better)
            yield PreferenceRow(f"{split} {i}?", *both, self.preference, 1.0 + i)
        yield PreferenceRow(f"{split}?", " a", " b", 0.5)


@pytest.mark.parametrize("preference", [0.0, 0.3])
def test_an_evaluation_takes_the_likelier_reply_for_the_better_one(preference: float):
    """A pair of preference 0 is the pair the other way round, for its figures by length too; 1/2 is left out."""
    found = []
    for told in (1.0, preference):
        data = make_data(PreferenceRow, source=Turned(told), batch_size=6)
        data.prepare()
        model, facts = make("reward").reward_model, data.test_rows.pair_facts()
        policy = make("dpo").policy
        found.append(evaluate_reward_model(model, data.batches("test"), facts=facts).metrics)
        found[-1] |= evaluate_pairs(policy, reference=None, batches=data.batches("test"))
    plain, turned = found
    assert plain["num_pairs"] == 2 and plain["margin"] != 0 and plain["pair_margin"] != 0
    assert plain["longer_accuracy"] == 1 / 2  # " yes 0" is longer than " no 0", " yes very 1" shorter
    assert turned == pytest.approx(plain, abs=1e-5)


def test_the_likelier_reply_stands_first_whichever_way_the_pair_is_written():
    """Four pairs, chosen 0 to 3 and rejected 10 to 13: the third says nothing, the second and the fourth are turned."""
    ids = torch.tensor([[0], [1], [2], [3], [10], [11], [12], [13]])
    sequences = Sequences(ids, torch.ones_like(ids, dtype=torch.bool), ids)
    batch = PreferenceBatch(
        sequences, torch.arange(4), torch.tensor([0.8, 0.0, 0.5, 0.3]), torch.ones(4), ids[:, 0].float()
    )
    found = batch.likelier()
    assert found.sequences.input_ids[:, 0].tolist() == [0, 11, 13, 10, 1, 3] and found.rows.tolist() == [0, 1, 3]
    assert found.preference is found.weight is found.ref_logprobs is None
    certain = PreferenceBatch(sequences, torch.arange(4)).likelier()
    assert certain.sequences.input_ids[:, 0].tolist() == ids[:, 0].tolist()
