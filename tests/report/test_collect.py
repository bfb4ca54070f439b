"""Reading run folders: what is there is typed, what is absent is absent, what is broken is named."""

import json

import pytest

from alignlab.errors import DataError
from alignlab.report.collect import flatten, read_run
from tests.report.fabricated import NUM_PROMPTS, write_policy, write_reward_model, write_run


def test_an_evaluation_brings_the_run_it_is_of_and_its_curves(tmp_path):
    history = [{"step": 1, "train/score": 0.5}]
    record = read_run(write_policy(tmp_path, "ppo", method="ppo", gold=2.0, proxy=1.0, kl=3.0, history=history))
    assert record.task == "evaluate" and not record.is_reward_model
    assert record.trained is not None and record.trained.name == "ppo-a1b2c3d40"
    assert record.history == history
    assert record.metrics["gold_reward"] == 2.0
    assert record.settings["method.loss.beta"] == 0.1
    assert len(record.samples) == NUM_PROMPTS


def test_an_evaluation_whose_training_is_gone_still_reads(tmp_path):
    folder = write_run(
        tmp_path / "lonely-ab12cd34",
        config={},
        task="evaluate",
        parents={"of": ["gone-12345678"]},
        metrics={"test/kl": 1.5},
    )
    record = read_run(folder)
    assert record.trained is None and record.history == [] and record.seed is None
    assert record.metrics == {"kl": 1.5}


def test_a_reward_model_is_told_from_a_policy(tmp_path):
    record = read_run(write_reward_model(tmp_path))
    assert record.is_reward_model
    assert 0.85 < record.metrics["accuracy"] < 1


def test_null_figures_are_absent(tmp_path):
    run = write_run(
        tmp_path / "a-12345678", config={}, task="train", metrics={"test/kl": None, "test/loss": 1, "train/x": 2}
    )
    assert read_run(run).metrics == {"loss": 1.0}


def test_broken_lines_are_named_by_file_and_line(tmp_path):
    run = write_run(tmp_path / "a-12345678", config={}, task="train")
    (run / "metrics.jsonl").write_text('{"step": 1}\n\n{"step": \n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:3: not a JSON object"):
        read_run(run)
    (run / "run.json").write_text("[1]")
    with pytest.raises(DataError, match="a JSON object was expected, not a list"):
        read_run(run)
    (run / "run.json").write_text('{"status":\n nope}')
    with pytest.raises(DataError, match=r"run\.json:2: not JSON"):
        read_run(run)


def test_replies_with_unicode_line_ends_stay_one_sample(tmp_path):
    run = write_run(tmp_path / "a-12345678", config={}, task="evaluate")
    (run / "eval").mkdir()
    sample = {"row": 0, "prompt": "p", "response": "one\u2028two\u0085three"}
    (run / "eval" / "samples.jsonl").write_text(json.dumps(sample, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_run(run).samples == [sample]


def test_flatten_gives_dotted_keys():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}


def test_parents_may_be_names_or_objects_with_a_folder(tmp_path):
    write_run(tmp_path / "ppo-12345678", config={}, task="train", method="ppo")
    for index, parent in enumerate(("ppo-12345678", {"folder": "elsewhere/ppo-12345678", "key": "12345678"})):
        run = write_run(tmp_path / f"eval-{index}", config={}, task="evaluate", parents={"of": [parent]})
        trained = read_run(run).trained
        assert trained is not None and trained.method == "ppo"
