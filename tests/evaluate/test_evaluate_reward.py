"""Reward-model evaluation: figures of scores chosen by hand, and of a tiny model through batches."""

import math

import pytest
import torch

from alignlab.batches import IGNORE, PreferenceBatch, Sequences
from alignlab.errors import ConfigError, DataError, NonFiniteError
from alignlab.evaluate.reward import calibration_bins, evaluate_reward_model, summarise_scores
from alignlab.models.reward_model import RewardModel
from tests.tiny_models import tiny_classifier, tiny_tokenizer


def pair_batch(rows, seed):
    """Random pairs of 7 tokens each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 40, (2 * len(rows), 7), generator=generator)
    labels = torch.where(torch.arange(7) >= 3, ids, IGNORE)
    return PreferenceBatch(Sequences(ids, torch.ones_like(ids, dtype=torch.bool), labels), torch.tensor(rows))


def make_model():
    return RewardModel(tiny_classifier("llama"), tokenizer=tiny_tokenizer())


def test_accuracy_margin_and_loss_of_four_pairs_worked_by_hand():
    # margins 2, 0, -1, 3: right, tie, wrong, right
    metrics = summarise_scores([2.0, 1.0, 0.0, 4.0], [0.0, 1.0, 1.0, 1.0]).metrics
    assert metrics["accuracy"] == 2.5 / 4
    assert metrics["margin"] == 1.0
    losses = [math.log(1 + math.exp(-margin)) for margin in (2, 0, -1, 3)]
    assert metrics["loss"] == pytest.approx(sum(losses) / 4)
    assert metrics["chosen_score"] == 1.75 and metrics["rejected_score"] == 0.75
    assert metrics["num_pairs"] == 4


def test_equal_scores_have_loss_ln_2_and_chance_accuracy():
    metrics = summarise_scores([1.0, 5.0], [1.0, 5.0]).metrics
    assert metrics["loss"] == pytest.approx(math.log(2))
    assert metrics["accuracy"] == 0.5


def test_calibration_error_of_two_bins_worked_by_hand():
    # |margin| = ln 1.5 -> confidence 0.6, right once of two; |margin| = ln 9 -> confidence 0.9, right twice of two
    low, high = math.log(1.5), math.log(9)
    margins = [low, -low, high, high]
    first, second = calibration_bins(margins, num_bins=2)
    assert (first.low, first.high, first.count, first.accuracy) == (0.5, 0.75, 2, 0.5)
    assert first.confidence == pytest.approx(0.6)
    assert (second.count, second.accuracy) == (2, 1.0)
    assert second.confidence == pytest.approx(0.9)
    metrics = summarise_scores(margins, [0.0] * 4, num_bins=2).metrics
    assert metrics["calibration_error"] == pytest.approx((2 * 0.1 + 2 * 0.1) / 4)
    # right three times of four in the second: a bin counts by its pairs
    metrics = summarise_scores([*margins, high, -high], [0.0] * 6, num_bins=2).metrics
    assert metrics["calibration_error"] == pytest.approx((2 * 0.1 + 4 * 0.15) / 6)


def test_extreme_margins_fall_into_the_last_bin_and_stay_finite():
    bins = calibration_bins([800.0, -800.0], num_bins=4)
    assert [each.count for each in bins] == [0, 0, 0, 2]
    assert bins[0].accuracy is None and bins[3].accuracy == 0.5
    assert math.isfinite(summarise_scores([-800.0], [0.0]).metrics["loss"])


def test_a_model_that_knows_the_probabilities_is_calibrated():
    generator = torch.Generator().manual_seed(0)
    margins = torch.randn(20_000, generator=generator).double() * 2
    wins = torch.rand(20_000, generator=generator).double() < margins.sigmoid()
    signed = torch.where(wins, margins, -margins).tolist()
    assert summarise_scores(signed, [0.0] * len(signed)).metrics["calibration_error"] < 0.01


def test_batches_of_pairs_give_the_scores_of_their_sequences():
    model = make_model()
    model.train()
    pairs = [pair_batch([0, 1, 2], 0), pair_batch([3], 1)]
    evaluation = evaluate_reward_model(model, pairs, num_bins=5)
    expected = []
    with torch.no_grad():
        model.eval()
        for batch in pairs:
            for pair in range(len(batch.rows)):
                good, bad = (model(batch.sequences.take(slice(i, i + 1))) for i in (pair, pair + len(batch.rows)))
                expected.append(float(good - bad))
    assert evaluation.margins == pytest.approx(expected, abs=1e-4)
    assert evaluation.metrics["accuracy"] == sum(margin > 0 for margin in expected) / 4
    assert len(evaluation.calibration) == 5


def test_the_mode_is_restored():
    model = make_model().train()
    evaluate_reward_model(model, [pair_batch([0], 0)])
    assert model.training


def test_no_pairs_and_no_bins_are_errors():
    model = make_model()
    with pytest.raises(DataError, match="no pairs"):
        evaluate_reward_model(model, [])
    with pytest.raises(ConfigError, match="num_bins=0"):
        evaluate_reward_model(model, [pair_batch([0], 0)], num_bins=0)


def test_a_score_that_is_no_number_is_not_counted_as_wrong():
    with pytest.raises(NonFiniteError, match="not a number"):
        summarise_scores([float("nan"), 1.0], [0.0, 0.0])


def test_the_spread_of_scores_is_the_unbiased_one_over_both_replies():
    # 1, 3 and 0, 4: mean 2, squares 1 + 1 + 4 + 4 over 3
    assert summarise_scores([1.0, 3.0], [0.0, 4.0]).metrics["score_std"] == pytest.approx(math.sqrt(10 / 3))
