"""Evaluations on disk are strict JSON and come back as they were."""

import json
import math

import pytest

from alignlab.errors import DataError
from alignlab.evaluate.policy import PolicyEvaluation
from alignlab.evaluate.reward import summarise_scores
from alignlab.evaluate.saving import (
    load_policy_evaluation,
    load_reward_evaluation,
    load_samples,
    save_evaluation,
)

SAMPLE = {
    "row": 0,
    "prompt": "hi\u2028there",
    "response": " caf\u00e9\nand \u2028 more",
    "gold_reward": 1.5,
    "kl": None,
}


def refuse(word: str):
    raise AssertionError(f"{word} is not JSON")


def test_a_policy_evaluation_comes_back_with_its_samples(tmp_path):
    messages = [{"role": "user", "content": "hello"}]
    samples = [SAMPLE, SAMPLE | {"row": 1, "prompt": messages}]
    evaluation = PolicyEvaluation({"kl": 1.25, "eos_rate": 0.5}, samples, {"temperature": 1.0, "seed": 3})
    assert save_evaluation(tmp_path, "policy", evaluation) == tmp_path / "eval" / "policy.json"
    assert load_policy_evaluation(tmp_path) == evaluation
    assert load_samples(tmp_path) == samples
    assert {path.name for path in (tmp_path / "eval").iterdir()} == {"policy.json", "samples.jsonl"}


def test_what_is_not_a_number_is_written_as_null(tmp_path):
    metrics = {"gold_reward": math.nan, "kl": math.inf, "eos_rate": 1.0}
    path = save_evaluation(tmp_path, "policy", PolicyEvaluation(metrics, [SAMPLE | {"kl": math.nan}], {}))
    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["metrics"] == {"gold_reward": None, "kl": None, "eos_rate": 1.0}
    lines = (tmp_path / "eval" / "samples.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert [json.loads(line, parse_constant=refuse)["kl"] for line in lines] == [None]
    assert math.isnan(load_policy_evaluation(tmp_path).metrics["gold_reward"])


def test_a_reward_evaluation_comes_back_with_its_bins(tmp_path):
    evaluation = summarise_scores([2.0, 1.0, 0.5], [0.0, 1.0, 1.0], num_bins=3)
    save_evaluation(tmp_path, "test", evaluation)
    assert load_reward_evaluation(tmp_path, name="test") == evaluation


def test_missing_or_broken_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"samples\.jsonl: no samples here"):
        load_samples(tmp_path)
    save_evaluation(tmp_path, "reward", summarise_scores([1.0, 2.0], [0.0, 0.0]))
    with pytest.raises(DataError, match="'reward', where 'policy' was expected"):
        load_policy_evaluation(tmp_path, name="reward")
    (tmp_path / "eval" / "samples.jsonl").write_text('{"row": 0}\n{"row": \n')
    with pytest.raises(DataError, match=r"samples\.jsonl:2: not a JSON object"):
        load_samples(tmp_path)
