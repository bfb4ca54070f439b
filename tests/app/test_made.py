"""What only a class can refuse is refused before anything is built: its needs are not trained first."""

import pytest

from alignlab.app.configs.made import make
from alignlab.app.configs.paths import roots
from alignlab.app.planning.asked import checked
from alignlab.app.planning.targets import Planner, plan
from alignlab.app.planning.tried import value_faults
from alignlab.errors import ConfigError

LINES = {
    "experiments=quickstart/dpo adapter=lora adapter.rank=0": ["adapter.rank=0 must be at least 1"],
    "method=dpo method.loss.beta=-1": ["method.loss: DPOLoss: beta=-1 must be a positive number"],
    "experiments=quickstart/ppo method/kl=adaptive method.kl.target=0 method.policy_loss.clip_range=-1": [
        "method.kl: coefficient=0.1, target=0 and horizon=1000.0 must be positive, max_error=0.2 between 0 and 1",
        "method.policy_loss: PPOPolicyLoss: clip_range=-1 must be a positive number",
    ],
    "task=evaluate evaluation.quality.loop_repeats=0": [
        "evaluation.quality: quality.loop_repeats=0 must be at least 2"
    ],
    "experiments=quickstart": [],
    "experiments=quickstart/ppo adapter=lora": [],
}


@pytest.mark.parametrize("line", LINES)
def test_a_value_that_a_class_refuses_has_the_classs_words_and_its_path(line):
    found = value_faults(plan(checked(Planner(roots()), [line.split()])))
    assert found == LINES[line]


def test_the_command_ends_with_2_and_builds_no_need(toy_free, capsys):
    from alignlab.app.cli import main

    assert main(["experiments=quickstart/dpo", "method.loss.beta=-1"]) == 2
    assert capsys.readouterr().err == "method.loss: DPOLoss: beta=-1 must be a positive number\n"
    assert not (toy_free / "runs").exists()


@pytest.fixture
def toy_free(tmp_path, monkeypatch):
    """An empty working directory, with the package's own configs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_another_exception_is_told_with_its_path_and_kind():
    node = {"_target_": "alignlab.losses.preference.DPOLoss", "beta": "much"}
    with pytest.raises(ConfigError, match=r"method\.loss: \w+Error: "):
        make(node, "method.loss")
