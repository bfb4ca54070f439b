"""Build a target: its needs first, under its lock, into its run folder; or find that it is there.

The folder's run.json says running, done or failed, and is replaced whole. A process that dies leaves `running` behind
and a free lock: the next builder goes on from the last checkpoint. What failed in this launch is not tried again.
"""

import logging
import shutil
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import Timeout
from omegaconf import DictConfig, OmegaConf

from alignlab.app.building.processes import needs_several_processes, run_child
from alignlab.app.configs.content import saved
from alignlab.app.planning.targets import Given, Target
from alignlab.app.runs import record, runfolder, stop
from alignlab.errors import AlignlabError, RunFailed

log = logging.getLogger("alignlab")

Work = Callable[[DictConfig, Path, Any], dict[str, Any]]
"""(config with real paths, run folder, target) -> final metrics. It goes on from the folder's checkpoints, if any."""


def work_of(kind: str) -> Work:
    """What builds a target of this kind; imports torch, so it is asked for only when something is built."""
    from alignlab.app.work.kinds import WORK

    return WORK[kind]


def build(target: Target | Given, launch: str) -> Path:
    """The run folder of `target`, built if it is not there. RunFailed says what failed, also where it was a need.

    `launch` names this start of the program: a failure in it is not repeated, a fresh build in it is not redone.
    """
    if isinstance(target, Given) or _is_built(target, launch):
        return target.folder
    for parent in target.parents:
        try:
            build(parent, launch)
        except RunFailed as failed:
            raise _failure(f"{target.folder.name}: not built, for it needs {failed}", failed.exit_code) from None
    with _locked(target):
        if _is_built(target, launch):  # it may have come while we waited
            return target.folder
        was = runfolder.read(target.folder)
        if was.get("status") == "failed" and was.get("launch") == launch:
            raise _failed(target.folder, was)
        return _make(target, launch, was)


def _is_built(target: Target, launch: str) -> bool:
    was = runfolder.read(target.folder)
    if was.get("status") != "done":
        return False
    if was.get("launch") == launch:
        return True
    return not target.cfg.fresh and not runfolder.is_stale(was, target.parent_folders)


@contextmanager
def _locked(target: Target) -> Iterator[None]:
    lock = runfolder.lock(target.runs, target.key)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: waiting, process %s builds it", target.folder.name, runfolder.read(target.folder).get("pid", "?"))
        lock.acquire(poll_interval=0.1)
    try:
        yield
    finally:
        lock.release()


def _make(target: Target, launch: str, was: dict[str, Any]) -> Path:
    folder = target.folder
    if was and _starts_over(target, was):
        replaces = runfolder.set_aside(folder).name
        log.info("%s: built anew; the old one is kept as %s until it is done", folder.name, replaces)
        was = {"replaces": replaces}
    folder.mkdir(parents=True, exist_ok=True)
    head = _head(target, launch, was)
    runfolder.write(folder, {**head, "status": "running"})
    cfg = _freeze(target, folder)
    started = time.monotonic()
    record.reset_peak_memory()

    def close(status: str, **more: Any) -> None:
        wall = round(was.get("wall_seconds", 0.0) + time.monotonic() - started, 3)
        end = {"wall_seconds": wall, "peak_memory_mb": record.peak_memory_mb(), "ended": _now()}
        runfolder.write(folder, {**head, "status": status, **end, **more})

    with logged(folder):
        try:
            log.info("%s: %s", folder.name, "going on" if was.get("status") else "building")
            metrics = _run(target, cfg, folder)
        except (KeyboardInterrupt, SystemExit) as interrupt:
            if isinstance(interrupt, SystemExit) and stop.received() is None:
                close("failed", **_told(interrupt))
                raise _failed(folder, runfolder.read(folder)) from None
            close("running")  # with the lock free this reads "interrupted"
            log.info("%s: interrupted; the same command goes on from its last checkpoint", folder.name)
            raise
        except Exception as error:
            log.debug("", exc_info=True)
            with open(folder / "train.log", "a", encoding="utf-8") as file:
                file.write(traceback.format_exc())
            close("failed", **_told(error))
            raise _failed(folder, runfolder.read(folder)) from None
        tokens = {"tokens": metrics["tokens"]} if "tokens" in metrics else {}
        close("done", metrics=metrics, stamp=uuid.uuid4().hex, **tokens)
        if "replaces" in was:
            shutil.rmtree(folder.with_name(was["replaces"]), ignore_errors=True)
        log.info("%s: done", folder.name)
    return folder


def _run(target: Target, cfg: DictConfig, folder: Path) -> dict[str, Any]:
    if target.kind == "train" and needs_several_processes(OmegaConf.select(cfg, "hardware.devices")):
        return run_child(folder, [str(path) for path in target.planner.roots.python])
    return work_of(target.kind)(cfg, folder, target)


def _starts_over(target: Target, was: dict[str, Any]) -> bool:
    """Whether what lies in the folder is put aside rather than reused or gone on with."""
    if runfolder.is_stale(was, target.parent_folders):
        return True
    # An interrupted fresh build goes on: the same command leads to the same end.
    return bool(target.cfg.fresh) and (was.get("status") == "done" or not was.get("fresh"))


def _head(target: Target, launch: str, was: dict[str, Any]) -> dict[str, Any]:
    """What run.json says from the first moment on."""
    parents = {
        name: [{"folder": str(p.folder), "key": p.key, "stamp": runfolder.read(p.folder).get("stamp")} for p in needed]
        for name, needed in target.needs.items()
    }
    head = {
        "status": "running",
        "key": target.key,
        "name": target.name,
        "task": target.kind,
        "method": target.method,
        "seed": target.cfg.seed,
        "overrides": list(target.overrides),
        "parents": parents,
        "fresh": bool(target.cfg.fresh),
        "launch": launch,
        "started": was.get("started") or _now(),
        **record.surroundings(sys.argv),
    }
    return head | ({"replaces": was["replaces"]} if "replaces" in was else {})


def _freeze(target: Target, folder: Path) -> DictConfig:
    """Write config.yaml and overrides.txt; the config that work gets: resolved, with the run folders of the needs."""
    cfg = target.filled(paths=True)
    text = OmegaConf.to_yaml(OmegaConf.create(saved(cfg)))
    runfolder.write_atomic(folder / "config.yaml", text)
    runfolder.write_atomic(folder / "overrides.txt", "".join(f"{override}\n" for override in target.overrides))
    OmegaConf.resolve(cfg)
    return cfg


@contextmanager
def logged(folder: Path | None) -> Iterator[None]:
    """Append what is logged to <folder>/train.log too."""
    if folder is None:
        yield
        return
    if log.level == logging.NOTSET:  # from Python nobody has configured logging; the file gets its lines all the same
        log.setLevel(logging.INFO)
    handler = logging.FileHandler(folder / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _told(error: BaseException) -> dict[str, Any]:
    said = str(error) if isinstance(error, AlignlabError) else f"{type(error).__name__}: {error}"
    return {"error": said, "exit_code": getattr(error, "exit_code", 1)}


def _failed(folder: Path, was: dict[str, Any]) -> RunFailed:
    return _failure(
        f"{folder.name}, which failed: {was.get('error')} ({folder / 'train.log'})", was.get("exit_code", 1)
    )


def _failure(text: str, exit_code: int) -> RunFailed:
    error = RunFailed(text)
    error.exit_code = exit_code
    return error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
