"""The tables of phases, of changes over training and of checkpoints, from made-up runs; and the JSON beside a CSV."""

import json

import pytest

from alignlab.report.phases import phase_blocks
from alignlab.report.summary import summarise
from alignlab.report.tables import to_json
from tests.report.fabricated import write_policy, write_run

PARAMETERS = {"total": 1000.0, "trained": 110.0, "adapter": 100.0, "heads": 10.0, "body": 0.0}


def training(runs, name, *, seed=0, seconds=60.0, rss=500, child_rss=0, config=None, history=(), **metrics):
    found = {f"parameters/{kind}": size for kind, size in PARAMETERS.items()} | {"train/steps": 40.0, "tokens": 1e6}
    return write_run(
        runs / f"{name}-abc123{seed}",
        config={"seed": seed} | (config or {}),
        history=list(history),
        task="train",
        method="ppo",
        seed=seed,
        wall_seconds=seconds,
        peak_memory_mb={"rss": rss, "child_rss": child_rss},
        metrics=found | metrics,
    )


def table(tmp_path, name):
    return json.loads((tmp_path / "tables" / f"{name}.json").read_text())


def test_phases_say_time_weights_and_memory(tmp_path):
    runs = {"ppo": [training(tmp_path / "runs", "ppo", seed=s, seconds=60.0 + 20 * s, rss=500 + s) for s in (0, 1)]}
    phase_blocks(summarise(runs, baseline=None), tmp_path)
    [line] = table(tmp_path, "phases")
    assert line["time (s)"] == 70 and line["peak memory (MB)"] == 500.5 and "peak GPU memory (MB)" not in line
    assert (line["weights"], line["trained"], line["in adapters"], line["in heads"]) == (1000, 110, 100, 10)
    assert (line["phase"], line["method"], line["steps"], line["tokens"]) == ("ppo", "ppo", 40, 1000000)


def test_peak_memory_is_that_of_the_larger_process(tmp_path):
    runs = {"dp": [training(tmp_path / "runs", "dp", rss=500, child_rss=900)]}
    phase_blocks(summarise(runs, baseline=None), tmp_path)
    assert table(tmp_path, "phases")[0]["peak memory (MB)"] == 900


def test_an_evaluation_shows_its_training_and_two_of_one_training_show_it_once(tmp_path):
    first, second = (
        write_policy(tmp_path / "runs", "ppo", method="ppo", gold=1, proxy=0, kl=1, seed=seed) for seed in (0, 1)
    )
    content = json.loads((second / "run.json").read_text())
    content["parents"] = json.loads((first / "run.json").read_text())["parents"]
    (second / "run.json").write_text(json.dumps(content))
    trained = next((tmp_path / "runs").glob("ppo-a1b2c3d40"))
    run = json.loads((trained / "run.json").read_text())
    (trained / "run.json").write_text(json.dumps(run | {"wall_seconds": 12.0}))
    phase_blocks(summarise({"best": [first], "last": [second]}, baseline=None), tmp_path)
    assert [(line["phase"], line["time (s)"]) for line in table(tmp_path, "phases")] == [("best", 12)]


def test_changes_are_means_over_the_first_and_the_last_tenth(tmp_path):
    history = [{"step": i, "train/value_loss": 10.0 - (i >= 18) * 6.0, "train/entropy": 2.0} for i in range(20)]
    phase_blocks(summarise({"ppo": [training(tmp_path / "runs", "ppo", history=history)]}, baseline=None), tmp_path)
    lines = {line["quantity"]: line for line in table(tmp_path, "changes")}
    assert (lines["value_loss"]["first"], lines["value_loss"]["last"]) == (10, 4)
    assert lines["value_loss"]["change (%)"] == pytest.approx(-60.0) and lines["entropy"]["change (%)"] == 0
    assert set(lines) == {"value_loss", "entropy"}


def test_checkpoints_are_told_with_the_one_that_was_chosen(tmp_path):
    history = [
        {"step": 10, "validation/score": 1.0},
        {"step": 10, "validation/quality_rate": 0.5},
        {"step": 15, "train/score": 9.0},
        {"step": 20, "validation/score": 3.0, "validation/quality_rate": 0.75},
        {"step": 30, "validation/score": 2.0, "validation/quality_rate": 1.0},
    ]
    best = {"train/best_step": 20.0, "train/steps": 30.0}
    made = {
        name: [training(tmp_path / "runs", name, history=history, config={"task": task}, **best)]
        for name, task in (("best", {"export": "best"}), ("kept", {"export": "last", "keep": 3}), ("plain", {}))
    }
    phase_blocks(summarise(made, baseline=None), tmp_path)
    lines = table(tmp_path, "checkpoints")
    assert [(line["phase"], line["step"], line["chosen"]) for line in lines] == [
        ("best", 10, "-"),
        ("best", 20, "best, handed on"),
        ("best", 30, "-"),
        ("kept", 10, "-"),
        ("kept", 20, "best"),
        ("kept", 30, "handed on"),
    ]
    assert [line["score"] for line in lines[:3]] == [1, 3, 2] and lines[0]["quality_rate"] == 0.5


def test_nothing_is_written_where_nothing_is_known(tmp_path):
    folder = write_policy(tmp_path / "runs", "dpo", method="dpo", gold=1, proxy=0, kl=1)
    assert phase_blocks(summarise({"dpo": [folder]}, baseline=None), tmp_path) == []
    assert not (tmp_path / "tables").exists()


def test_the_json_of_a_table_says_what_its_csv_says():
    text = 'policy,n,mean,note\n8,3,0.25,"a, ""b"""\nppo,,nan,inf\n'
    assert json.loads(to_json(text)) == [
        {"policy": "8", "n": 3, "mean": 0.25, "note": 'a, "b"'},
        {"policy": "ppo", "n": None, "mean": None, "note": None},
    ]
