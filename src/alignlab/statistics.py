"""Means, shares and win rates with their 95% intervals, on plain lists of numbers.

Every interval here is over *prompts* (or pairs, where no two share a prompt): replies to one prompt are not
independent, so they are averaged first, or counted as a cluster. Which interval is which: means use Student's t, shares
and win rates use Wilson's score interval, paired differences use a seeded percentile bootstrap. On floor 0, because
evaluation and report both need it.
"""

import json
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from alignlab.errors import DataError


class Interval(NamedTuple):
    """An estimate and how sure one may be of it; `low`, `high` and `stderr` are NaN where one value cannot tell."""

    mean: float
    low: float
    high: float
    stderr: float
    count: int  # the denominator: prompts, or pairs


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Mean and t interval, mean +- t(count - 1) * s / sqrt(count) with the unbiased s.

    Raises:
        DataError: there are no values.
    """
    count = len(values)
    if count == 0:
        raise DataError("a mean needs at least one value, none came; is the set of prompts empty?")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, math.nan, math.nan, math.nan, 1)
    from scipy.special import stdtrit

    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    stderr = math.sqrt(variance / count)
    half = float(stdtrit(count - 1, 0.5 + confidence / 2)) * stderr
    return Interval(mean, mean - half, mean + half, stderr, count)


def clustered_interval(values: Sequence[float], clusters: Sequence[Hashable], *, confidence: float = 0.95) -> Interval:
    """Mean of all values with a t interval over clusters: values of one cluster need not be independent.

    With K clusters of sum s_k and size n_k, N values and their mean m, the variance of the mean is the jackknife's
    that leaves a cluster out, (K - 1) / K * sum_k ((s_k - m n_k) / (N - n_k))^2 (Bell & McCaffrey 2002, CR3:
    a cluster that is much larger than the others draws m to itself, which Cochran 1977, section 6.3, does not make good
    for), and t has K - 1 degrees of freedom. Clusters of one size: the t interval of the clusters' means. `count` is K.

    Raises:
        DataError: there are no values, or not as many clusters.
    """
    _check_paired(values, clusters)
    if len(set(clusters)) == len(values):
        return mean_interval(values, confidence=confidence)
    mean, stderr, count = _clustered_mean(values, clusters)
    if count == 1:
        return Interval(mean, math.nan, math.nan, math.nan, 1)
    from scipy.special import stdtrit

    quantile = float(stdtrit(count - 1, 0.5 + confidence / 2))
    return Interval(mean, mean - quantile * stderr, mean + quantile * stderr, stderr, count)


def clustered_share_interval(
    values: Sequence[float], clusters: Sequence[Hashable], *, confidence: float = 0.95
) -> Interval:
    """Mean of values from 0 to 1, most of them 0 or 1, that come in clusters; Wilson's interval at an effective number.

    With N values in K clusters, m their mean and v its variance over clusters (`clustered_interval`), the design effect
    is v / (m (1 - m) / (N - 1)), and N over it is the number of independent values that would tell as much: Wilson's
    interval is taken at that number (Dean & Pagano 2015), times (t(N - 1) / t(K - 1))^2 for few clusters (Korn &
    Graubard 1998). A design effect below 1 counts as 1; where m is 0 or 1 nothing tells it, and it is taken for N / K,
    as if all values of a cluster were one. Clusters of one value each: `share_interval`. `count` is K; one cluster of
    several values has no interval.

    Raises:
        DataError: there are no values, or not as many clusters.
    """
    _check_paired(values, clusters)
    if len(set(clusters)) == len(values):
        return share_interval(math.fsum(values), len(values), confidence=confidence)
    share, stderr, count = _clustered_mean(values, clusters)
    if count == 1:
        return Interval(share, math.nan, math.nan, math.nan, 1)
    from scipy.special import stdtrit

    number = len(values)
    independent = share * (1 - share) / (number - 1)
    effect = max(1.0, stderr**2 / independent) if independent > 0 else number / count
    by_values, by_clusters = (float(stdtrit(each - 1, 0.5 + confidence / 2)) for each in (number, count))
    low, high = _wilson(share, number / effect * (by_values / by_clusters) ** 2, confidence)
    return Interval(share, low, high, stderr, count)


def share_interval(successes: float, count: int, *, confidence: float = 0.95) -> Interval:
    """A share with its Wilson score interval (Wilson 1927), which stays inside [0, 1] and does not close at 0 or 1.

    `successes` may be fractional: with ties counted half the interval is a little too wide, never too narrow.
    `stderr` is the plain sqrt(p (1 - p) / count).

    Raises:
        DataError: `count` is 0, or `successes` is not between 0 and `count`.
    """
    if count < 1 or not 0 <= successes <= count:
        raise DataError(f"a share needs 0 <= successes <= count and count >= 1, not {successes} of {count}")
    share = successes / count
    low, high = _wilson(share, count, confidence)
    return Interval(share, low, high, math.sqrt(share * (1 - share) / count), count)


def win_rate(ours: Sequence[float], theirs: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Share of prompts where `ours` scores above `theirs`, ties counted half, with its Wilson interval.

    Raises:
        DataError: the two are not of one length.
    """
    _check_paired(ours, theirs)
    return share_interval(math.fsum(_wins(ours, theirs)), len(ours), confidence=confidence)


