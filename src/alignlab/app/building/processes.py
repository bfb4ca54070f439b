"""The parent's side of a training that needs several processes: one child is started, waited for and never left behind.

What the child does is in `child.py`. It leaves `.result.json` in the run folder.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignlab.errors import RunFailed

ENTRY = ("-m", "alignlab.app.building.child")
RESULT = ".result.json"
GRACE_SECONDS = 20.0  # from a SIGTERM to SIGKILL: time to end a step and close files
_RANK_VARIABLES = (
    *("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("PL_GLOBAL_SEED", "TORCHELASTIC_RUN_ID"),
)


def needs_several_processes(devices: Any) -> bool:
    """Whether `hardware.devices` (a count, a list, "auto" or -1 for all) may mean more than one process here.

    Whatever the strategy: left to itself Lightning takes DDP then, and starts the command again for each rank.
    """
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices) > 1
    return str(devices) not in ("None", "0", "1")


def run_child(folder: Path, python_path: list[str]) -> dict[str, Any]:
    """Run the work of a run folder in a child and give its metrics. RunFailed, with its reason, where it fails."""
    result = folder / RESULT
    result.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}
    environment["PYTHONPATH"] = os.pathsep.join([*filter(None, [environment.get("PYTHONPATH")]), *python_path])
    command = [sys.executable, *ENTRY, str(folder)]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        _end(process)
        raise
    finally:
        _kill_group(process)
    found = json.loads(result.read_text()) if result.exists() else {}
    if "metrics" in found and code == 0:
        return found["metrics"]
    error = RunFailed(found.get("error") or f"the training process ended with {_said(code)} and left no result")
    error.exit_code = found.get("exit_code", 1)
    raise error


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End whatever is left of the child's session: a rank that hangs must not outlive the run."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
    process.wait()


def _said(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
