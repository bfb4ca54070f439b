"""`alignlab check`: a stranger's loss from --config-dir, exit codes, what is printed, and that nothing is built."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alignlab.app.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "add_a_loss.md").read_text()
[RIGHT], [YAML] = (re.findall(rf"```{language}\n(.*?)```", PAGE, re.S) for language in ("python", "yaml"))
[SHOWN] = re.findall(r"\$ alignlab check .*?\n(.*?)```", PAGE, re.S)
[SHOWN_BROKEN] = re.findall(r"```\n(  FAILED .*?)```", PAGE, re.S)
Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of docs/add_a_loss.md: one module, one yaml; the working directory is it."""
    options = tmp_path / "conf" / "method" / "loss"
    options.mkdir(parents=True)
    (tmp_path / "losses.py").write_text(RIGHT)
    (options / "soft_margin.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command line in, exit code and what was printed out."""

    def run(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(line.split())
        out, err = capsys.readouterr()
        return code, out, err

    return run


def words_of(text: str) -> str:
    """`text` without its numbers, which rounding moves, and without the width of its columns."""
    return " ".join(re.sub(r"\d[\d.e-]*", "#", text).split())


def test_the_command_passes_a_correct_loss_of_a_strangers_and_builds_nothing(project: Path):
    words = [sys.executable, "-m", "alignlab", "check", "--config-dir", "conf", "method/loss=soft_margin"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "method.loss: SoftMarginLoss(beta=0.1, margin=0.5)"
    assert all(line.startswith("  passed  ") for line in lines[1:-1]) and len(lines) == 16
    assert lines[-1] == "14 contracts: 14 kept" and done.stderr == ""
    assert words_of(done.stdout) == words_of(SHOWN), "docs/add_a_loss.md shows another output"
    assert sorted(path.name for path in project.iterdir()) == ["conf", "losses.py"]


def test_a_wrong_loss_is_told_what_broke_by_how_much_and_why(project: Path, run: Run):
    (project / "losses.py").write_text(RIGHT.replace("self.beta * h", "self.beta * h / policy.chosen_length"))
    code, out, _ = run("check --config-dir conf method=dpo method/loss=soft_margin method.loss.margin=1")
    assert code == 1
    assert "method.loss: SoftMarginLoss(beta=0.1, margin=1)" in out
    assert words_of(SHOWN_BROKEN) in words_of(out)
    assert re.search(r"differ in\s+loss\s+by\s+0\.[1-9]\d*;", out)
    assert "  passed  gradcheck " in out and "  passed  shift_invariant" in out
    assert out.splitlines()[-1] == "14 contracts: 13 kept, 1 BROKEN"


def test_what_raises_has_broken_its_contracts(project: Path, run: Run):
    (project / "losses.py").write_text(RIGHT.replace("return F.softplus(", "return F.softmuch("))
    code, out, _ = run("check --config-dir conf method/loss=soft_margin")
    told, line = (
        " ".join(out.split()),
        RIGHT.splitlines().index("        return F.softplus(self.margin - self.beta * h)") + 1,
    )
    assert code == 1 and told.count(f"exceptions raised (losses.py:{line}), AttributeError: module") == 1
    assert told.endswith("14 contracts: 0 kept, 14 BROKEN") and out.count("  FAILED  ") == 14


def test_the_preflight_comes_first(project: Path, run: Run):
    code, out, err = run("check --config-dir conf method/loss=soft_margin method.loss.marjin=1")
    assert (code, out) == (2, "") and "did you mean margin?" in err
    code, _, err = run("check method/loss=soft_margin")
    assert code == 2 and "there is no such option" in err
    (project / "conf" / "method" / "loss" / "os.yaml").write_text("# no\n_target_: os.getcwd\n")
    code, _, err = run("check --config-dir conf method/loss=os")
    assert code == 2 and "os.getcwd is refused" in err


def test_a_setting_that_the_loss_refuses_is_its_own_error(run: Run):
    assert run("check method/loss=ipo method.loss.beta=-1") == (2, "", "IPOLoss: beta=-1 must be a positive number\n")


def test_what_has_no_loss_or_no_known_one_is_an_error(project: Path, run: Run):
    assert "which loss?" in run("check")[2] and run("check")[0] == 2
    assert "has no loss" in run("check experiments=quickstart")[2]
    (project / "losses.py").write_text("import torch\nclass SoftMarginLoss(torch.nn.Linear):\n    pass\n")
    (project / "conf/method/loss/soft_margin.yaml").write_text("# x\n_target_: losses.SoftMarginLoss\nin_features: 1\n")
    code, _, err = run("check --config-dir conf method/loss=soft_margin +method.loss.out_features=1")
    assert code == 2 and "SoftMarginLoss: there are contracts for PreferenceLoss, UnpairedLoss" in err


def test_a_sweep_checks_every_job_and_finds_the_method_of_each(run: Run):
    code, out, _ = run("check -m method/loss=hinge,kto")
    assert code == 0
    heads = [line for line in out.splitlines() if line.startswith("alignlab check")]
    assert heads == ["alignlab check method=dpo method/loss=hinge", "alignlab check method=kto method/loss=kto"]


def test_every_loss_of_a_method_is_checked(run: Run):
    code, out, _ = run("check method=ppo method/reward=length")
    assert code == 0 and [line.split(":")[0] for line in out.splitlines() if line.startswith("method.")] == [
        "method.policy_loss",
        "method.value_loss",
    ]
