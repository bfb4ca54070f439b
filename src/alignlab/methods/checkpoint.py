"""Checkpoints from which a killed run goes on to the same bits.

A checkpoint holds trained weights, optimizer, loss scaler, random states of every process, the number of finished
training batches (which is the data position) and the method's own state, as plain types only. It is taken *before*
a training batch starts: then everything that belongs to the batch before it, its validation included, is done.

It is written beside its target, fsynced, and renamed; the one before is kept as `previous.ckpt`. A file is a zip
whose entries carry checksums, so a flipped bit is found on loading, and the previous one is used instead (with a
warning). Frozen weights are not stored: a resumed run loads them again from where they came.
"""

import math
import os
import random
import signal
import threading
import warnings
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from alignlab.errors import AlignlabError
from alignlab.methods.base import Method

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


# -- files -----------------------------------------------------------------------------------------------------
def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write `state` to `path` atomically; what stood there is whole until the new file is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in `path`, its checksums verified; AlignlabError where the file is damaged. Runs no code from it."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the entry {damaged} does not match its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a flipped bit may surface as any error of the reader
        raise AlignlabError(f"{path}: the checkpoint is damaged ({error})") from None


def newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The last whole checkpoint in `folder`, or None where there is none."""
    for name in (LAST, PREVIOUS):
        path = folder / name
        if path.exists():
            try:
                return read_checkpoint(path)
            except AlignlabError as error:
                warnings.warn(f"{error}; going back to the checkpoint before it", stacklevel=2)
    return None


# -- random states ---------------------------------------------------------------------------------------------
def random_state() -> dict[str, Any]:
    """The global random states of this process: torch (CPU, CUDA), Python, numpy; plain types."""
    version, words, position = random.getstate()
    kind, keys, index, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": [version, list(words), position],
        "numpy": [str(kind), [int(k) for k in keys], int(index), int(has_gauss), float(gauss)],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo of `random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, words, position = state["python"]
    random.setstate((version, tuple(words), position))
    kind, keys, index, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), index, has_gauss, gauss))


# -- the whole state of a run ----------------------------------------------------------------------------------
def trained_state(method: Method) -> dict[str, torch.Tensor]:
    """Trained parameters and all buffers that belong to them, by name."""
    trained = {id(p) for p in method.trained_parameters()}
    names = [name for name, p in method.named_parameters() if id(p) in trained]
    state = method.state_dict()
    buffers = {name for name, _ in method.named_buffers()}
    kept = [name for name in state if name in buffers and not _is_quantised(state[name])]
    return {name: state[name].detach().cpu().clone() for name in [*names, *kept]}


def load_trained_state(method: Method, weights: dict[str, torch.Tensor]) -> None:
    """Copy `weights` into `method`; AlignlabError where a name or a shape does not fit."""
    load_named(method, weights)


def load_named(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy `weights` into the parameters and buffers of these names; AlignlabError where one does not fit."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            had = tuple(own[name].shape) if name in own else "no such tensor"
            raise AlignlabError(
                f"checkpoint: {name} has shape {tuple(value.shape)}, the model has {had}; was it changed?"
            )
        with torch.no_grad():
            own[name].copy_(value)


def _is_quantised(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.uint8, torch.int8)


def gather_state(trainer: L.Trainer, method: Method, extra: dict[str, Any]) -> dict[str, Any]:
    """Everything `restore_state` needs; called on every process, whole on rank 0."""
    own: list[Any] = [(random_state(), method.seen_tokens)]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, own[0])
        own = everyone
    return {
        "step": method.completed_steps,
        "seen_tokens": [tokens for _, tokens in own],
        "weights": trained_state(method),
        "optimizer": trainer.optimizers[0].state_dict(),
        "scaler": trainer.precision_plugin.state_dict(),
        "random": [state for state, _ in own],
        "method": method.method_state(),
        "extra": extra,
    }


def restore_method(method: Method, state: dict[str, Any], rank: int = 0) -> None:
    """Weights, counters and controllers of a checkpoint (not the optimizer's state, which the trainer holds)."""
    load_trained_state(method, state["weights"])
    method.completed_steps = state["step"]
    method.seen_tokens = state["seen_tokens"][rank] if rank < len(state["seen_tokens"]) else 0
    method.load_method_state(state["method"])


class Checkpointer(Callback):
    """Saves `last` every `every` training batches, `best` when the watched metric improves, and on SIGTERM.

    SIGTERM ends the batch that is under way first, saves, and only then is handed to whoever handled it before
    (exit code 143 where nobody did); a second SIGTERM is handed on at once.

    Early stopping lives here too, because both watch one metric: training ends after `patience` validations
    without an improvement. `state` is a checkpoint to go on from.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        metric: str | None,
        mode: str,
        patience: int | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.folder, self.every, self.metric, self.mode, self.patience = folder, max(every, 1), metric, mode, patience
        self.best: float | None = None
        self.best_step: int = state["extra"]["best_step"] if state is not None else 0
        self.waited = 0
        self._state = state
        self._terminate = False
        self._old_handler: Any = None

    # -- resume ----------------------------------------------------------------------------------------------
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._old_handler = signal.getsignal(signal.SIGTERM)  # Lightning puts its own there after this

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)
        if self._state is None:
            return
        method = _as_method(pl_module)
        restore_method(method, self._state, trainer.global_rank)
        [optimizer] = trainer.optimizers
        optimizer.load_state_dict(self._state["optimizer"])
        for group in optimizer.param_groups:  # how a step is computed is this machine's and this command's choice
            group["fused"] = optimizer.defaults["fused"]
        if self._state["scaler"]:
            trainer.precision_plugin.load_state_dict(self._state["scaler"])
        extra = self._state["extra"]
        self.best, self.best_step, self.waited = extra["best"], extra["best_step"], extra["waited"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        method = _as_method(pl_module)
        if self._state is not None:  # last, so that nothing between on_train_start and here can disturb it
            rank = trainer.global_rank
            if rank < len(self._state["random"]):
                restore_random_state(self._state["random"][rank])
            self._state = None
            return
        stop = self._stop_asked(method)
        if stop or (method.completed_steps > 0 and method.completed_steps % self.every == 0):
            self._save(trainer, method, LAST)
        if stop:
            self._hand_on_sigterm()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        stop = self._stop_asked(_as_method(pl_module))
        self._save(trainer, _as_method(pl_module), LAST)
        if stop:
            self._hand_on_sigterm()

    # -- best and early stopping -------------------------------------------------------------------------------
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        method = _as_method(pl_module)
        if trainer.sanity_checking or self.metric is None or trainer.state.fn != "fit":
            return
        value = method.validation_metrics.get(self.metric)
        if value is None:
            known = ", ".join(sorted(method.validation_metrics)) or "none (there is no validation split)"
            raise AlignlabError(f"task.best_metric={self.metric}: the validation metrics are {known}")
        better = self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        if better and math.isfinite(value):
            self.best, self.best_step, self.waited = value, method.completed_steps, 0
            self._save(trainer, method, BEST)
        else:
            self.waited += 1
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True

    # -- helpers -----------------------------------------------------------------------------------------------
    def _save(self, trainer: L.Trainer, method: Method, name: str) -> None:
        extra = {"best": self.best, "best_step": self.best_step, "waited": self.waited, "stopped": trainer.should_stop}
        state = gather_state(trainer, method, extra)
        if not trainer.is_global_zero:
            return
        path = self.folder / name
        if name == LAST and path.exists():
            os.replace(path, self.folder / PREVIOUS)
        write_checkpoint(state, path)

    def _on_sigterm(self, signum: int, frame: Any) -> None:
        if self._terminate:
            self._hand_on_sigterm()
        self._terminate = True

    def _hand_on_sigterm(self) -> NoReturn:
        if callable(self._old_handler):
            self._old_handler(signal.SIGTERM, None)
        raise SystemExit(128 + signal.SIGTERM)

    def _stop_asked(self, method: Method) -> bool:
        flag = torch.tensor(float(self._terminate), device=method.device)
        return bool(method.sum_over_processes(flag) > 0)


def _as_method(module: L.LightningModule) -> Method:
    assert isinstance(module, Method)
    return module
