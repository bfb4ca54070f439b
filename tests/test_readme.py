"""Every command of the README does what it says, on a world and a model small enough for a test."""

import json
import re
import shlex
from pathlib import Path

import pytest

import alignlab
from alignlab.app.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()
SMALL = [
    *("data.source.num_sft=96", "data.source.num_preferences=64", "data.source.num_prompts=32"),
    *("data.source.num_validation=8", "data.source.num_test=8", "data.max_new_tokens=12"),
    *("model.architecture.hidden_size=32", "model.architecture.num_hidden_layers=1"),
]
SMALL_EXACT = [
    *("model.tokenizer.vocab_size=3", "data.source.world.max_length=2", "data.max_length=3"),
    *("model.architecture.hidden_size=16", "model.architecture.num_hidden_layers=1"),
    *(f"needs.{name}.override={{method:{{max_steps:2}}}}" for name in ("ppo", "rloo", "dpo", "ipo")),
    *(f"needs.{name}.grid={{seed:[0]}}" for name in ("ppo", "rloo", "dpo", "ipo")),
]


def tour() -> list[str]:
    """The lines of the section `A tour`, without their comments."""
    block = re.search(r"## A tour\n\n```\n(.*?)```", README, re.DOTALL)
    assert block
    return [line.split("  #")[0].strip() for line in block[1].strip().splitlines()]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("readme")
        patch.chdir(folder)
        yield folder


def run(line: str, *, small: bool = True) -> int:
    words = shlex.split(line)
    assert words[0] == "alignlab"
    if "experiments=exact" in words:
        return main([*words[1:], *SMALL_EXACT])
    takes_overrides = not words[1:] or words[1] not in ("ls", "doctor", "report", "check")
    experiments = [] if any("experiments=" in word for word in words) else ["experiments=quickstart"]
    return main([*words[1:], *experiments, *(SMALL if small else [])] if takes_overrides else words[1:])


def test_the_quickstart_ends_with_a_report_and_a_second_time_it_is_there(here: Path, capfd: pytest.CaptureFixture[str]):
    assert run(tour()[0]) == 0
    said = capfd.readouterr().out
    [folder] = [p for p in (here / "runs").glob("quickstart-*") if (p / "report").exists()]
    summary = (folder / "report" / "tables" / "summary.csv").read_text().splitlines()
    assert summary[0].startswith("policy,method,gold_reward,gold_reward_low,gold_reward_high")
    assert [line.split(",")[0] for line in summary[1:]] == ["base", "sft", "dpo", "ppo"]
    for name in ("report.md", "report.html", "figures/frontier.png", "figures/lengths.png", "figures/reward_model.png"):
        assert (folder / "report" / name).stat().st_size > 0
    assert "Next:" in said and "alignlab -m experiments=quickstart/dpo" in said
    assert run(tour()[0]) == 0
    assert "already there" in capfd.readouterr().out


@pytest.mark.parametrize("line", tour()[1:])
def test_the_tour(line: str, here: Path, capfd: pytest.CaptureFixture[str]):
    done = {path: path.stat().st_mtime_ns for path in (here / "runs").glob("quickstart-sft-*/model/model.safetensors")}
    assert run(line) == 0, capfd.readouterr().err
    assert done and done == {path: path.stat().st_mtime_ns for path in done}, "the SFT model was trained again"


def test_runs_can_be_talked_to(here: Path, capfd: pytest.CaptureFixture[str]):
    """The sentence below the tour."""
    dpo, sft, reward = (max((here / "runs").glob(f"quickstart-{n}-*/model")).parent for n in ("dpo", "sft", "reward"))
    words = ["chat", str(dpo), str(sft), "--reward", str(reward), "--prompt", "How do I bake bread?", "--json"]
    assert main(words) == 0
    replies = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert len(replies) == 2 and all(isinstance(reply["reward"], float) for reply in replies)
    assert replies[0]["kl"] is not None and replies[1]["kl"] is None  # the SFT model started from random weights


def test_a_typing_error_is_told_before_anything_is_loaded(here: Path, capfd: pytest.CaptureFixture[str]):
    shown = re.search(r"\$ (alignlab .*?)\n(.*?)\n", README)
    assert shown
    assert run(shown[1], small=False) == 2
    assert shown[2] in capfd.readouterr().err


def test_the_same_from_python(here: Path):
    finished = alignlab.run(["experiments=quickstart/dpo", "method.loss.beta=0.3", *SMALL])
    assert "test/accuracy" in finished.metrics
    assert finished.load_policy().tokenizer.eos_token == "<eos>"


def test_a_run_folder_holds_what_the_readme_says(here: Path):
    [folder] = {p.parent for p in (here / "runs").glob("quickstart-ppo-*/run.json")}
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "metrics.csv",
        "timing.jsonl",
        "samples",
        "checkpoints/last.ckpt",
        "model",
    ):
        assert (folder / name).exists(), name
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "done" and record["method"] == "ppo" and record["task"] == "train"
    assert {"test/gold_reward", "test/kl"} <= set(record["metrics"])


def test_a_loss_of_ones_own_runs_from_a_folder_of_ones_own(here: Path, monkeypatch: pytest.MonkeyPatch):
    """The two files of docs/add_a_loss.md, as they stand there."""
    page = (Path(__file__).parents[1] / "docs" / "add_a_loss.md").read_text()
    code, yaml = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("python", "yaml"))
    assert code and yaml
    mine = here / "mine"
    (mine / "conf" / "method" / "loss").mkdir(parents=True)
    (mine / "losses.py").write_text(code[1])
    (mine / "conf" / "method" / "loss" / "soft_margin.yaml").write_text("# A margin of one's own.\n" + yaml[1])
    monkeypatch.chdir(mine)
    words = ["--config-dir", "conf", "experiments=quickstart/dpo", "method/loss=soft_margin", f"paths.runs={here}/runs"]
    assert main([*words, *SMALL]) == 0
