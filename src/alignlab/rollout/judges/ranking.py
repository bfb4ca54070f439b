"""A judge of pairs as a scorer of all replies to a prompt: every two are compared, and wins are counted.

A reply's score is its share of wins over the other replies to its prompt, a tie half (Copeland's rule, with halves). It
ranks the replies to one prompt; those to two prompts cannot be compared by it, for the mean is 0.5 everywhere.
"""

from collections.abc import Sequence
from itertools import combinations

from alignlab.rollout.judges.verdict import TIE, Judge, Verdict
from alignlab.rollout.replies import Scorer
from alignlab.rows import Prompt


def by_comparison(judge: Judge) -> Scorer:
    """A scorer that asks `judge` about every two replies to a prompt: n (n - 1) / 2 pairs for n replies."""

    def scores(prompts: Sequence[Prompt], replies: Sequence[Sequence[str]]) -> list[list[float]]:
        verdicts = iter(all_verdicts(judge, prompts, replies))
        return [win_shares(len(own), [next(verdicts) for _ in combinations(own, 2)]) for own in replies]

    return scores


def all_verdicts(judge: Judge, prompts: Sequence[Prompt], replies: Sequence[Sequence[str]]) -> list[Verdict]:
    """A verdict on every two replies to each prompt, in the order of `combinations`, prompt by prompt."""
    asked = [(prompt, *pair) for prompt, own in zip(prompts, replies, strict=True) for pair in combinations(own, 2)]
    return judge.compare([prompt for prompt, _, _ in asked], [one for _, one, _ in asked], [two for *_, two in asked])


def win_shares(n: int, verdicts: Sequence[Verdict]) -> list[float]:
    """Of n replies, each one's mean verdict against the others; `verdicts` in the order of combinations(range(n), 2).

    A comparison that the judge did not decide counts for neither; TIE for a reply that has no other.
    """
    won, judged = [0.0] * n, [0] * n
    for (one, other), verdict in zip(combinations(range(n), 2), verdicts, strict=True):
        if verdict.value is None:
            continue
        won[one] += verdict.value
        won[other] += 1 - verdict.value
        judged[one] += 1
        judged[other] += 1
    return [wins / count if count else TIE for wins, count in zip(won, judged)]
