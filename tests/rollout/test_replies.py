"""Several scored replies a prompt: each batch is a function of (seed, number), scorers see replies by prompt."""

import pytest
import torch

from alignlab.errors import ConfigError, ModelError
from alignlab.rollout.replies import Drawing, batch_seed, draw_batch, each_by_itself
from tests import tiny_models as tiny

PROMPTS = tiny.tiny_prompts((5, 3))
DRAWING = Drawing(n=3, max_new_tokens=6, seed=7)


def length(prompts, responses) -> torch.Tensor:
    return torch.tensor([float(len(text)) for text in responses])


def test_a_batch_depends_on_the_seed_and_its_number_alone():
    policy, scorers = tiny.tiny_policy(), {"score": each_by_itself(length)}
    torch.manual_seed(1)
    first = [draw_batch(policy, PROMPTS, DRAWING, scorers, index=index) for index in (0, 1)]
    torch.manual_seed(2)
    again = [draw_batch(policy, PROMPTS, DRAWING, scorers, index=index) for index in (1, 0)]
    assert first == again[::-1] and first[0] != first[1]
    assert len({batch_seed(seed, index) for seed in range(20) for index in range(50)}) == 1000
    assert batch_seed(1, 11) != batch_seed(11, 1)


def test_replies_come_prompt_by_prompt_with_their_row_index_length_and_score():
    policy = tiny.tiny_policy()
    found = draw_batch(policy, PROMPTS, DRAWING, {"score": each_by_itself(length)}, index=0)
    rows = PROMPTS.rows.tolist()
    assert [(reply["row"], reply["index"]) for reply in found] == [(row, i) for row in rows for i in range(3)]
    assert [reply["prompt"] for reply in found] == [prompt for prompt in PROMPTS.prompts for _ in range(3)]
    for reply in found:  # one token a character
        assert reply["score"] == len(reply["response"])
        assert reply["length"] <= 6 and (reply["complete"] or reply["length"] == 6)
        assert reply["length"] >= len(reply["response"]) + reply["complete"]  # the stop token is one of them
    assert any(reply["complete"] for reply in found)


def test_a_scorer_is_given_the_replies_to_each_prompt_together():
    """What a judge that ranks replies against one another needs."""
    seen = []

    def by_rank(prompts, replies):
        seen.append((tuple(prompts), [tuple(own) for own in replies]))
        return [[float(sorted(own).index(reply)) for reply in own] for own in replies]

    found = draw_batch(tiny.tiny_policy(), PROMPTS, DRAWING, {"score": by_rank}, index=0)
    [(prompts, groups)] = seen
    assert prompts == PROMPTS.prompts and [len(own) for own in groups] == [3, 3]
    assert [reply["response"] for reply in found] == [reply for own in groups for reply in own]
    assert found[0]["score"] == sorted(groups[0]).index(groups[0][0])


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        (lambda prompts, replies: [[1.0]] * 2, "1, 1"),
        (lambda prompts, replies: [[1.0, 2.0, float("nan")]] * 2, "not a finite"),
    ],
)
def test_scores_that_are_missing_or_no_number_are_refused(scorer, said: str):
    with pytest.raises(ModelError, match=said):
        draw_batch(tiny.tiny_policy(), PROMPTS, DRAWING, {"score": scorer}, index=0)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"max_new_tokens": 0}, {"seed": -1}, {"n": 2.5}, {"temperature": 0.0}])
def test_a_drawing_that_cannot_be_is_refused(wrong: dict):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Drawing(**{"n": 2, "max_new_tokens": 4, **wrong})
