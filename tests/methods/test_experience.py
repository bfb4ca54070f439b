"""Where the reward stands, and that cutting an experience into minibatches loses nothing."""

import pytest
import torch

from alignlab.batches import IGNORE, PromptBatch, Rollout, Sequences
from alignlab.methods.experience import (
    Experience,
    Judged,
    minibatches,
    repeated,
    rollout_metrics,
    rollout_sums,
    split,
    token_rewards,
)


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
    parts = list(minibatches(whole, 4, torch.Generator().manual_seed(0)))
    assert [len(part.rows) for part in parts] == [3, 3, 2, 2]
    assert sorted(torch.cat([part.rows for part in parts]).tolist()) == list(range(10))
    again = list(minibatches(whole, 4, torch.Generator().manual_seed(0)))
    assert all(torch.equal(a.rows, b.rows) for a, b in zip(parts, again, strict=True))
    other = list(minibatches(whole, 4, torch.Generator().manual_seed(1)))
    assert any(not torch.equal(a.rows, b.rows) for a, b in zip(parts, other, strict=True))
    for part in parts:
        torch.testing.assert_close(part.values, whole.values[part.rows])


def test_micro_batches_come_in_order_with_all_that_a_reply_has():
    """Per-token tensors lose columns, one number per reply does not, and what is not there stays away."""
    whole = experience(torch.ones(5, 4, dtype=torch.bool))._replace(values=None, weights=torch.arange(5.0))
    parts = list(split(whole, 2))
    assert [part.rows.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert all(torch.equal(part.weights, part.rows.float()) and part.values is None for part in parts)
    torch.testing.assert_close(torch.cat([part.advantages for part in parts]), whole.advantages)


def test_the_replies_to_one_prompt_are_a_contiguous_group():
    ids = torch.tensor([[1, 2], [3, 4]])
    batch = repeated(PromptBatch(ids, ids > 1, torch.tensor([7, 8]), ("a", "b")), 3)
    assert batch.rows.tolist() == [7, 7, 7, 8, 8, 8] and batch.prompts == ("a", "a", "a", "b", "b", "b")
    assert batch.input_ids.tolist() == [[1, 2]] * 3 + [[3, 4]] * 3
    assert torch.equal(batch.attention_mask, batch.input_ids > 1)


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
