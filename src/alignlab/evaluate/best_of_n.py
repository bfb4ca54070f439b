"""Best-of-n: draw n replies, keep the one that a reward ranks first. What it gains, and how far it goes.

From N >= n replies to a prompt, ordered by proxy reward, the reply of rank i is the best of C(i - 1, n - 1) of the
C(N, n) subsets of n; the mean of its gold reward over all subsets is an unbiased estimate of what best-of-n is worth,
of less variance than one subset (Nakano et al. 2021, WebGPT, appendix I; Stiennon et al. 2020). Replies of equal proxy
share the subsets in which one of them is best, as where the one drawn first is kept.

How far best-of-n goes from the policy it draws from: KL <= log n - (n - 1) / n. Stiennon et al. 2020 state this as its
KL; it is a bound, and met only where no two replies tie and none has a mass that counts (Beirami et al. 2024). Where
the replies can be listed (worlds/exact) the distribution is known: a reward level of mass m, of which the levels up to
it hold F, gets F^n - (F - m)^n, shared among its replies by their own probabilities.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.errors import ConfigError, DataError
from alignlab.evaluate.findings import Cell, Curve, Findings, Table
from alignlab.statistics import Interval, mean_interval
from alignlab.worlds.exact import ExactWorld


class ExactBest(NamedTuple):
    """Best-of-n with nothing sampled."""

    score: float  # expected proxy reward
    gold: float | None
    kl: float  # nats per reply, to the policy that is drawn from


class BestOf(NamedTuple):
    """What the best of n is worth; intervals are over prompts (NaN of a single one)."""

    n: int
    score: Interval  # of the reward that ranks
    gold: Interval | None  # of the true reward, where it is another
    kl_bound: float  # nats per reply, to the policy that is drawn from
    exact: ExactBest | None = None


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n, in nats: the most that best-of-n can be away from the policy it draws from."""
    return math.log(n) - (n - 1) / n


