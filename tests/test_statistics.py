"""Means, shares and win rates against numbers worked by hand or found in printed tables."""

import math
import random

import pytest

from alignlab.errors import DataError
from alignlab.statistics import (
    clustered_interval,
    clustered_share_interval,
    match_samples,
    mean_interval,
    paired_bootstrap,
    share_interval,
    win_rate,
)


def test_mean_interval_of_four_numbers_worked_by_hand():
    # mean 5, s^2 = (9 + 1 + 1 + 9) / 3, t(3, 97.5%) = 3.182446 from a printed table
    interval = mean_interval([2.0, 4.0, 6.0, 8.0])
    stderr = math.sqrt(20 / 3 / 4)
    assert interval.mean == 5.0
    assert interval.stderr == pytest.approx(stderr, rel=1e-12)
    assert interval.high - 5.0 == pytest.approx(3.182446 * stderr, rel=1e-6)
    assert 5.0 - interval.low == pytest.approx(3.182446 * stderr, rel=1e-6)
    assert interval.count == 4


def test_one_value_has_a_mean_but_no_interval():
    interval = mean_interval([3.0])
    assert interval.mean == 3.0
    assert math.isnan(interval.low) and math.isnan(interval.high) and math.isnan(interval.stderr)


def test_no_values_are_an_error_and_not_a_nan():
    with pytest.raises(DataError, match="at least one value"):
        mean_interval([])


def test_the_mean_interval_covers_the_truth_about_95_times_in_100():
    draw = random.Random(0)
    intervals = [mean_interval([draw.gauss(1.0, 2.0) for _ in range(6)]) for _ in range(2000)]
    covered = sum(each.low <= 1.0 <= each.high for each in intervals) / len(intervals)
    assert 0.935 < covered < 0.965  # three standard errors; with 1.96 for t it would be 0.89


def test_wilson_interval_as_newcombe_1998_prints_it():
    # Newcombe 1998, table I, method 3: 81 of 263 -> 0.2553, 0.3662; 0 of 20 -> 0.0000, 0.1611
    interval = share_interval(81, 263)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)
    interval = share_interval(0, 20)
    assert interval.low == 0.0 and round(interval.high, 4) == 0.1611


@pytest.mark.parametrize("count", [1, 3, 10, 1000])
def test_a_share_of_nothing_and_of_all_stays_inside_its_interval(count: int):
    none, every = share_interval(0, count), share_interval(count, count)
    assert none.low == none.mean == 0.0 and 0 < none.high < 1
    assert every.high == every.mean == 1.0 and 0 < every.low < 1


@pytest.mark.parametrize(("successes", "count"), [(1, 0), (3, 2), (-1, 2)])
def test_impossible_shares_are_refused(successes: int, count: int):
    with pytest.raises(DataError):
        share_interval(successes, count)


def test_win_rate_counts_a_tie_as_half_a_win():
    # win, win, tie, loss: 2.5 of 4
    interval = win_rate([3.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0])
    assert interval.mean == 0.625
    assert (interval.low, interval.high) == pytest.approx(share_interval(2.5, 4)[1:3])


def test_win_rates_of_the_two_sides_add_up_to_one():
    draw = random.Random(1)
    ours, theirs = ([draw.randint(0, 3) for _ in range(50)] for _ in range(2))
    mine, other = win_rate(ours, theirs), win_rate(theirs, ours)
    assert mine.mean + other.mean == pytest.approx(1.0)
    assert mine.low == pytest.approx(1 - other.high)


def test_unpaired_scores_are_refused():
    with pytest.raises(DataError, match="ours has 2 values, theirs 1"):
        win_rate([1.0, 2.0], [1.0])


def test_paired_bootstrap_is_seeded_and_close_to_the_t_interval():
    draw = random.Random(2)
    theirs = [draw.gauss(0, 5) for _ in range(200)]
    ours = [score + draw.gauss(1, 1) for score in theirs]  # noisy scores, small paired difference
    interval = paired_bootstrap(ours, theirs, seed=3)
    assert interval == paired_bootstrap(ours, theirs, seed=3)
    assert interval != paired_bootstrap(ours, theirs, seed=4)
    expected = mean_interval([mine - other for mine, other in zip(ours, theirs)])
    assert interval.mean == pytest.approx(expected.mean)
    assert interval.low == pytest.approx(expected.low, abs=0.03)
    assert interval.high == pytest.approx(expected.high, abs=0.03)


def test_the_paired_bootstrap_of_one_prompt_has_no_interval():
    """All resamples of it are alike: the percentiles would be the point itself."""
    interval = paired_bootstrap([3.0], [1.0], seed=0)
    assert interval.mean == 2.0 and interval.count == 1
    assert math.isnan(interval.low) and math.isnan(interval.high) and math.isnan(interval.stderr)


