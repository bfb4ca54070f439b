"""From scored replies to rows that a method trains on: the best, pairs of better and worse, good and bad ones.

sft          the best reply to each prompt: best of n, rejection sampling (RAFT, Dong et al. 2023)
preference   the best against the worst, or every pair of replies whose scores differ
unpaired     each reply, desirable where its score is above a threshold and undesirable where it is below

Rows are written as the formats of `data/formats/plain.py` read them where the prompt is text, and as those of
`data/formats/chat.py` where it is a list of messages. A reply without text makes no row (no method can learn from it),
nor does one that another reply to its prompt repeats. Of equal scores the one drawn first is the best.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from alignlab.errors import ConfigError, DataError

KINDS = ("sft", "preference", "unpaired")
Reply = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which replies become rows.

    Raises:
        ConfigError: a setting that cannot be.
    """

    pairs: Literal["best_worst", "all"] = "best_worst"
    margin: float = 0.0  # least difference of the scores of a pair; equal scores never make one
    min_score: float | None = None  # least score of an SFT row
    threshold: float | None = None  # of desirable replies; None: the mean over the prompt's replies
    complete_only: bool = False  # leave out replies that were cut at their longest

    def __post_init__(self) -> None:
        if self.pairs not in ("best_worst", "all"):
            raise ConfigError(f"task.select.pairs={self.pairs}: allowed are best_worst and all")
        if not (self.margin >= 0 and math.isfinite(self.margin)):
            raise ConfigError(f"task.select.margin={self.margin}: expected a difference of scores, at least 0")

    def rows(self, replies: Sequence[Reply]) -> dict[str, list[dict[str, Any]]]:
        """The rows of each kind, in the order of the prompts. `replies` are lines of samples/scored.jsonl."""
        rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for group in by_prompt(replies):
            usable = self._usable(group)
            if not usable:
                continue
            ranked = sorted(usable, key=lambda reply: -reply["score"])  # stable: of equals the one drawn first
            if self.min_score is None or ranked[0]["score"] >= self.min_score:
                rows["sft"].append(_sft(ranked[0]))
            rows["preference"] += [_pair(better, worse) for better, worse in self._pairs(ranked)]
            # in fractions: the mean of equal scores is that score, which a sum divided by n may miss by a rounding
            mean = statistics.mean(reply["score"] for reply in usable)
            rows["unpaired"] += _unpaired(usable, mean if self.threshold is None else self.threshold)
        return rows

    def _usable(self, group: Sequence[Reply]) -> list[Reply]:
        """Replies with text, each text once, whole ones if that is asked for."""
        found: dict[str, Reply] = {}
        for reply in group:
            if reply["response"].strip() and (reply["complete"] or not self.complete_only):
                found.setdefault(reply["response"], reply)
        return list(found.values())

    def _pairs(self, ranked: Sequence[Reply]) -> list[tuple[Reply, Reply]]:
        """(better, worse) of replies ordered by their scores."""
        pairs = [(ranked[0], ranked[-1])] if self.pairs == "best_worst" else combinations(ranked, 2)
        return [(a, b) for a, b in pairs if a["score"] > b["score"] and a["score"] - b["score"] >= self.margin]


def by_prompt(replies: Sequence[Reply]) -> list[list[Reply]]:
    """The replies to each prompt, prompts in the order of their first reply.

    Raises:
        DataError: there are none.
    """
    if not replies:
        raise DataError("no replies: is the split empty, or task.num_prompts 0?")
    groups: dict[int, list[Reply]] = {}
    for reply in replies:
        groups.setdefault(reply["row"], []).append(reply)
    return list(groups.values())


def _sft(reply: Reply) -> dict[str, Any]:
    prompt, response = reply["prompt"], reply["response"]
    if isinstance(prompt, str):
        return {"prompt": prompt, "response": response, "score": reply["score"]}
    return {"messages": [*prompt, {"role": "assistant", "content": response}], "score": reply["score"]}


def _pair(better: Reply, worse: Reply) -> dict[str, Any]:
    return {
        "prompt": better["prompt"],
        "chosen": better["response"],
        "rejected": worse["response"],
        "chosen_score": better["score"],
        "rejected_score": worse["score"],
    }


def _unpaired(replies: Sequence[Reply], threshold: float) -> list[dict[str, Any]]:
    """A reply exactly at the threshold is neither."""
    return [
        {
            "prompt": reply["prompt"],
            "response": reply["response"],
            "desirable": reply["score"] > threshold,
            "score": reply["score"],
        }
        for reply in replies
        if reply["score"] != threshold
    ]
