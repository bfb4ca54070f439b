"""What watches a training from outside: the progress bar, and sample replies at each validation."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from alignlab.methods.base import Method

SAMPLE_METRICS = ("gold_reward", "proxy_reward", "kl", "response_length", "eos_rate", "distinct_2", "quality_rate")
LINES_WITHOUT_TERMINAL = 4


class Progress(Callback):
    """A bar with time left and tokens per second; a few plain lines where there is no terminal."""

    def __init__(self, name: str, *, enabled: bool) -> None:
        self._name = name
        self._enabled = enabled
        self._bar: Any = None
        self._started = 0.0
        self._first_step = 0
        self._first_tokens = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.monotonic()
        if self._enabled and trainer.is_global_zero and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            total = getattr(pl_module, "total_steps", None)
            self._task = self._bar.add_task(self._name, total=total, detail="")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0 and isinstance(pl_module, Method):
            self._first_step, self._first_tokens = pl_module.completed_steps, pl_module.seen_tokens

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not (self._enabled and trainer.is_global_zero and isinstance(pl_module, Method)):
            return
        step, total = pl_module.completed_steps, pl_module.total_steps
        seconds = time.monotonic() - self._started
        speed = (pl_module.seen_tokens - self._first_tokens) * trainer.world_size / max(seconds, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, detail=f"{speed:,.0f} tokens/s")
        elif step == total or step % max(total // LINES_WITHOUT_TERMINAL, 1) == 0:
            left = (total - step) * seconds / max(step - self._first_step, 1)
            print(f"  {self._name}: step {step}/{total}, {speed:,.0f} tokens/s, {left:.0f} s left", file=sys.stderr)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Samples(Callback):
    """Fresh replies to fixed prompts at each validation: a file per validation, and their means among the metrics.

    `sample` gives (metrics, samples) of the current policy; it draws from a generator of its own, so that a run with
    more validations trains on the same random numbers.
    """

    def __init__(self, folder: Path, sample: Callable[[], tuple[dict[str, float], list[dict[str, Any]]]]) -> None:
        self._folder = folder / "samples"
        self._sample = sample

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not isinstance(pl_module, Method) or trainer.state.fn != "fit":
            return
        chosen: dict[str, float] = {}
        if trainer.is_global_zero:
            metrics, samples = self._sample()
            chosen = {f"validation/{name}": metrics[name] for name in SAMPLE_METRICS if name in metrics}
            self._folder.mkdir(exist_ok=True)
            lines = "".join(json.dumps(sample) + "\n" for sample in samples)
            (self._folder / f"step-{pl_module.completed_steps:06d}.jsonl").write_text(lines)
        # every process must agree on what is best, so every process hears the figures
        pl_module.validation_metrics.update(trainer.strategy.broadcast(chosen))
        pl_module.write_metrics(chosen)


class ExactFigures(Callback):
    """In an exact world: the policy's exact figures before the first step, then evenly spaced, and after the last.

    `figures` are written to the metrics as exact/<name>. They cost a pass over all responses. A resumed run
    (`start` > 0) has written its first ones already.
    """

    def __init__(self, figures: Callable[[], dict[str, float]], *, every: int, start: int = 0) -> None:
        self._figures = figures
        self._every = max(every, 1)
        self._start = start

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, Method) and self._start == 0:
            self._write(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(pl_module, Method):
            step = pl_module.completed_steps
            if step % self._every == 0 or step == pl_module.total_steps:
                self._write(pl_module)

    def _write(self, method: Method) -> None:
        method.write_metrics({f"exact/{name}": value for name, value in self._figures().items()})
