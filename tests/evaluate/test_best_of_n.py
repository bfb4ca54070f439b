"""Best of n: by hand, against every subset and every draw, exactly in a listed world, and on published figures."""

import csv
import gzip
import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from alignlab.errors import ConfigError, DataError
from alignlab.evaluate.best_of_n import (
    ExactBest,
    best_of_n,
    exact_best_of_n,
    exact_figures_of_best,
    expected_best,
    findings,
    kl_bound,
    sizes,
)
from alignlab.statistics import mean_interval
from alignlab.worlds.exact import Automaton, Bandit, ExactWorld


def test_three_replies_by_hand():
    """The best of the three pairs are worth 20, 60 and 60."""
    assert expected_best([1.0, 2.0, 3.0], [10.0, 20.0, 60.0], 2) == pytest.approx(140 / 3)


@pytest.mark.parametrize("n", [1, 2])
def test_replies_that_tie_share(n: int):
    assert expected_best([1.0, 1.0], [0.0, 4.0], n) == 2.0


@pytest.mark.parametrize("n", range(1, 8))
def test_the_estimate_is_the_mean_over_all_subsets(n: int):
    scores, values = [0.0, 2.0, 1.0, 2.0, -1.0, 1.0, 2.0], [5.0, 1.0, 7.0, -3.0, 2.0, 11.0, 4.0]
    found = []
    for subset in itertools.combinations(range(7), n):
        best = max(scores[i] for i in subset)
        tied = [values[i] for i in subset if scores[i] == best]
        found.append(sum(tied) / len(tied))
    assert expected_best(scores, values, n) == pytest.approx(sum(found) / len(found), abs=1e-12)


def test_very_many_replies_do_not_overflow():
    """The best of 1000 of 2000 different replies: its rank is 1000/1001 * 2001 on average."""
    ranks = [float(rank) for rank in range(1, 2001)]
    assert expected_best(ranks, ranks, 1000) == pytest.approx(1000 / 1001 * 2001)


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(DataError, match="2 replies"):
        expected_best([1.0, 2.0], [1.0, 2.0], 3)
    with pytest.raises(DataError, match="each reply needs both"):
        expected_best([1.0, 2.0], [1.0], 1)
    with pytest.raises(DataError, match="no prompts"):
        best_of_n([])
    with pytest.raises(ConfigError, match="at least one"):
        exact_best_of_n(torch.zeros(1), torch.zeros(1), 0)


def test_sizes_double_and_end_with_all():
    assert sizes(1) == [1] and sizes(8) == [1, 2, 4, 8] and sizes(6) == [1, 2, 4, 6]


def test_two_arms_by_hand():
    """Probabilities 3/4 and 1/4, rewards 0 and 1: the best of two is the second arm unless both draws are the first."""
    best = exact_best_of_n(torch.tensor([0.75, 0.25]).log(), torch.tensor([0.0, 1.0]), 2).exp()
    assert best.tolist() == pytest.approx([9 / 16, 7 / 16])


SCORES = torch.tensor([0.0, 1.0, 1.0, 2.0])
START = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_exact_distribution_is_that_of_all_draws(n: int):
    """Of equals the one drawn first is kept, as `Selection` does."""
    expected = torch.zeros(4, dtype=torch.float64)
    for draws in itertools.product(range(4), repeat=n):
        best = max(draws, key=lambda y: SCORES[y].item())  # the first of equals
        expected[best] += math.prod(START[y].item() for y in draws)
    assert exact_best_of_n(START.log(), SCORES, n).exp().tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize(("drawn", "n"), [(3, 2), (4, 2), (4, 3)])
def test_the_estimate_is_unbiased(drawn: int, n: int):
    """Its expectation over every draw of `drawn` replies is the exact gold reward of the best of n."""
    gold = [3.0, -1.0, 4.0, 1.5]
    estimates = []
    for draws in itertools.product(range(4), repeat=drawn):
        chance = math.prod(START[y].item() for y in draws)
        estimates.append(chance * expected_best([SCORES[y].item() for y in draws], [gold[y] for y in draws], n))
    exact = exact_best_of_n(START.log(), SCORES, n).exp() @ torch.tensor(gold, dtype=torch.float64)
    assert math.fsum(estimates) == pytest.approx(exact.item(), abs=1e-12)


def test_the_kl_is_bounded_and_the_bound_is_met_by_many_equal_replies():
    """Beirami et al. 2024: a bound, not the value; a world with ties and heavy replies stays below it."""
    world = ExactWorld(3, 3, Automaton(3), 0.5)
    figures = exact_figures_of_best(world, world.ref_logprobs, world.rewards, 64, gold=False)
    assert figures[1].kl == pytest.approx(0, abs=1e-12) and kl_bound(1) == 0
    assert all(figures[n].kl < kl_bound(n) for n in (2, 4, 8, 16, 32, 64))
    assert figures[64].kl < 0.8 * kl_bound(64)
    many = 20_000
    fine = exact_best_of_n(torch.full((many,), -math.log(many), dtype=torch.float64), torch.arange(many), 8)
    assert (fine.exp() * (fine + math.log(many))).sum().item() == pytest.approx(kl_bound(8), abs=1e-4)


