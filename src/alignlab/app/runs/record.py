"""Where and with what a run was made: what run.json records beside the key, and never keys."""

import functools
import os
import platform
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from alignlab.app.configs.paths import PACKAGE

LIBRARIES = (
    "alignlab",
    "torch",
    "transformers",
    "peft",
    "lightning",
    "bitsandbytes",
    "datasets",
    "tokenizers",
    "numpy",
)


@functools.cache
def versions() -> dict[str, str]:
    """Installed versions, read from package metadata: none of the libraries is imported."""
    from importlib import metadata  # it brings the email package along: not for every start

    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def version_changes(then: dict[str, str]) -> list[str]:
    """What differs between the versions a run was made with and those of now, like `torch 2.12.0 -> 2.13.0`."""
    now = versions()
    return [f"{name} {old} -> {now.get(name, 'gone')}" for name, old in then.items() if now.get(name) != old]


@functools.cache
def git_sha(folder: Path = PACKAGE) -> str | None:
    """Commit of the checkout that `folder` is in, `-dirty` where tracked files differ from it; None outside of one."""
    try:
        sha = _git(folder, "rev-parse", "HEAD")
        return sha + ("-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def reset_peak_memory() -> None:
    """Count the largest memory of this process, and of the GPU, from now on.

    Linux alone can: elsewhere `rss` stays the largest since the process began. What an earlier run of the process left
    allocated counts on.
    """
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # proc(5): resets the high-water mark of the resident set
    except OSError:
        pass
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_mb() -> dict[str, int]:
    """Largest memory since the last reset of this process, of its largest child, and of a GPU that was used, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, kilobytes elsewhere
    kinds = {"rss": resource.RUSAGE_SELF, "child_rss": resource.RUSAGE_CHILDREN}
    peak = {name: resource.getrusage(who).ru_maxrss * unit // 2**20 for name, who in kinds.items()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["gpu"] = torch.cuda.max_memory_allocated() // 2**20
    return peak


def surroundings(argv: list[str]) -> dict[str, Any]:
    """Host, process, code and library versions."""
    return {
        "argv": argv,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "git": git_sha(),
        "versions": versions(),
    }


def _git(folder: Path, *args: str) -> str:
    asked = ["git", "-C", str(folder), *args]
    return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
