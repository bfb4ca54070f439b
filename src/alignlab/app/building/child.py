"""A training that needs several processes: a child that reads its frozen config, and never plans, locks or builds.

    python -m alignlab.app.building.child <run folder>

Lightning starts the other ranks by running this same command again with LOCAL_RANK set; they go straight to the work.
The first rank leaves `.result.json` in the run folder for the parent.
"""

import logging
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignlab.app.building import build
from alignlab.app.building.processes import RESULT
from alignlab.app.runs import runfolder, stop
from alignlab.app.runs.quiet import quiet
from alignlab.errors import AlignlabError


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


def main(argv: list[str] | None = None) -> int:
    """Work on one run folder; the exit code."""
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
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger().addHandler(console)
    logging.getLogger("alignlab").setLevel(logging.INFO if log else logging.WARNING)
    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    target = Frozen.of(folder)
    with build.logged(folder if log else None):
        return build.work_of(cfg.task.kind)(cfg, folder, target)


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


if __name__ == "__main__":
    sys.exit(main())
