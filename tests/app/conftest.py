"""A small world for the command: toy configs, a toy package and a fake training, copied so that tests may edit them."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignlab.app.building import build
from alignlab.app.cli import main
from alignlab.app.configs import paths
from alignlab.app.planning.targets import Planner, Target
from tests.app import toywork

HERE = Path(__file__).parent
SHIPPED = paths.shipped()
PYTHON_PATH = list(sys.path)


class Toy:
    """The working directory of a test, and what one does there."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys
        self.out = self.err = ""

    def run(self, line: str) -> int:
        """The exit code of a command line; what it printed is in `out` and `err`."""
        self._capsys.readouterr()
        code = main(line.split())
        self.out, self.err = self._capsys.readouterr()
        return code

    def fork(self, line: str) -> int:
        """Start a command line in a forked process; its pid."""
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                code = main(line.split())
            finally:
                os._exit(code)
        return pid

    def planner(self) -> Planner:
        """A planner that has seen nothing yet."""
        return Planner(paths.roots())

    def target(self, line: str) -> Target:
        """The target of a line, with the files as they are now."""
        return self.planner().target(line.split())

    def record(self, name: str) -> dict[str, Any]:
        """run.json of the one run folder of this name."""
        return json.loads((self.folder(name) / "run.json").read_text())

    def folder(self, name: str) -> Path:
        found = [
            p for p in (self.root / "runs").glob(f"{name}-*") if ".old-" not in p.name and "evaluate" not in p.name
        ]
        assert len(found) == 1, found
        return found[0]

    def folders(self) -> list[str]:
        runs = self.root / "runs"
        return sorted(p.name.rpartition("-")[0] for p in runs.glob("*-*") if ".old-" not in p.name)

    def control(self, **said: Any) -> None:
        (self.root / "control.json").write_text(json.dumps(said))

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


class World:
    """The toy world to look at, not to edit: one planner for a whole file of tests."""

    def __init__(self) -> None:
        self.planner = Planner(paths.roots())

    def target(self, line: str) -> Target:
        return self.planner.target(line.split())


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Toy:
    """The toy world, as the working directory, with the real conf/config.yaml."""
    return Toy(_make_toy(tmp_path / "toy", monkeypatch), capsys)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The same, shared and read-only."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _make_toy(tmp_path_factory.mktemp("world") / "toy", monkeypatch)
        yield World()


def _make_toy(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(HERE / "toy", root, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(SHIPPED[0] / "config.yaml", root / "conf")
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "path", list(PYTHON_PATH))  # without the folder of another toy world
    monkeypatch.setattr(paths, "shipped", lambda: (root / "conf", root / "experiments"))
    monkeypatch.setattr(build, "work_of", _toy_work)
    return root


_toy_work: Callable[[str], build.Work] = toywork.WORK.__getitem__
