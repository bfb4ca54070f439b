"""Win rates of two sets of replies, worked by hand."""

import json
import math

import pytest
import torch

from alignlab.errors import DataError
from alignlab.evaluate.comparison import compare
from alignlab.evaluate.saving import save_comparison
from alignlab.rollout.judges.score import ScoreJudge
from alignlab.rollout.judges.verdict import Verdict
from alignlab.statistics import share_interval


def count_vowels(prompts, responses):
    return torch.tensor([float(sum(letter in "aeiou" for letter in response)) for response in responses])


def samples(*replies, gold=True):
    """Replies to prompts 0, 1, ...; a list holds several replies to one prompt."""
    found = []
    for row, each in enumerate(replies):
        for reply in [each] if isinstance(each, str) else each:
            score = float(count_vowels([], [reply])[0]) if gold else None
            found.append({"row": row, "prompt": f"prompt {row}", "response": reply, "gold_reward": score})
    return found


def test_figures_by_hand():
    ours, theirs = samples("aa", "x", "e", "bb", "oo"), samples("a", "ax", "exx", "b", "ooo")
    result = compare(ours, theirs, judge=ScoreJudge(count_vowels))
    metrics = result.metrics
    # won, lost, tied, tied, lost
    assert [verdict["verdict"] for verdict in result.verdicts] == [1.0, 0.0, 0.5, 0.5, 0.0]
    assert metrics["win_rate"] == pytest.approx(2 / 5) and metrics["tie_rate"] == pytest.approx(2 / 5)
    assert metrics["win_rate_low"] == pytest.approx(share_interval(2, 5).low)
    deviations = [0.6, -0.4, 0.1, 0.1, -0.4]
    assert metrics["win_rate_stderr"] == pytest.approx(math.sqrt(sum(d * d for d in deviations) / 4 / 5))
    assert metrics["length_difference"] == pytest.approx((1 - 1 - 2 + 1 - 1) / 5)
    assert metrics["gold_gain"] == pytest.approx((1 - 1 + 0 + 0 - 1) / 5)
    assert metrics["gold_gain_low"] <= metrics["gold_gain"] <= metrics["gold_gain_high"]
    assert metrics["num_compared"] == 5 and metrics["num_unjudged"] == 0
    assert 0 < metrics["win_rate_length_controlled"] < 1
    told = {"row": 1, "prompt": "prompt 1", "response": "x", "other": "ax", "verdict": 0.0}
    assert result.verdicts[1] == told | {"why": {"scores": [0.0, 1.0]}}


def test_replies_to_one_prompt_are_averaged_and_meet_theirs_in_turn():
    ours, theirs = samples(["a", "aa", "aaa"], "b"), samples(["e", "oi"], "u")
    result = compare(ours, theirs, judge=ScoreJudge(count_vowels))
    assert [verdict["other"] for verdict in result.verdicts] == ["e", "oi", "e", "u"]
    assert [verdict["verdict"] for verdict in result.verdicts] == [0.5, 0.5, 1.0, 0.0]
    assert result.metrics["win_rate"] == pytest.approx((2 / 3 + 0) / 2) and result.metrics["num_compared"] == 2


def test_only_prompts_that_both_have_count():
    theirs = [samples("x", "aa")[1], {**samples("a")[0], "prompt": "another text"}]
    result = compare(samples("aaa", "a"), theirs, judge=ScoreJudge(count_vowels))
    assert result.metrics["num_compared"] == 1 and result.metrics["win_rate"] == 0.0
    with pytest.raises(DataError, match="share no prompt"):
        compare(samples("a"), theirs[1:], judge=ScoreJudge(count_vowels))


def test_a_single_prompt_has_no_interval_of_its_gold_gain():
    metrics = compare(samples("aa"), samples("b"), judge=ScoreJudge(count_vowels)).metrics
    assert metrics["gold_gain"] == 2.0 and "gold_gain_low" not in metrics and "gold_gain_high" not in metrics


def test_the_same_words_in_two_rows_are_two_prompts():
    ours, theirs = ([{**each, "prompt": "p"} for each in samples(*replies)] for replies in (("aa", "x"), ("a", "e")))
    result = compare(ours, theirs, judge=ScoreJudge(count_vowels))
    assert result.metrics["num_compared"] == 2 and result.metrics["length_difference"] == pytest.approx((1 + 0) / 2)
    assert [verdict["other"] for verdict in result.verdicts] == ["a", "e"]


class Unsure:
    """Cannot tell anything of an x, nor decide about a t."""

    name = "unsure"

    def compare(self, prompts, first, second):
        values = {"x": None, "t": 0.5}
        return [Verdict(values.get(reply, 1.0), {"answers": [reply]}) for reply in first]

    def figures(self, verdicts):
        return {"judge_unparsable": sum(verdict.value is None for verdict in verdicts) / len(verdicts)}


def test_pairs_without_a_verdict_are_counted_and_count_for_nobody():
    ours, theirs = samples("x", "long", ["x", "y"], gold=False), samples("a", "b", "c", gold=False)
    result = compare(ours, theirs, judge=Unsure())
    assert result.metrics["num_unjudged"] == 2 and result.metrics["num_compared"] == 2
    assert result.metrics["win_rate"] == 1.0 and result.metrics["judge_unparsable"] == pytest.approx(2 / 4)
    assert result.metrics["length_difference"] == pytest.approx((3 + 0) / 2)
    assert [verdict["verdict"] for verdict in result.verdicts] == [None, 1.0, None, 1.0]
    assert "gold_gain" not in result.metrics
    ties = compare(samples("x", "t", "y", gold=False), samples("a", "b", "c", gold=False), judge=Unsure()).metrics
    assert ties["tie_rate"] == 1 / 2 and ties["win_rate"] == 0.75  # of the two pairs with a verdict
    with pytest.raises(DataError, match="not one of 1 pairs could be judged"):
        compare(samples("x"), samples("a"), judge=Unsure())


def test_a_dialogue_reaches_the_judge_as_it_stands_in_the_data():
    seen = []

    def spy(prompts, responses):
        seen.extend(prompts)
        return torch.zeros(len(responses))

    turns = [{"role": "user", "content": "Hi"}]
    sample = {"row": 0, "prompt": turns, "response": "a"}
    compare([sample], [dict(sample)], judge=ScoreJudge(spy))
    assert seen == [tuple(turns), tuple(turns)]


def test_the_files(tmp_path):
    result = compare(samples("aa", "x"), samples("a", "e"), judge=ScoreJudge(count_vowels))
    path = save_comparison(tmp_path, result, against="dataset", judge="vowels")
    content = json.loads(path.read_text())
    assert content["against"] == "dataset" and content["judge"] == "vowels" and content["kind"] == "comparison"
    assert content["metrics"]["win_rate"] == 0.5
    lines = [json.loads(line) for line in (tmp_path / "eval" / "verdicts.jsonl").read_text().splitlines()]
    assert lines == result.verdicts
