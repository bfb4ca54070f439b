"""A claimed ordering: the paired interval by hand, the three verdicts, and what is refused."""

import csv
import json
import math

import pytest

from alignlab.errors import DataError
from alignlab.report.build import build_report
from alignlab.report.ordering import check_ordering, difference, ordering_blocks, verdict_of
from alignlab.report.summary import summarise
from alignlab.statistics import Interval
from tests.report.fabricated import write_policy


def rows_of(tmp_path, golds, seeds=(0,), proxies=None):
    """A row per (name, gold); golds of all are the mean -1, +1 in turn on 40 prompts."""
    runs = {
        name: [
            write_policy(
                tmp_path, name, method="ppo", gold=gold + seed, proxy=(proxies or {}).get(name, 0.0), kl=1, seed=seed
            )
            for seed in seeds
        ]
        for name, gold in golds.items()
    }
    return summarise(runs, baseline=None), runs


def set_replies(folder, values):
    """Give the first prompts of an evaluation these gold rewards and drop the others."""
    path = folder / "eval" / "samples.jsonl"
    samples = [json.loads(line) for line in path.read_text().splitlines()][: len(values)]
    lines = [json.dumps(sample | {"gold_reward": value}) for sample, value in zip(samples, values, strict=True)]
    path.write_text("\n".join(lines) + "\n")


def test_one_seed_is_compared_prompt_by_prompt(tmp_path):
    _, runs = rows_of(tmp_path, {"ppo": 2.0, "sft": 1.0})
    set_replies(runs["ppo"][0], [10.0, 2.0, 33.0])
    set_replies(runs["sft"][0], [9.0, 0.0, 30.0])
    better, worse = summarise(runs, baseline=None)
    step = difference(better, worse, "gold_reward")
    # differences 1, 2, 3: mean 2, s = 1, t(2, 97.5%) = 4.302653; the spread of the rewards themselves plays no part
    assert step.mean == pytest.approx(2.0) and step.count == 3
    assert step.high - step.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert verdict_of([step]) == "is not decided"


def test_several_seeds_are_compared_seed_by_seed(tmp_path):
    rows, _ = rows_of(tmp_path, {"ppo": 2.0, "sft": 1.0}, seeds=(0, 1, 2))
    step = difference(*rows, "gold_reward")
    assert step.mean == pytest.approx(1.0) and step.count == 3
    assert step.low == pytest.approx(1.0) == step.high, "the seeds' own ups and downs are common to both"


def test_seeds_meet_by_their_number_not_by_their_place(tmp_path):
    (better,), _ = rows_of(tmp_path / "a", {"ppo": 2.0}, seeds=(1, 2))
    (worse,), _ = rows_of(tmp_path / "b", {"sft": 1.0}, seeds=(0, 1, 2))
    step = difference(better, worse, "gold_reward")
    assert step.mean == pytest.approx(1.0) and step.count == 2


def test_a_figure_of_the_whole_evaluation_takes_the_intervals_of_both(tmp_path):
    rows, _ = rows_of(tmp_path, {"ppo": 2.0, "sft": 1.0})
    for row, mean, half in zip(rows, (0.5, 0.3), (0.03, 0.04), strict=True):
        row.values.update(rouge_l=mean, rouge_l_low=mean - half, rouge_l_high=mean + half)
    step = difference(*rows, "rouge_l")
    assert (step.mean, step.low, step.high) == pytest.approx((0.2, 0.15, 0.25))  # hypot(0.03, 0.04) = 0.05


def test_verdicts():
    up, down, open_ = (Interval(0, low, high, 0, 9) for low, high in ((0.1, 1), (-1, -0.1), (-0.1, 1)))
    assert verdict_of([up, up]) == "holds" and verdict_of([up, open_]) == "is not decided"
    assert verdict_of([open_, down]) == "does not hold"
    unknown = Interval(1.0, math.nan, math.nan, math.nan, 1)
    assert verdict_of([unknown]) == "is not decided"


def test_the_report_says_whether_the_claim_holds(tmp_path):
    _, runs = rows_of(tmp_path, {"base": 0.0, "sft": 1.0, "ppo": 2.0})
    said = {"title": "t", "next_commands": [], "baseline": None}
    metrics = build_report(tmp_path / "up", runs, ordering=["ppo", "sft", "base"], ordering_by="gold_reward", **said)
    assert metrics["ordering/holds"] == 1.0
    page = (tmp_path / "up" / "report" / "report.md").read_text()
    assert "ppo > sft > base by gold reward: holds (ppo - sft 1.00 [1.00, 1.00]; sft - base" in page
    with (tmp_path / "up" / "report" / "tables" / "ordering.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["better"], line["worse"], line["verdict"]) for line in lines] == [
        ("ppo", "sft", "holds"),
        ("sft", "base", "holds"),
    ]
    metrics = build_report(tmp_path / "down", runs, ordering=["sft", "ppo"], ordering_by="gold_reward", **said)
    assert metrics["ordering/holds"] == 0.0
    assert "sft > ppo by gold reward: does not hold" in (tmp_path / "down" / "report" / "report.md").read_text()
    assert "ordering/holds" not in build_report(tmp_path / "none", runs, **said)


def test_a_claim_about_nothing_is_refused(tmp_path):
    rows, _ = rows_of(tmp_path, {"ppo": 2.0, "sft": 1.0})
    with pytest.raises(DataError, match="two names or more"):
        check_ordering(rows, ["ppo"], "gold_reward")
    with pytest.raises(DataError, match="dpo names 0 rows of the report; expected one of ppo, sft"):
        check_ordering(rows, ["ppo", "dpo"], "gold_reward")
    with pytest.raises(DataError, match=r"task.ordering_by=rouge_l: ppo has no such figure; it has gold_reward, "):
        check_ordering(rows, ["ppo", "sft"], "rouge_l")
    assert ordering_blocks(rows, [], "gold_reward", tmp_path) == ([], {})
