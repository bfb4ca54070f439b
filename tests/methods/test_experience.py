"""Where the reward stands, and that cutting an experience into minibatches loses nothing."""

import pytest
import torch

from alignlab.batches import IGNORE, Rollout, Sequences
from alignlab.methods.experience import Experience, Judged, rollout_metrics, rollout_sums, token_rewards


def experience(mask: torch.Tensor) -> Experience:
    num_rows, time = mask.shape
    ids = torch.arange(num_rows * time).reshape(num_rows, time)
    labels = torch.full_like(ids, IGNORE)
    labels[:, 1:][mask[:, :-1]] = ids[:, 1:][mask[:, :-1]]
    attention = torch.ones_like(mask)
    x = torch.arange(num_rows * time, dtype=torch.float32).reshape(num_rows, time) * mask
    return Experience(Sequences(ids, attention, labels), mask, x, x + 1, x + 2, x + 3, torch.arange(num_rows))


def test_the_score_stands_on_the_last_reply_token_and_the_penalty_on_every_one():
    mask = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
    logprobs = torch.tensor([[9.0, -1.0, -2.0, 9.0], [9.0, -1.0, -1.0, -1.0]])
    reference = torch.tensor([[0.0, -1.5, -1.0, 0.0], [0.0, -1.0, -1.0, -3.0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0]), logprobs, reference, mask, kl_coefficient=0.1)
    by_hand = torch.tensor([[0.0, -0.05, 10.0 + 0.1, 0.0], [0.0, 0.0, 0.0, 20.0 - 0.2]])
    torch.testing.assert_close(rewards, by_hand)


def test_an_empty_reply_gets_no_score():
    mask = torch.tensor([[False, False], [True, False]])
    zeros = torch.zeros(2, 2)
    rewards = token_rewards(torch.tensor([5.0, 7.0]), zeros, zeros, mask, kl_coefficient=1.0)
    assert rewards.tolist() == [[0.0, 0.0], [7.0, 0.0]]


def test_minibatches_hold_every_reply_once_in_an_order_of_the_generator():
    whole = experience(torch.ones(10, 4, dtype=torch.bool))
    parts = list(whole.minibatches(4, torch.Generator().manual_seed(0)))
    assert [len(part.rows) for part in parts] == [3, 3, 2, 2]
    assert sorted(torch.cat([part.rows for part in parts]).tolist()) == list(range(10))
    again = list(whole.minibatches(4, torch.Generator().manual_seed(0)))
    assert all(torch.equal(a.rows, b.rows) for a, b in zip(parts, again, strict=True))
    for part in parts:
        torch.testing.assert_close(part.values, whole.values[part.rows])


def test_columns_that_are_padding_everywhere_are_cut_from_all_tensors_alike():
    whole = experience(torch.tensor([[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]], dtype=torch.bool))
    attention = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]], dtype=torch.bool)
    whole = whole._replace(sequences=whole.sequences._replace(attention_mask=attention))
    part = whole.take(torch.tensor([0]))
    assert part.mask.shape == part.values.shape == part.sequences.input_ids.shape == (1, 2)
    assert part.logprobs.tolist() == [[1.0, 2.0]]


def test_rollout_metrics_by_hand():
    """Two replies of 1 and 2 tokens: scores 1 and 4, k1 of -0.5 and 0.5 + 1.0."""
    mask = torch.tensor([[True, False, False], [True, True, False]])
    logprobs = torch.tensor([[-1.0, 0.0, 0.0], [-1.0, -1.0, 0.0]])
    reference = torch.tensor([[-0.5, 0.0, 0.0], [-1.5, -2.0, 0.0]])
    judged = Judged(mask, logprobs, reference, torch.zeros(2, 3), torch.tensor([[0.3, 0, 0], [0.6, 0.9, 0]]))
    sequences = Sequences(*(torch.zeros(2, 3, dtype=torch.long) for _ in range(3)))
    rollout = Rollout(sequences, logprobs + 0.1 * mask, torch.tensor([True, False]), ("a", "b"), ("x", "y z"))
    returns = torch.tensor([[1.0, 0, 0], [4.0, 4.0, 0]])
    scores = torch.tensor([1.0, 4.0])
    metrics = rollout_metrics(rollout_sums(rollout, judged, scores, returns, returns))
    expected = {"score": 2.5, "kl": 0.5, "eos_rate": 0.5, "response_length": 1.5, "entropy": 0.6, "sampler_gap": 0.1}
    assert {name: float(metrics[name]) for name in expected} == pytest.approx(expected)
    assert float(metrics["explained_variance"]) == pytest.approx(0.0)
    perfect = judged._replace(values=returns)
    again = rollout_metrics(rollout_sums(rollout, perfect, scores, returns, returns))
    assert float(again["explained_variance"]) == pytest.approx(1.0)
