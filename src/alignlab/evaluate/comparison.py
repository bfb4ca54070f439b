"""Which of two sets of replies to the same prompts a judge prefers: win rate, ties, and the same with length taken out.

Replies are the samples of a `PolicyEvaluation`, or anything with their keys row, prompt and response. Lengths are in
characters, as in AlpacaEval: the same for every tokenizer.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignlab.errors import DataError
from alignlab.evaluate.length_control import length_controlled_win_rate
from alignlab.rollout.judges.verdict import TIE, Judge
from alignlab.rows import Prompt
from alignlab.statistics import Interval, match_samples, mean_interval, paired_bootstrap, share_interval

Sample = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Figures of a comparison and the verdicts that they stand on.

    Args:
        metrics: plain floats; `<name>_low` and `<name>_high` are the 95% interval over prompts.
        verdicts: one dict per pair of replies, ready for JSON: row, prompt, response, other, verdict (1 ours is the
            better one, 0 the other, 0.5 a tie, None where the judge could not be understood), why.
    """

    metrics: dict[str, float]
    verdicts: list[dict[str, Any]]


def compare(ours: Sequence[Sample], theirs: Sequence[Sample], *, judge: Judge, seed: int = 0) -> Comparison:
    """Has `judge` decide on each reply of ours against one of theirs to the same prompt.

    The k-th reply to a prompt meets their k-th one, beginning anew where they have fewer. Verdicts on one prompt are
    averaged first; the interval is over prompts.

    Metrics: win_rate (ties half; Wilson) and win_rate_stderr (of the mean over prompts); tie_rate, share of the judged
    pairs; win_rate_length_controlled (+ _stderr; see `length_control`; absent where lengths cannot tell);
    length_difference (characters, ours less theirs; t interval); num_compared, prompts; num_unjudged, pairs without a
    verdict, which count in none of these; what the judge's own `figures` say; and gold_gain, the mean difference in
    gold reward (paired bootstrap), where both have one.

    Raises:
        DataError: no prompt is shared, or no pair could be judged.
    """
    pairs = _pairs(ours, theirs)
    if not pairs:
        raise DataError("evaluation.against: the other replies share no prompt with ours; use the same data and split")
    prompts = [_prompt(mine["prompt"]) for mine, _ in pairs]
    found = judge.compare(prompts, [mine["response"] for mine, _ in pairs], [other["response"] for _, other in pairs])
    wins, gaps, values = defaultdict(list), defaultdict(list), []
    for (mine, other), verdict in zip(pairs, found, strict=True):
        if verdict.value is not None:
            values.append(verdict.value)
            wins[_key(mine)].append(verdict.value)
            gaps[_key(mine)].append(len(mine["response"]) - len(other["response"]))
    if not values:
        raise DataError(f"evaluation.judge: not one of {len(pairs)} pairs could be judged; the first: {found[0].why}")
    metrics = _figures([_mean(each) for each in wins.values()], [_mean(each) for each in gaps.values()])
    metrics |= {"tie_rate": values.count(TIE) / len(values), "num_unjudged": float(len(pairs) - len(values))}
    metrics |= judge.figures(found)
    gold = match_samples(ours, theirs, field="gold_reward")
    if gold[0]:
        _add(metrics, "gold_gain", paired_bootstrap(*gold, seed=seed))
    verdicts = [
        {name: mine[name] for name in ("row", "prompt", "response")}
        | {"other": other["response"], "verdict": verdict.value, "why": verdict.why}
        for (mine, other), verdict in zip(pairs, found, strict=True)
    ]
    return Comparison(metrics, verdicts)


def _figures(wins: Sequence[float], gaps: Sequence[float]) -> dict[str, float]:
    """What one verdict and one difference in length per prompt come to."""
    metrics: dict[str, float] = {"num_compared": float(len(wins))}
    _add(metrics, "win_rate", share_interval(math.fsum(wins), len(wins)))
    _add(metrics, "length_difference", mean_interval(gaps))
    controlled = length_controlled_win_rate(wins, gaps)
    if math.isfinite(controlled.mean):
        _add(metrics, "win_rate_length_controlled", controlled)
        if math.isfinite(controlled.stderr):
            metrics["win_rate_length_controlled_stderr"] = controlled.stderr
    if len(wins) > 1:
        metrics["win_rate_stderr"] = mean_interval(wins).stderr
    return metrics


def _pairs(ours: Sequence[Sample], theirs: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Ours in their order, each with the reply that it meets."""
    others: dict[tuple[Any, str], list[Sample]] = defaultdict(list)
    for sample in theirs:
        others[_key(sample)].append(sample)
    met: dict[tuple[Any, str], int] = defaultdict(int)
    pairs = []
    for sample in ours:
        key = _key(sample)
        if key in others:
            pairs.append((sample, others[key][met[key] % len(others[key])]))
            met[key] += 1
    return pairs


def _key(sample: Sample) -> tuple[Any, str]:
    """Prompts are the same where their row number and their text are, as in `match_samples`."""
    return sample.get("row"), json.dumps(sample["prompt"], sort_keys=True)


def _prompt(prompt: Any) -> Prompt:
    """A prompt as it stands in the data again: messages were made plain for JSON."""
    return prompt if isinstance(prompt, str) else tuple(prompt)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _add(metrics: dict[str, float], name: str, interval: Interval) -> None:
    metrics[name] = interval.mean
    if math.isfinite(interval.low):  # a single prompt has no interval
        metrics |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
