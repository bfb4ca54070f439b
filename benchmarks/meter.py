"""Time and memory of one process, step by step.

With one thread a step's time is the process's own CPU time, which a busy machine hardly moves. With more threads it is
the wall time of the steps during which other processes used less than 6 % of the machine: threads that wait for each
other spin, so CPU time says nothing then. On a GPU it is wall time up to the device's last kernel.

Memory is growth: the largest resident set of the counted steps over that of the loaded start (every weight has been
read), since what imports and weights take is no part of a method. On a GPU it is the peak of what is allocated there,
weights included.
"""

import ctypes
import gc
import os
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

UNDISTURBED = 0.06


class Step(NamedTuple):
    """Seconds of one step."""

    wall: float
    own: float  # CPU time of this process
    others: float  # share of the machine that other processes used meanwhile


class Meter:
    """Make it when everything is loaded, call `tick` at the end of every step; the first `warm` are not counted."""

    def __init__(self, warm: int, *, threads: int = 1, device: str = "cpu") -> None:
        self.warm, self.threads, self.device = warm, threads, device
        self.steps: list[Step] = []
        self._ticks = 0
        if device == "cpu":
            _load_weights()
        _give_back()
        self.start_mib = self._memory("VmRSS") if device == "cpu" else 0.0
        self.peak_mib = self.start_mib
        self._last = self._now()

    @property
    def counted(self) -> int:
        """Counted steps so far."""
        return len(self.steps)

    def tick(self) -> None:
        """A step has ended."""
        now = self._now()
        wall, own, busy = (after - before for before, after in zip(self._last, now, strict=True))
        self._ticks += 1
        if self._ticks > self.warm:
            others = max(0.0, busy - own) / ((os.cpu_count() or 1) * max(wall, 1e-9))
            self.steps.append(Step(wall, own, others))
            self.peak_mib = max(self.peak_mib, self._memory("VmHWM"))
        if self._ticks == self.warm:
            self._forget_peak()
        self._last = self._now()

    def skip(self) -> None:
        """Leave out the time since the last tick."""
        self._last = self._now()

    def summary(self, tokens: list[int]) -> dict[str, Any]:
        """`tokens`: real (no padding) tokens of each counted step. Medians over the steps."""
        uses_cpu_time = self.device == "cpu" and self.threads == 1
        per_token = [(step.own if uses_cpu_time else step.wall) / n for step, n in zip(self.steps, tokens, strict=True)]
        gated = self.device == "cpu" and not uses_cpu_time
        clean = [x for x, step in zip(per_token, self.steps, strict=True) if not gated or step.others < UNDISTURBED]
        seconds = statistics.median(clean or per_token)
        return {
            "tokens_per_s": 1 / seconds,
            "s_per_step": seconds * statistics.fmean(tokens),
            "time": "process CPU" if uses_cpu_time else "wall",
            "counted_steps": len(per_token),
            "clean_steps": len(clean),  # 0: do not quote the time
            "wall": [round(step.wall, 4) for step in self.steps],
            "own_cpu": [round(step.own, 4) for step in self.steps],
            "tokens": tokens,
            "start_mib": round(self.start_mib, 1),
            "peak_mib": round(self.peak_mib, 1),
            "growth_mib": round(self.peak_mib - self.start_mib, 1),
        }

    # -- clocks and memory -------------------------------------------------------------------------------------------
    def _now(self) -> tuple[float, float, float]:
        """Wall, own CPU time, and busy time of the whole machine, in seconds."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        user, nice, system, _, _, interrupt, soft, steal = fields
        busy = (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), time.process_time(), busy

    def _memory(self, name: str) -> float:
        """`VmRSS` or its peak `VmHWM`, in MiB; on a GPU the peak of what is allocated there."""
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated() / 2**20
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024

    def _forget_peak(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # not allowed in some containers: the peak then includes the uncounted steps
            return


def _load_weights() -> None:
    """Read every weight: a file that is only mapped would else be loaded by the first step, and count as its growth."""
    import torch

    for thing in gc.get_objects():
        if issubclass(type(thing), torch.nn.Module):  # not isinstance: that wakes lazy modules up
            for weight in thing.parameters(recurse=False):
                weight.detach().sum()


def _give_back() -> None:
    """Free what loading has left behind, and hand it to the system: it must not count as loaded, nor hide a growth."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except OSError:  # not glibc
        return