def test_exact_figures_of_several_prompts_are_means():
    rewards = [[0.0, 1.0], [4.0, 0.0]]
    world = ExactWorld(2, 1, lambda tokens, prompt: rewards[prompt][tokens[0]], 1.0, num_prompts=2)
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    start = torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=torch.float64).log()
    best = exact_figures_of_best(world, start, scores, 2, gold=True)[2]
    assert best.score == pytest.approx((7 / 16 + 3 / 4) / 2) and best.gold == pytest.approx((7 / 16 + 3) / 2)
    one = ExactWorld(2, 1, Bandit([0.0, 1.0]), 1.0)
    assert exact_figures_of_best(one, start[0], scores[0], 2, gold=False)[2].gold is None


def test_intervals_are_over_prompts_and_the_table_has_a_row_for_each_n():
    scores = [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 8.0]]
    levels = best_of_n(scores, [[-s for s in own] for own in scores])
    assert [level.n for level in levels] == [1, 2, 4]
    assert levels[1].score == mean_interval([expected_best(own, own, 2) for own in scores])
    assert levels[2].gold is not None and levels[2].gold.mean == -6.0
    found = findings(levels, num_prompts=2)
    rows = found.tables["best_of_n"].rows
    assert [row["n"] for row in rows] == [1, 2, 4] and rows[2]["KL bound"] == math.log(4) - 0.75
    assert found.metrics["best_of_4/score"] == 6.0 and found.metrics["best_of_4/gold"] == -6.0
    assert found.curves["best_of_n"].lines["score"][2] == (kl_bound(4), 6.0)
    assert found.notes == [
        "Best of 4 scores 6.000, +3.750 over one reply, at most 0.64 nats away.",
        "Its gold reward is -6.000, -3.750 over one reply.",
    ]


def test_of_prompts_with_different_numbers_of_replies_the_least_is_the_most_that_is_estimated():
    levels = best_of_n([[1.0, 2.0, 3.0, 4.0], [0.0, 8.0]])
    assert [level.n for level in levels] == [1, 2]
    assert levels[1].score.mean == pytest.approx(((2 + 2 * 3 + 3 * 4) / 6 + 8) / 2)  # of six pairs, and of one


def test_the_exact_curve_stands_at_the_exact_kl():
    exact = {1: ExactBest(1.5, None, 0.0), 2: ExactBest(1.9, None, 0.15)}
    found = findings(best_of_n([[1.0, 2.0], [1.0, 2.0]], exact=exact), num_prompts=2)
    assert found.curves["best_of_n"].lines["exact score at exact KL"] == [(0.0, 1.5), (0.15, 1.9)]
    assert found.metrics["best_of_2/exact_score"] == 1.9 and found.metrics["best_of_2/exact_kl"] == 0.15


def test_a_single_prompt_has_no_interval():
    [row, *_] = findings(best_of_n([[1.0, 2.0]]), num_prompts=1).tables["best_of_n"].rows
    assert row["score low"] == "" and row["score"] == 1.5


def test_published_win_rates_of_best_of_11_by_length(real_data: Path):
    """Reply i of 16 is the i-th shortest of its corpus; published: the win rate of each i over all 805 prompts.

    With the rank as score the estimate is linear in the win rates, so the published ones give the figure of all 805
    prompts; ours is of the 180 that are here, whose interval must hold it. (Wins of replies 11 to 15 are not here.)
    """
    with gzip.open(real_data / "bestofn-tulu2" / "test.jsonl.gz", "rt") as file:
        wins = [json.loads(line)["win_vs_reference"][:11] for line in file]
    with (real_data / "reference-results" / "rewardbench_bon_tulu2_by_length_rank.csv").open() as file:
        published = [float(row["win_rate"]) / 100 for row in csv.DictReader(file)][:11]
    ranks = [float(rank) for rank in range(11)]
    levels = best_of_n([ranks] * len(wins), wins)
    for level in levels:
        assert level.gold is not None
        assert level.gold.low < expected_best(ranks, published, level.n) < level.gold.high, level
    assert levels[-1].n == 11 and expected_best(ranks, published, 11) == pytest.approx(0.35455, abs=1e-5)


def test_real_picks_of_a_reward_model(real_data: Path):
    """Scores that are 1 for the pick and tie elsewhere: best of all is the win rate of the picks, best of one the mean.

    Only picks among the first 11 of 16 have a judged win here, and these are the shorter replies: not the published
    49.1% of all picks (the longer win more often), but above a reply at random.
    """
    with gzip.open(real_data / "bestofn-tulu2" / "test.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    picks = [(row["picked_by"]["openbmb/UltraRM-13b"], row["win_vs_reference"][:11]) for row in rows]
    judged = [(pick, wins) for pick, wins in picks if pick < 11]
    levels = best_of_n([[float(i == pick) for i in range(11)] for pick, _ in judged], [wins for _, wins in judged])
    one, best = levels[0].gold, levels[-1].gold
    assert one is not None and best is not None and len(judged) == 75
    assert best.mean == pytest.approx(sum(wins[pick] for pick, wins in judged) / 75)
    assert one.mean == pytest.approx(sum(sum(wins) for _, wins in judged) / (75 * 11))
    assert one.mean < best.mean
