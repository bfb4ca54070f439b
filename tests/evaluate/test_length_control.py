"""The length-controlled win rate against closed forms and a plain search over the likelihood."""

import csv
import gzip
import json
import math
from collections import defaultdict

import numpy as np
import pytest
from scipy.optimize import minimize

from alignlab.errors import DataError
from alignlab.evaluate.length_control import length_controlled_win_rate
from alignlab.statistics import mean_interval, share_interval


def logit(share):
    return math.log(share / (1 - share))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_two_lengths_are_a_model_that_fits_exactly():
    """d = +c: 9 of 10 won, d = -c: 2 of 10. theta +- phi t are the two logits, so theta is their mean."""
    wins = [1.0] * 9 + [0.0] + [1.0] * 2 + [0.0] * 8
    found = length_controlled_win_rate(wins, [30] * 10 + [-30] * 10, prior_precision=0.0)
    assert found.mean == pytest.approx(sigmoid((logit(0.9) + logit(0.2)) / 2), abs=1e-8)
    # each logit has variance 1 / (n p (1 - p)); theta is the mean of two independent ones; t(18) from a printed table
    error = math.sqrt(1 / (10 * 0.09) + 1 / (10 * 0.16)) / 2 * math.sqrt(20 / 18)
    assert found.low == pytest.approx(sigmoid(logit(found.mean) - 2.100922 * error), abs=1e-6)
    assert found.high == pytest.approx(sigmoid(logit(found.mean) + 2.100922 * error), abs=1e-6)
    assert found.stderr == pytest.approx(found.mean * (1 - found.mean) * error, rel=1e-6)
    assert found.count == 20


def test_a_taste_for_length_is_taken_out_and_the_wins_of_the_longer_side_with_it():
    generator = np.random.default_rng(0)
    gaps = generator.normal(80, 100, size=4000)
    chance = 1 / (1 + np.exp(-(-0.5 + 2 * np.tanh(gaps / gaps.std(ddof=1)))))
    wins = (generator.random(4000) < chance).astype(float)
    found = length_controlled_win_rate(wins.tolist(), gaps.tolist())
    assert wins.mean() > 0.55
    assert found.low < sigmoid(-0.5) < found.high and found.mean == pytest.approx(sigmoid(-0.5), abs=0.03)


def test_the_two_sides_add_up_to_one_and_ties_are_half():
    wins, gaps = [1.0, 0.5, 0.0, 1.0, 0.25, 0.5], [10, -5, -20, 3, 8, 0]
    ours = length_controlled_win_rate(wins, gaps)
    theirs = length_controlled_win_rate([1 - each for each in wins], [-each for each in gaps])
    assert ours.mean + theirs.mean == pytest.approx(1, abs=1e-7) and ours.low + theirs.high == pytest.approx(
        1, abs=1e-7
    )
    twice = [half for each in wins for half in (each, each)]
    again = length_controlled_win_rate(twice, [gap for gap in gaps for _ in range(2)], prior_precision=0.0)
    # the same rows twice: the same fit, but for s, which divides by n - 1
    assert again.mean == pytest.approx(length_controlled_win_rate(wins, gaps, prior_precision=0.0).mean, abs=0.01)
    assert again.stderr < ours.stderr


def test_where_lengths_are_equal_it_is_the_win_rate():
    found = length_controlled_win_rate([1, 1, 0, 0.5], [0, 0, 0, 0])
    assert found.mean == pytest.approx(2.5 / 4, abs=1e-8)
    # the standard error of a mean, with the unbiased variance
    assert found.stderr == pytest.approx(mean_interval([1, 1, 0, 0.5]).stderr, rel=1e-6)


def test_as_many_prompts_as_parameters_have_no_interval():
    found = length_controlled_win_rate([1, 0], [3, 5])
    assert 0 < found.mean < 1 and math.isnan(found.low) and math.isnan(found.stderr)
    assert math.isfinite(length_controlled_win_rate([1, 0], [0, 0]).low)
    assert math.isfinite(length_controlled_win_rate([1, 0, 1], [3, 5, 1]).low)


