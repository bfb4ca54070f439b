"""Scores: what a reply that never ended costs, and rewards that misbehave."""

import pytest
import torch

from alignlab.batches import Rollout, Sequences
from alignlab.errors import ConfigError, ModelError, NonFiniteError
from alignlab.rollout.scoring import score


def rollout(complete: list[bool]) -> Rollout:
    """Replies of which only texts and completeness matter."""
    blank = torch.zeros(len(complete), 2)
    sequences = Sequences(blank.long(), blank.bool(), blank.long())
    texts = tuple("ab"[: i + 1] for i in range(len(complete)))
    return Rollout(sequences, blank, torch.tensor(complete), tuple("p" for _ in complete), texts)


def lengths(prompts, responses) -> torch.Tensor:
    """The reply's length."""
    return torch.tensor([float(len(text)) for text in responses], dtype=torch.float64)


def test_scores_are_the_rewards_in_float32() -> None:
    scores = score(lengths, rollout([True, False]))
    assert scores.tolist() == [1.0, 2.0] and scores.dtype == torch.float32


def test_the_penalty_is_subtracted_only_where_no_stop_token_came() -> None:
    assert score(lengths, rollout([True, False]), missing_eos_penalty=1.5).tolist() == [1.0, 0.5]


def test_the_fixed_score_replaces_the_reward_where_no_stop_token_came() -> None:
    assert score(lengths, rollout([True, False]), missing_eos_score=-1.0).tolist() == [1.0, -1.0]


def test_two_recipes_at_once_and_a_negative_penalty_are_refused() -> None:
    with pytest.raises(ConfigError, match="one of them"):
        score(lengths, rollout([True]), missing_eos_penalty=1.0, missing_eos_score=-1.0)
    with pytest.raises(ConfigError, match="negative"):
        score(lengths, rollout([True]), missing_eos_penalty=-1.0)


def test_a_reward_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(ModelError, match=r"gave \(1,\) for 2 replies"):
        score(lambda prompts, responses: torch.zeros(1), rollout([True, True]))
    with pytest.raises(ModelError, match="gave list"):
        score(lambda prompts, responses: [0.0, 0.0], rollout([True, True]))  # type: ignore[arg-type,return-value]


def test_a_reward_that_is_no_number_stops_with_the_reply_it_came_from() -> None:
    with pytest.raises(NonFiniteError, match=r"nan for the reply 'ab'"):
        score(lambda prompts, responses: torch.tensor([1.0, float("nan")]), rollout([True, True]))


def test_no_gradient_leaves_a_reward() -> None:
    weight = torch.ones(1, requires_grad=True)
    assert not score(lambda prompts, responses: weight.expand(2), rollout([True, True])).requires_grad
