"""A judge of pairs as a scorer: wins counted by hand."""

import pytest

from alignlab.rollout.judges.ranking import by_comparison, win_shares
from alignlab.rollout.judges.verdict import FIRST, SECOND, TIE, Verdict


def test_a_score_is_the_share_of_wins_and_undecided_pairs_count_for_neither():
    # pairs (0,1) (0,2) (1,2): 0 beats 1, 0 ties with 2, the judge is silent about 1 and 2
    verdicts = [Verdict(FIRST), Verdict(TIE), Verdict(None)]
    assert win_shares(3, verdicts) == [0.75, 0.0, 0.5]
    assert win_shares(2, [Verdict(None)]) == [TIE, TIE]
    assert win_shares(1, []) == [TIE]
    with pytest.raises(ValueError, match="zip"):
        win_shares(3, verdicts[:2])


class Longer:
    """Prefers the longer reply, and keeps what it was asked."""

    name = "longer"

    def __init__(self):
        self.asked = []

    def compare(self, prompts, first, second):
        self.asked += list(zip(prompts, first, second))
        return [
            Verdict(TIE if len(a) == len(b) else FIRST if len(a) > len(b) else SECOND) for a, b in zip(first, second)
        ]

    def figures(self, verdicts):
        return {}


def test_every_two_replies_of_a_prompt_are_compared_once_and_those_of_two_prompts_never():
    judge = Longer()
    scores = by_comparison(judge)(["p", "q"], [["a", "bbb", "cc"], ["dd", "e"]])
    assert scores == [[0.0, 1.0, 0.5], [1.0, 0.0]]
    assert judge.asked == [("p", "a", "bbb"), ("p", "a", "cc"), ("p", "bbb", "cc"), ("q", "dd", "e")]
