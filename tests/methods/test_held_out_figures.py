"""The figures on held-out data, against plain computations: they decide which checkpoint is best, and are published."""

import math

import pytest
import torch

from alignlab.batches import IGNORE
from tests.methods.setting import letter_reward, make_data, make_method


def figures(method, split: str = "test") -> dict[str, float]:
    """What the whole split comes to, batch by batch."""
    totals: dict[str, float] = {}
    with torch.no_grad():
        for batch in make_data(method.row_type, batch_size=4).batches(split):  # the last batch is smaller
            for name, value in method.evaluate_batch(batch, split).items():
                totals[name] = totals.get(name, 0.0) + float(value)
    return method.reduce_evaluation(totals)


def test_sft_loss_and_accuracy_are_means_over_all_tokens_of_the_split():
    method = make_method("sft")
    learner = torch.optim.Adam(method.policy.parameters(), lr=1e-2)
    for step in range(15):  # until some tokens are guessed right
        method.compute(make_data(method.row_type).train_batch(step)).loss.backward()
        learner.step()
        learner.zero_grad()
    nll, right, count = 0.0, 0, 0
    with torch.no_grad():
        for batch in make_data(method.row_type, batch_size=6).batches("test"):
            ids, mask, labels = batch.sequences
            logits = method.policy.model(input_ids=ids, attention_mask=mask.long()).logits.double()
            for row in range(len(ids)):
                for t in range(1, ids.shape[1]):
                    if labels[row, t] != IGNORE:
                        nll -= float(torch.log_softmax(logits[row, t - 1], -1)[ids[row, t]])
                        right += int(logits[row, t - 1].argmax() == ids[row, t])
                        count += 1
    found = figures(method)
    assert found["loss"] == pytest.approx(nll / count, rel=1e-5)
    assert found["token_accuracy"] == pytest.approx(right / count)
    assert found["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-4)
    assert 0 < right < count


def test_reward_accuracy_margin_and_calibration_by_hand(monkeypatch: pytest.MonkeyPatch):
    """Margins 2, -1, 0, 3: two right, one wrong, one tie; confidence is of the answer given, so never below 0.5."""
    method = make_method("reward")
    scores = torch.tensor([2.0, 0.0, 1.0, 4.0, 0.0, 1.0, 1.0, 1.0])  # four chosen, then four rejected
    monkeypatch.setattr(type(method.reward_model), "forward", lambda self, sequences: scores)
    batch = next(make_data(method.row_type, batch_size=4).batches("test"))
    sums = {name: float(value) for name, value in method.evaluate_batch(batch, "test").items()}
    found = method.reduce_evaluation(sums)
    assert found["accuracy"] == 2.5 / 4
    assert found["margin"] == 1.0
    sigmoid = [1 / (1 + math.exp(-m)) for m in (2.0, 1.0, 0.0, 3.0)]  # 0.881, 0.731, 0.5, 0.953: four bins of their own
    gaps = [1 - sigmoid[0], sigmoid[1], abs(0.5 - sigmoid[2]), 1 - sigmoid[3]]
    assert found["calibration_error"] == pytest.approx(sum(gaps) / 4)
    by_hand = sum(math.log1p(math.exp(-m)) for m in (2.0, -1.0, 0.0, 3.0)) / 4
    assert found["loss"] == pytest.approx(by_hand)


def test_ppos_objective_is_the_score_less_the_penalty():
    method = make_method("ppo", temperature=0.7)
    with torch.no_grad():
        for weight in method.policy.model.parameters():
            weight.mul_(1.2)  # so that there is a KL to pay for
    found = figures(method)
    assert abs(found["kl"]) > 0.05
    assert found["objective"] == pytest.approx(found["reward"] - 0.05 * found["kl"], rel=1e-6)
    batch = next(make_data(method.row_type, batch_size=4).batches("test"))
    sums = method.evaluate_batch(batch, "test")
    again = method.evaluate_batch(batch, "test")
    assert {name: float(value) for name, value in sums.items()} == {name: float(v) for name, v in again.items()}


def test_the_reference_is_read_at_the_temperature_that_is_trained():
    method = make_method("ppo", temperature=0.7)
    assert figures(method)["kl"] == pytest.approx(0.0, abs=1e-5)
    batch = make_data(method.row_type).train_batch(0)
    rollout = method.sample(batch, torch.Generator().manual_seed(3))
    _, metrics = method.collect(rollout, batch.rows)
    assert float(metrics["kl"]) == pytest.approx(0.0, abs=1e-5)
    assert float(metrics["score"]) == pytest.approx(float(letter_reward(rollout.prompts, rollout.responses).mean()))
