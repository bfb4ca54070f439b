"""Fixtures that all rooms' tests share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets (not shipped): $ALIGNLAB_DATA, or ../shared/data; the test skips without it."""
    folder = Path(os.environ.get("ALIGNLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "README.md").exists():
        pytest.skip("needs real data: set ALIGNLAB_DATA to a folder that holds it")
    return folder