def test_where_length_alone_tells_it_stays_finite():
    found = length_controlled_win_rate([1, 1, 1, 0, 0, 0], [9, 5, 2, -3, -4, -8])
    assert 0.1 < found.mean < 0.9 and 0 <= found.low <= found.mean <= found.high <= 1


def test_what_cannot_be_told_is_not_told():
    assert math.isnan(length_controlled_win_rate([1, 0, 1], [7, 7, 7]).mean)
    assert math.isnan(length_controlled_win_rate([0.5], [7]).mean)
    everything = length_controlled_win_rate([1, 1, 1], [7, 3, 1])
    assert everything.mean == 1 and 0.3 < everything.low < 1 and everything.high == 1
    for wins, gaps in (([], []), ([1.0], [1, 2]), ([1.5], [1])):
        with pytest.raises(DataError):
            length_controlled_win_rate(wins, gaps)


@pytest.mark.parametrize(("wins", "gaps"), [([0.5] * 10, [1, 2, 3, -4, 5, 6, -7, 8, 9, 1]), ([0.75], [0])])
def test_one_verdict_for_all_leaves_no_residual_but_is_not_certain(wins, gaps):
    """The sandwich error would be 0, the interval a point: ten ties, or one prompt, would tell everything."""
    found = length_controlled_win_rate(wins, gaps)
    assert found == share_interval(sum(wins), len(wins))
    assert found.high - found.low > 0.5


def test_gpt4s_verdicts_on_alpacaeval_against_a_plain_search(real_data):
    """GPT-4 likes length: models with longer answers than text-davinci-003 lose by the control, shorter ones gain."""
    folder = real_data / "pref-alpacaeval-gpt4"
    with gzip.open(folder / "train.jsonl.gz", "rt") as train, (folder / "test.jsonl").open() as test:
        rows = [json.loads(line) for line in (*train, *test)]
    found = defaultdict(list)
    for row in rows:
        won = row["rejected_model"] == "text_davinci_003"
        sign = 1 if won else -1
        gap = sign * (len(row["chosen"]) - len(row["rejected"]))
        found[row["chosen_model"] if won else row["rejected_model"]].append((float(won), gap))
    assert len(found) == 6
    for model, pairs in found.items():
        wins, gaps = zip(*pairs)
        y, d = np.array(wins), np.array(gaps)
        x = np.tanh(d / d.std(ddof=1))

        def loss(weights, x=x, y=y):
            z = weights[0] + weights[1] * x
            return -np.sum(y * -np.log1p(np.exp(-z)) + (1 - y) * -np.log1p(np.exp(z))) + 0.005 * weights[1] ** 2

        theta, phi = minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-10}).x
        ours = length_controlled_win_rate(wins, gaps)
        assert ours.mean == pytest.approx(sigmoid(theta), abs=1e-5)
        assert phi > 0, model
        if abs(d.mean()) > 0.3 * d.std():
            assert (ours.mean - y.mean()) * d.mean() < 0, model


def test_mean_and_error_of_published_win_rates(real_data):
    """AlpacaEval's standard error is that of the mean over prompts, as ours (Wilson has none)."""
    rows = list(csv.DictReader((real_data / "reference-results" / "alpacaeval1_leaderboard.csv").open()))
    checked = 0
    for row in rows:
        wins, losses, draws = (int(float(row[name])) for name in ("n_wins", "n_wins_base", "n_draws"))
        if wins + losses + draws != int(float(row["n_total"])):
            continue
        interval = mean_interval([100.0] * wins + [0.0] * losses + [50.0] * draws)
        assert interval.mean == pytest.approx(float(row["win_rate"]), abs=0.01)
        assert interval.stderr == pytest.approx(float(row["standard_error"]), abs=0.01)
        checked += 1
    assert checked > 30
