"""Fixtures that all rooms' tests share."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch is imported: the processes share the cores
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets (not shipped): $ALIGNLAB_DATA, or ../shared/data; the test skips without it."""
    folder = Path(os.environ.get("ALIGNLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "README.md").exists():
        pytest.skip("needs real data: set ALIGNLAB_DATA to a folder that holds it")
    return folder


@pytest.fixture(autouse=True, scope="module")
def _modules_of_this_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with _left_as_found(tmp_path_factory.getbasetemp()):
        yield


@pytest.fixture(autouse=True)
def _modules_of_this_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with _left_as_found(tmp_path_factory.getbasetemp()):
        yield


@pytest.fixture(autouse=True)
def _fast_forms() -> Iterator[None]:
    """A run's `hardware.plain` holds for its process, and for no test but its own."""
    yield
    if plain := sys.modules.get("alignlab.kernels.plain"):
        plain.choose_plain([])


@contextmanager
def _left_as_found(made: Path) -> Iterator[None]:
    """A command puts its folders on `sys.path`: neither they nor what was imported from `made` is left behind."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(made)):
            del sys.modules[name]
