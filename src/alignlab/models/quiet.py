"""Loading without library adverts: progress bars, load reports and start-up notes that tell a user nothing."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_STARTUP_NOTES = ("bitsandbytes", "bitsandbytes.backends.cpu.ops")  # notes about optional kernels, written at import


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers shows no progress bar and logs errors only, and bitsandbytes imports silently."""
    for name in _STARTUP_NOTES:
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the libraries' notes to each other
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """What of a library's long message goes into ours: its first line that says something."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