def test_samples_match_by_row_and_prompt_and_average_their_replies():
    ours = [
        {"row": 1, "prompt": "a", "gold_reward": 1.0},
        {"row": 1, "prompt": "a", "gold_reward": 3.0},
        {"row": 2, "prompt": "a", "gold_reward": 5.0},  # the same words in another row: another prompt
        {"row": 3, "prompt": "b", "gold_reward": None},
        {"row": 4, "prompt": "c", "gold_reward": 1.0},
    ]
    theirs = [
        {"row": 4, "prompt": "d", "gold_reward": 2.0},  # the same row of other data
        {"row": 2, "prompt": "a", "gold_reward": 7.0},
        {"row": 1, "prompt": "a", "gold_reward": 4.0},
        {"row": 3, "prompt": "b", "gold_reward": 9.0},
    ]
    assert match_samples(ours, theirs, field="gold_reward") == ([2.0, 5.0], [4.0, 7.0])


def test_clusters_of_one_size_give_the_interval_of_their_means():
    values, clusters = [1.0, 3.0, 4.0, 4.0, 9.0, 3.0], ["a", "a", "b", "b", "c", "c"]
    found, means = clustered_interval(values, clusters), mean_interval([2.0, 4.0, 6.0])
    assert found == pytest.approx(means)


def test_clusters_of_two_sizes_worked_by_hand():
    # mean 3 of four values; 6 without the first cluster, 2 without the other; variance 1 / 2 * (9 + 1)
    found = clustered_interval([1.0, 2.0, 3.0, 6.0], [0, 0, 0, 1])
    assert found.mean == 3.0 and found.count == 2
    assert found.stderr == pytest.approx(math.sqrt(5))
    assert found.high - 3.0 == pytest.approx(12.706205 * math.sqrt(5), rel=1e-6)  # t(1, 97.5%) from a printed table


def test_one_cluster_has_no_interval_and_clusters_must_match():
    assert math.isnan(clustered_interval([1.0, 2.0], [0, 0]).low)
    with pytest.raises(DataError, match="one length"):
        clustered_interval([1.0, 2.0], [0])


def test_a_share_over_two_clusters_worked_by_hand():
    # gaps 1 and -1, variance 2 / 1 * 2 / 16 = 1/4, of independent values 1/4 / 3: effect 3; t(3) and t(1) from a table
    found = clustered_share_interval([1, 1, 0, 0], ["a", "a", "b", "b"])
    n, z = 4 / 3 * (3.182446 / 12.706205) ** 2, 1.959964
    half = z / (1 + z * z / n) * math.sqrt(0.25 / n + z * z / (4 * n * n))
    assert (found.mean, found.stderr, found.count) == (0.5, 0.5, 2)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-5)


def test_a_share_of_values_in_clusters_of_their_own_is_wilsons():
    values = [1.0, 0.0, 1.0, 0.5, 1.0]
    assert clustered_share_interval(values, range(5)) == share_interval(3.5, 5)
    assert clustered_share_interval([1.0], ["a"]) == share_interval(1, 1)


@pytest.mark.parametrize("share", [0.3, 0.0, 1.0])
def test_copies_of_a_value_tell_nothing_new(share: float):
    values = [1.0] * round(200 * share) + [0.0] * round(200 * (1 - share))
    copied = clustered_share_interval(values * 5, [*range(200)] * 5)
    once = share_interval(sum(values), 200)
    assert copied.mean == once.mean and copied.count == 200
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=0.001)


def test_clusters_that_are_less_alike_than_chance_are_not_counted_as_more_values():
    """In each of 50 clusters one of two is right: the variance over clusters is 0, which is not certainty."""
    found, pairs = clustered_share_interval([1, 0] * 50, [i // 2 for i in range(100)]), share_interval(50, 100)
    assert found.low <= pairs.low < pairs.high <= found.high
    assert found.high - found.low < 1.05 * (pairs.high - pairs.low)


def test_a_clustered_share_covers_the_truth():
    """1000 samples of 30 clusters of 5 that are alike (a correlation of 1/3): 95% of the intervals hold the share."""
    import numpy as np

    random = np.random.default_rng(0)
    clusters, covered, naive = np.repeat(np.arange(30), 5).tolist(), 0, 0
    for _ in range(1000):
        chances = np.repeat(random.beta(1.4, 0.6, size=30), 5)  # mean 0.7, correlation 1 / (1 + 1.4 + 0.6)
        values = (random.random(150) < chances).astype(float).tolist()
        found, wilson = clustered_share_interval(values, clusters), share_interval(sum(values), 150)
        covered += found.low <= 0.7 <= found.high
        naive += wilson.low <= 0.7 <= wilson.high
    assert 930 <= covered <= 970 and naive < 880


def test_a_share_covers_the_truth_where_one_cluster_is_as_large_as_all_others_together():
    """A cluster that draws the mean to itself looks nearer to it than it is."""
    import numpy as np

    random = np.random.default_rng(0)
    of, covered = np.repeat(np.arange(101), [1] * 100 + [100]), 0
    for _ in range(500):
        chances = random.beta(1.6, 0.4, size=101)[of]  # mean 0.8, correlation 1 / 3
        found = clustered_share_interval((random.random(200) < chances).astype(float).tolist(), of.tolist())
        covered += found.low <= 0.8 <= found.high
    assert covered >= 460


def test_one_cluster_tells_no_share():
    assert math.isnan(clustered_share_interval([1, 0, 1], [7, 7, 7]).low)
    with pytest.raises(DataError, match="one length"):
        clustered_share_interval([1.0, 0.0], [0])
