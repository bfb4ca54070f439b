"""What run.json says of memory is of the run, not of what the process did before it."""

import sys
from pathlib import Path

import numpy as np
import pytest

from alignlab.app.runs import record


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone can forget a peak")
def test_a_peak_before_the_reset_is_forgotten_and_one_after_it_is_not():
    big = np.ones(50_000_000)  # 400 MB
    before = record.peak_memory_mb()["rss"]
    del big
    record.reset_peak_memory()
    rested = record.peak_memory_mb()["rss"]
    assert rested < before - 300, sys.platform
    again = np.ones(25_000_000)  # 200 MB
    assert record.peak_memory_mb()["rss"] > rested + 150
    del again
