"""A training that needs several processes: a child that reads its frozen config, and never plans, locks or builds.

    python -m alignlab.app.building.child <run folder>

Lightning starts the other ranks by running this same command again with LOCAL_RANK set; they go straight to the work.
The first rank leaves `.result.json` in the run folder for the parent.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignlab.app.runs import runfolder, stop
from alignlab.errors import AlignlabError, RunFailed

ENTRY = ("-m", "alignlab.app.building.child")
RESULT = ".result.json"
GRACE_SECONDS = 20.0  # from a SIGTERM to SIGKILL: time to end a step and close files
_RANK_VARIABLES = (
    *("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("PL_GLOBAL_SEED", "TORCHELASTIC_RUN_ID"),
)


@dataclass(frozen=True)
class Frozen:
    """A target as its run folder tells it: what work needs to know, without planning."""

    folder: Path
    key: str
    name: str
    kind: str
    overrides: tuple[str, ...]
    needs: dict[str, list["Frozen"]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, key: str = "") -> "Frozen":
        """Read from `<folder>/run.json`; a folder without one (a need given as a plain model folder) has no needs."""
        record = runfolder.read(folder)
        needs = {
            name: [cls.of(Path(entry["folder"]), entry["key"]) for entry in entries]
            for name, entries in record.get("parents", {}).items()
        }
        kind, overrides = record.get("task", "given"), tuple(record.get("overrides", ()))
        return cls(folder, record.get("key", key), record.get("name", folder.name), kind, overrides, needs)


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


def main(argv: list[str] | None = None) -> int:
    """Work on one run folder; the exit code."""
    from alignlab.app.runs.quiet import quiet

    quiet()
    [place] = sys.argv[1:] if argv is None else argv
    _die_with_parent()
    folder = Path(place)
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    with stop.stoppable():
        try:
            metrics = _work(folder, log=first)
        except (KeyboardInterrupt, SystemExit) as interrupt:
            if stop.received() is None:
                raise
            return stop.exit_code() if not isinstance(interrupt, SystemExit) else 128 + (stop.received() or 0)
        except Exception as error:
            if first:
                said = str(error) if isinstance(error, AlignlabError) else f"{type(error).__name__}: {error}"
                _leave(folder, {"error": said, "exit_code": getattr(error, "exit_code", 1)})
            else:  # the first rank may only see that this one is gone
                logging.getLogger("alignlab").error("rank %s: %s", os.environ.get("LOCAL_RANK"), error)
            if not isinstance(error, AlignlabError):
                logging.getLogger("alignlab").exception("the work in %s failed", folder)
            return 1
    if first:
        _leave(folder, {"metrics": metrics})
    return 0


def _work(folder: Path, *, log: bool) -> dict[str, Any]:
    from omegaconf import DictConfig, OmegaConf

    from alignlab.app.building.build import logged, work_of

    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger().addHandler(console)
    logging.getLogger("alignlab").setLevel(logging.INFO if log else logging.WARNING)
    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    target = Frozen.of(folder)
    with logged(folder if log else None):
        return work_of(cfg.task.kind)(cfg, folder, target)


def _leave(folder: Path, result: dict[str, Any]) -> None:
    runfolder.write_atomic(folder / RESULT, runfolder.as_json(result))


def _die_with_parent() -> None:
    """A child whose parent was killed must not go on: the lock died with the parent, and somebody else may build."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(137)

    threading.Thread(target=watch, daemon=True).start()


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


if __name__ == "__main__":
    sys.exit(main())
