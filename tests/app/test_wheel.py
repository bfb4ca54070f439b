"""The wheel carries its configs and runs from anywhere."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, built and unpacked."""
    pytest.importorskip("hatchling")
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place / "dist")]
    done = subprocess.run(build, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = (place / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    return place


def run(installed, *words):
    elsewhere = installed / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    code = "import sys, alignlab; print(alignlab.__file__, file=sys.stderr)\n"
    code += "from alignlab.app.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(installed / "site")}
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=elsewhere, env=environment, capture_output=True, text=True
    )


def test_the_wheel_finds_its_groups_and_experiments(installed):
    done = run(installed, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(str(installed / "site"))
    assert "quickstart/dpo" in done.stdout and "method/loss:" in done.stdout


def test_the_wheel_plans_the_quickstart_from_another_folder(installed):
    done = run(installed, "plan")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("to build")
    assert not list((installed / "elsewhere").iterdir())


def test_the_same_run_has_the_same_key_in_the_wheel_and_in_the_checkout(installed):
    from alignlab.app.configs import paths
    from alignlab.app.planning.targets import Planner

    key = Planner(paths.roots()).target(["experiments=quickstart/dpo"]).key
    assert key in run(installed, "plan", "experiments=quickstart/dpo").stdout
