"""SIGTERM and Ctrl-C: the run is left as interrupted, and the command ends with 143 or 130, whatever libraries do."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_received: list[int] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where the program stands: like Ctrl-C, it passes every `except Exception`."""


def received() -> int | None:
    """The signal that asked this process to stop, if one did. Lightning turns a Ctrl-C into SystemExit(1): ask here."""
    return _received[-1] if _received else None


def exit_code() -> int:
    """128 + the signal's number, as a shell has it; Ctrl-C where no signal was seen."""
    return 128 + (received() or signal.SIGINT)


@contextmanager
def stoppable() -> Iterator[None]:
    """Within, SIGTERM raises Terminated and SIGINT KeyboardInterrupt, and both are remembered. Main thread only."""
    _received.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