def expected_best(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """The mean value of the best of n by score, over all subsets of n of the N replies.

    Equal scores share: (C(b, n) - C(a, n)) / C(N, n) goes in equal parts to those of ranks a + 1 to b.

    Raises:
        DataError: there are not as many values as scores, or n is not from 1 to N.
    """
    if len(scores) != len(values):
        raise DataError(f"best of n: {len(scores)} scores and {len(values)} values; each reply needs both")
    if not 1 <= n <= len(scores):
        raise DataError(f"best of {n}: there are {len(scores)} replies to the prompt; n is from 1 to that")
    levels: dict[float, list[float]] = {}
    for score, value in sorted(zip(scores, values), key=lambda pair: pair[0]):
        levels.setdefault(score, []).append(value)
    total, below, expected = math.comb(len(scores), n), 0, []
    for tied in levels.values():
        up_to = below + len(tied)
        share = (math.comb(up_to, n) - math.comb(below, n)) / total  # of whole numbers, however long: exact
        expected.append(share * math.fsum(tied) / len(tied))
        below = up_to
    return math.fsum(expected)


def sizes(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return sorted({*(2**power for power in range(most.bit_length())), most})


def best_of_n(
    scores: Sequence[Sequence[float]],
    golds: Sequence[Sequence[float]] | None = None,
    *,
    exact: Mapping[int, ExactBest] | None = None,
) -> list[BestOf]:
    """Estimates for n = 1, 2, 4, ..., N from N scores (and gold rewards) of the replies to each prompt.

    Where prompts have different numbers of replies, N is the least. DataError where there are no prompts.
    """
    if not scores:
        raise DataError("best of n: no prompts came")
    found = []
    for n in sizes(min(len(own) for own in scores)):
        score = mean_interval([expected_best(own, own, n) for own in scores])
        gold = None
        if golds is not None:
            gold = mean_interval([expected_best(own, true, n) for own, true in zip(scores, golds, strict=True)])
        found.append(BestOf(n, score, gold, kl_bound(n), (exact or {}).get(n)))
    return found


def exact_best_of_n(logprobs: Float[Tensor, "*K N"], scores: Float[Tensor, "*K N"], n: int) -> Float[Tensor, "*K N"]:
    """log P of every response under best-of-n by `scores` from the policy of `logprobs`; float64.

    ConfigError for n below 1.
    """
    if n < 1:
        raise ConfigError(f"best of {n}: at least one reply is drawn")
    flat = zip(logprobs.double().reshape(-1, logprobs.shape[-1]), scores.double().reshape(-1, logprobs.shape[-1]))
    return torch.stack([_exact(own, ranks, n) for own, ranks in flat]).reshape(logprobs.shape)


def exact_figures_of_best(
    world: ExactWorld, logprobs: Float[Tensor, "*K N"], scores: Float[Tensor, "*K N"], most: int, *, gold: bool
) -> dict[int, ExactBest]:
    """Exact score, gold (the world's reward, if `gold`) and KL of the best of n for each of `sizes(most)`.

    `logprobs` are of the policy that is drawn from; means over the world's prompts.
    """
    start = logprobs.double().log_softmax(-1)
    proxy = world.with_reference(start).with_rewards(scores, world.beta)
    found = {}
    for n in sizes(most):
        best = exact_best_of_n(start, scores, n)
        reached = float(world.expected_reward(best)) if gold else None
        found[n] = ExactBest(float(proxy.expected_reward(best)), reached, float(proxy.kl(best)))
    return found


def _exact(logprobs: Float[Tensor, "N"], scores: Float[Tensor, "N"], n: int) -> Float[Tensor, "N"]:
    """One prompt: each level's mass F^n - (F - m)^n, shared by the probabilities within it."""
    levels, which = scores.unique(return_inverse=True)  # ascending
    mass = logprobs.new_zeros(len(levels)).index_add(0, which, logprobs.exp())
    up_to = mass.cumsum(0) / mass.sum()
    below = torch.cat([up_to.new_zeros(1), up_to[:-1]])
    return (logprobs - mass.log()[which]) + (up_to**n - below**n).log()[which]


# -- what is said of it -------------------------------------------------------------------------------------------
def findings(levels: Sequence[BestOf], *, num_prompts: int) -> Findings:
    """A table and a figure of reward against the KL bound, for the report, and the figures for run.json."""
    most = levels[-1]
    note = (
        f"Unbiased estimates from {most.n} replies to each of {num_prompts} prompts, with 95% intervals over prompts. "
        "KL in nats per reply, to the policy drawn from; the bound is log n - (n - 1) / n."
    )
    metrics = {}
    for level in levels:
        metrics |= _metrics(f"best_of_{level.n}", level)
    gain = most.score.mean - levels[0].score.mean
    notes = [
        f"Best of {most.n} scores {most.score.mean:.3f}, {gain:+.3f} over one reply, at most {most.kl_bound:.2f} nats "
        "away."
    ]
    if most.gold is not None and levels[0].gold is not None:
        notes.append(
            f"Its gold reward is {most.gold.mean:.3f}, {most.gold.mean - levels[0].gold.mean:+.3f} over one reply."
        )
    return Findings(
        {"best_of_n": Table([_row(level) for level in levels], note)}, {"best_of_n": _curve(levels)}, metrics, notes
    )


def _metrics(name: str, level: BestOf) -> dict[str, float]:
    found = {f"{name}/score": level.score.mean, f"{name}/kl_bound": level.kl_bound}
    if level.gold is not None:
        found[f"{name}/gold"] = level.gold.mean
    if level.exact is not None:
        found |= {f"{name}/exact_score": level.exact.score, f"{name}/exact_kl": level.exact.kl}
    return found


def _row(level: BestOf) -> dict[str, Cell]:
    row: dict[str, Cell] = {"n": level.n, "score": level.score.mean, **_ends("score", level.score)}
    if level.gold is not None:
        row |= {"gold": level.gold.mean, **_ends("gold", level.gold)}
    row["KL bound"] = level.kl_bound
    if level.exact is not None:
        row |= {"exact score": level.exact.score, "exact KL": level.exact.kl}
        row |= {} if level.exact.gold is None else {"exact gold": level.exact.gold}
    return row


def _ends(name: str, interval: Interval) -> dict[str, Cell]:
    """Empty cells for a single prompt, which has no interval."""
    low, high = ("", "") if math.isnan(interval.low) else (interval.low, interval.high)
    return {f"{name} low": low, f"{name} high": high}


def _curve(levels: Sequence[BestOf]) -> Curve:
    lines: dict[str, list[tuple[float, float]]] = {"score": [(level.kl_bound, level.score.mean) for level in levels]}
    golds: list[Any] = [(level.kl_bound, level.gold.mean) for level in levels if level.gold is not None]
    exact = [(level.exact.kl, level.exact.score) for level in levels if level.exact is not None]
    lines |= ({"gold": golds} if golds else {}) | ({"exact score at exact KL": exact} if exact else {})
    return Curve(
        lines, x="KL to the policy drawn from (bound), nats", y="reward", note="n = 1, 2, 4, ... from the left."
    )
