"""Puts one bug at a time into a copy of the checkout and runs tests on it. The checkout itself is never touched."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from tests.mutants.mutant import CONTRACTS, Mutant

COPIED = ("src", "tests", "conf", "experiments", "pyproject.toml")
LONGEST = 1200  # seconds for one call of pytest: a bug that makes the tests hang is an error of the mutant
_CONTRACT = re.compile(r"\): ([a-z_ ]+): ")  # "method.loss: DPOLoss(beta=0.1): gradcheck: ..."


class Failure(NamedTuple):
    """A test that failed, below tests/, and what it said."""

    test: str
    message: str

    @property
    def contract(self) -> str:
        """The contract that a loss broke, where the test is the one of contracts; else nothing."""
        found = _CONTRACT.search(self.message) if self.test.startswith(CONTRACTS) else None
        return found.group(1) if found else ""


class Outcome(NamedTuple):
    """What became of a mutant."""

    mutant: Mutant
    where: str  # the mutated function
    failure: Failure | None  # None: no test noticed
    digest: str  # of the code that was tried; empty where no test noticed
    was_foreseen: bool  # by one of the tests that the mutant names
    seconds: float


class Copy:
    """A copy of the checkout in a temporary folder."""

    def __init__(self, root: Path) -> None:
        """AssertionError unless Python started in the copy imports the package from there."""
        self.root = Path(tempfile.mkdtemp(prefix="alignlab-mutants-")).resolve()
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (root / name).is_file():
                shutil.copy(root / name, self.root / name)
        said = self._python("-c", "import alignlab; print(alignlab.__file__)").stdout.strip()
        assert Path(said).is_relative_to(self.root), f"the package is imported from {said!r}, not from the copy"

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.root, ignore_errors=True)

    @contextmanager
    def with_bug(self, mutant: Mutant) -> Iterator[None]:
        """Inside, the copy has the bug."""
        path = self.root / mutant.path
        source = path.read_text()
        _write(path, mutant.applied(source))
        try:
            yield
        finally:
            _write(path, source)

    def failures(self, tests: Sequence[str], *, only_first: bool = True) -> list[Failure]:
        """The tests among `tests` (files, folders or single ones below tests/) that fail, in the order they ran.

        RuntimeError where they could not be run at all, because a module cannot be imported, say.
        """
        report = self.root / "report.xml"
        report.unlink(missing_ok=True)
        settings = ["-q", "-p", "no:cacheprovider", f"--basetemp={self.root / 'tmp'}"]
        settings += [f"--junitxml={report}", "-o", "junit_family=xunit1", *(["-x"] if only_first else [])]
        run = self._python("-m", "pytest", *settings, *(f"tests/{test}" for test in tests))
        if run.returncode not in (0, 1):
            raise RuntimeError(f"pytest ended with {run.returncode} on {' '.join(tests)}:\n{run.stdout[-3000:]}")
        return [found for case in ElementTree.parse(report).iter("testcase") for found in _failure(case)]

    def try_out(self, mutant: Mutant) -> Outcome:
        """Run the tests that the mutant names, and the whole room's if none of them fails."""
        start = monotonic()
        with self.with_bug(mutant):
            found = self.failures(mutant.tests) if mutant.tests else []
            was_foreseen = bool(found)
            found = found or self.failures([_tests_of(mutant.room, self.root)])
        digest = mutant.digest(self.root, found[0].test) if found else ""
        where, failure = mutant.where(self.root), found[0] if found else None
        return Outcome(mutant, where, failure, digest, was_foreseen, monotonic() - start)

    def _python(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        own = {"PYTHONPATH": str(self.root / "src"), "TMPDIR": str(self.root)}
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **own}
        environment.pop("ALIGNLAB_DATA", None)  # what only real data can show does not count
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LONGEST,
        )


def _tests_of(room: str, root: Path) -> str:
    """Where the tests of a room are: a folder, a file, or, for the nouns that all rooms share, those of the data."""
    names = (room, f"test_{room}.py", "data")
    return next(name for name in names if (root / "tests" / name).exists())


def _write(path: Path, source: str) -> None:
    """Write a module, and forget its bytecode: within a second and at equal length Python would not see the change."""
    path.write_text(source)
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def _failure(case: ElementTree.Element) -> Iterator[Failure]:
    """The failure of one test in pytest's report, if it has one."""
    for kind in ("failure", "error"):
        if (found := case.find(kind)) is not None:
            file = Path(case.attrib["file"]).relative_to("tests").as_posix()
            yield Failure(f"{file}::{case.attrib['name']}", found.attrib.get("message", ""))
            return
