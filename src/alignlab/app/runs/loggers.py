"""The metrics files of a run folder: metrics.jsonl (bit-reproducible), timing.jsonl (clocks) and metrics.csv."""

import csv
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from alignlab.app.runs.runfolder import write_atomic
from alignlab.errors import MissingExtraError


class FileLogger(Logger):
    """Appends one JSON object per logged step; a resumed run first cuts what was logged after its checkpoint."""

    def __init__(self, folder: Path, *, resumed_step: int) -> None:
        super().__init__()
        self._folder = folder
        self._started = time.monotonic()
        self._cut("metrics.jsonl", resumed_step)
        self._cut("timing.jsonl", resumed_step)

    @property
    def name(self) -> str:
        return "files"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One line in each file; NaN and infinity, which JSON lacks, become null."""
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._append("metrics.jsonl", {"step": step, **values})
        self._append("timing.jsonl", {"step": step, "seconds": round(time.monotonic() - self._started, 3)})

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def write_csv(self) -> None:
        """All of metrics.jsonl as one table, a row per step, a column per metric."""
        path = self._folder / "metrics.jsonl"
        if not path.exists():
            return
        rows: dict[int, dict[str, Any]] = {}
        for line in path.read_text().splitlines():
            values = json.loads(line)
            rows.setdefault(values["step"], {}).update(values)
        columns = ["step", *sorted({name for row in rows.values() for name in row} - {"step"})]
        with (self._folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows[step] for step in sorted(rows))

    def _append(self, name: str, values: dict[str, Any]) -> None:
        with (self._folder / name).open("a") as file:
            file.write(json.dumps(values) + "\n")

    @rank_zero_only
    def _cut(self, name: str, step: int) -> None:
        path = self._folder / name
        if not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines(keepends=True):
            # a line that was being written when the run was killed is not whole: it comes after the checkpoint
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                break
            kept.append(line)
        write_atomic(path, "".join(kept))


def tensorboard(*, folder: Path) -> Logger:
    """Event files in `folder`/tensorboard."""
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(save_dir=folder, name="tensorboard", version="")
    except ModuleNotFoundError:
        raise MissingExtraError("logger=tensorboard: tensorboard is not installed; pip install tensorboard") from None


def close(loggers: Iterable[Any]) -> None:
    """End what outlives a training: a Weights & Biases run would swallow the next one of the same process."""
    for logger in loggers:
        finish = getattr(logger.experiment, "finish", None)
        if callable(finish):
            finish()


def wandb(*, project: str, folder: Path, offline: bool = True) -> Logger:
    """A Weights & Biases run named after the run folder; offline it lies in `folder`/wandb until `wandb sync`."""
    from lightning.pytorch.loggers import WandbLogger

    if not offline:
        os.environ["WANDB_MODE"] = "online"  # the quiet start sets offline, so that nothing asks for a login unasked
    return WandbLogger(
        project=project, name=folder.name, id=folder.name, save_dir=folder, offline=offline, resume="allow"
    )
