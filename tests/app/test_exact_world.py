"""The real command in a small exact world: methods climb to the known optimum, and their figures are reproducible."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignlab.app.cli import main
from alignlab.statistics import share_interval

WORLD = [  # 15 responses
    *("model.tokenizer.vocab_size=3", "data.source.world.max_length=3", "data.max_length=4"),
    *("model.architecture.hidden_size=16", "model.architecture.num_hidden_layers=1"),
    *("model.architecture.initializer_range=0.3", "data.source.world.beta=0.3", "data.source.num_held_out=32"),
    *("task.exact_points=4", "hardware.progress=false"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def ran(runs: Path, words: list[str]) -> Path:
    """The folder of one run."""
    before = set(runs.glob("*/run.json"))
    assert main([*words, *WORLD, f"paths.runs={runs}"]) == 0
    [made] = [path for path in set(runs.glob("*/run.json")) - before if not path.parent.name.startswith("exact-base")]
    return made.parent


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "run.json").read_text())["metrics"]


METHODS = {
    "ppo": ["data.batch_size=128", "method.minibatch_size=128", "method.max_steps=50", "method.lr=5e-3"],
    "rloo": ["method.group_size=32", "method.max_steps=50", "method.lr=5e-3"],
    "online_dpo": ["data.batch_size=64", "method.max_steps=80", "method.lr=5e-3"],
    "dpo": ["data.batch_size=64", "method.max_steps=80", "method.lr=5e-3"],
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_reach_the_optimum(name: str, runs: Path):
    found = metrics(ran(runs, [f"experiments=exact/{name}", *METHODS[name]]))
    assert found["exact/share"] > 0.9, found  # so small a network cannot hold more than about 0.95
    assert found["exact/regret"] >= 0 and found["exact/kl"] == pytest.approx(found["exact/optimal_kl"], rel=0.2)


def test_settings_of_speed_reach_the_network_and_change_no_figure(runs: Path, monkeypatch: pytest.MonkeyPatch):
    from alignlab.models import policy as policies
    from alignlab.rollout import generate as rollouts

    seen = {}
    for module, name, setting in ((policies, "hidden_at", "layout"), (rollouts, "decoding_network", "decoder")):
        original = getattr(module, name)

        def watched(*arguments, original=original, setting=setting, **named):
            seen[setting] = named[setting]
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, watched)
    figures = []
    for words in ([], ["hardware.layout=padded", "hardware.decoder=general", "hardware.loss_in_chunks=false"]):
        short = ["data.batch_size=32", "method.minibatch_size=32", "method.max_steps=4", "seed=3"]
        where = runs / f"speed-{len(words)}"  # a folder each, for the key is the same: it leaves these settings out
        figures.append(metrics(ran(where, ["experiments=exact/ppo", *short, *words]))["exact/share"])
        settings = [seen["layout"], seen["decoder"]]
        assert settings == ([word.split("=")[1] for word in words[:2]] or ["auto", "auto"])
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)


def test_every_pair_at_once_needs_no_luck(runs: Path):
    """105 pairs with their weights and soft labels, through collator, policy and loss: full-batch DPO."""
    words = ["data.source.pairs=population", "data.batch_size=105", "method.max_steps=100", "method.lr=5e-3"]
    assert metrics(ran(runs, ["experiments=exact/dpo", *words]))["exact/share"] > 0.9


def test_ipo_reaches_its_own_optimum_and_not_the_rewards(runs: Path):
    found = metrics(ran(runs, ["experiments=exact/ipo", "method.max_steps=80", "method.lr=5e-3", "data.batch_size=64"]))
    assert found["exact/ipo_share"] > 0.9 and found["exact/ipo_share"] > found["exact/share"]


def test_a_reward_model_fits_the_likelihood(runs: Path):
    words = ["method=reward", "model=exact", "data=exact", "method.max_steps=100", "method.lr=1e-2"]
    words += ["data.batch_size=64"]
    found = metrics(ran(runs, words))
    assert 0 <= found["exact/likelihood_gap"] < 0.01 and found["exact/share"] > 0.9


def test_pairs_of_a_worlds_few_prompts_are_draws_of_their_own(runs: Path):
    """Two prompts are all that there are: the interval is over 32 pairs, not over two clusters of them."""
    words = ["method=reward", "model=exact", "data=exact", "method.max_steps=2", "data.batch_size=8"]
    folder = ran(runs, [*words, "data.source.world.num_prompts=2"])
    found = json.loads((folder / "eval" / "reward.json").read_text())["metrics"]
    expected = share_interval(found["accuracy"] * found["num_pairs"], int(found["num_pairs"]))
    assert found["num_pairs"] > 20
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx((expected.low, expected.high))


def test_a_killed_run_writes_the_same_exact_figures(runs: Path, tmp_path: Path):
    words = ["experiments=exact/dpo", "method.max_steps=30", "task.checkpoints=10", "data.batch_size=32", *WORLD]
    command = [sys.executable, "-m", "alignlab", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for place in (tmp_path / "killed", tmp_path / "whole"):
        place.mkdir()
        process = subprocess.Popen(
            [*command, f"paths.runs={place}"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if place.name == "killed":
            for _ in range(3000):
                if list(place.glob("exact-dpo-*/checkpoints/last.ckpt")) or process.poll() is not None:
                    break
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            assert process.wait(timeout=60) == -signal.SIGKILL
            assert (
                subprocess.run([*command, f"paths.runs={place}"], env=environment, capture_output=True).returncode == 0
            )
        assert process.wait(timeout=120) in (0, -signal.SIGKILL)
    texts = [next((tmp_path / place).glob("exact-dpo-*/metrics.jsonl")).read_text() for place in ("killed", "whole")]
    assert texts[0] == texts[1] and texts[0].count("exact/share") == 5


def test_rows_that_would_be_cut_elsewhere_are_refused(runs: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["experiments=exact/dpo", *WORLD, "data.max_length=9", f"paths.runs={runs}"]) != 0
    assert "data.max_length must be 4" in capsys.readouterr().err


def test_the_leaderboard(runs: Path, capsys: pytest.CaptureFixture[str]):
    few = ["needs.ppo.override={method:{max_steps:3}}", "needs.rloo.override={method:{max_steps:3}}"]
    few += ["needs.dpo.override={method:{max_steps:3}}", "needs.ipo.override={method:{max_steps:3}}"]
    few += [f"needs.{name}.grid={{seed:[0,1]}}" for name in ("ppo", "rloo", "dpo", "ipo")]
    world = [word for word in WORLD if not word.startswith("task.")]
    assert main(["experiments=exact", *few, *world, f"paths.runs={runs}"]) == 0
    printed = capsys.readouterr().out
    assert "Leaderboard" in printed or "share" in printed
    [table] = runs.glob("exact-*/report/tables/leaderboard.csv")
    assert {line.split(",")[0] for line in table.read_text().splitlines()[1:]} == {"ppo", "rloo", "dpo", "ipo"}