def paired_bootstrap(
    ours: Sequence[float], theirs: Sequence[float], *, seed: int, draws: int = 2000, confidence: float = 0.95
) -> Interval:
    """Mean of ours - theirs on the same prompts, with the percentile interval of `draws` resamples of the prompts.

    Raises:
        DataError: the two are not of one length, or empty.
    """
    import numpy as np

    _check_paired(ours, theirs)
    point = mean_interval([mine - other for mine, other in zip(ours, theirs)])
    if point.count == 1:
        return point  # every resample of one prompt is that prompt: no spread, which is not no error
    differences = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    chosen = np.random.default_rng(seed).integers(len(differences), size=(draws, len(differences)))
    means = differences[chosen].mean(axis=1)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(point.mean, float(low), float(high), float(means.std(ddof=1)), point.count)


def match_samples(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], *, field: str
) -> tuple[list[float], list[float]]:
    """The `field` of two evaluations' samples, averaged per prompt, for the prompts that both have (in our order).

    Prompts are the same where their row number and their text are; samples without a value are left out.
    """
    mine, others = _per_prompt(ours, field), _per_prompt(theirs, field)
    shared = [key for key in mine if key in others]
    return [mine[key] for key in shared], [others[key] for key in shared]


def _clustered_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float, int]:
    """Mean, its standard error over clusters (NaN for one), and the number of clusters; see `clustered_interval`."""
    mean = mean_interval(values).mean
    gaps: dict[Hashable, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters):
        gaps[cluster].append(value - mean)
    count = len(gaps)
    if count == 1:
        return mean, math.nan, 1
    moved = [math.fsum(own) / (len(values) - len(own)) for own in gaps.values()]  # the mean, by leaving a cluster out
    return mean, math.sqrt((count - 1) / count * math.fsum(each * each for each in moved)), count


def _wilson(share: float, count: float, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a share of `count`, which need not be whole."""
    from scipy.special import ndtri

    z = float(ndtri(0.5 + confidence / 2))
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / scale
    # At p = 0 and p = 1 one end is exactly p; rounding must not put it on the wrong side.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _per_prompt(samples: Sequence[Mapping[str, Any]], field: str) -> dict[Hashable, float]:
    values: dict[Hashable, list[float]] = defaultdict(list)
    for sample in samples:
        value = sample.get(field)
        if value is not None and math.isfinite(value):
            values[(sample.get("row"), json.dumps(sample["prompt"], sort_keys=True))].append(float(value))
    return {key: math.fsum(found) / len(found) for key, found in values.items()}


def _wins(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [1.0 if mine > other else 0.5 if mine == other else 0.0 for mine, other in zip(ours, theirs)]


def _check_paired(ours: Sequence[float], theirs: Sequence[Any]) -> None:
    if len(ours) != len(theirs):
        raise DataError(f"paired scores must be of one length: ours has {len(ours)} values, theirs {len(theirs)}")
