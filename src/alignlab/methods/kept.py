"""Weights of a run's validations, kept so that its checkpoints can be compared: checkpoints/step-000040.ckpt.

Such a file holds the trained weights and their step, nothing to go on from. `best.ckpt` and `last.ckpt` hold weights
too, so the three can be measured alike: `task=evaluate evaluation.checkpoint=40`, `=best`, `=last`.
"""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from alignlab.errors import AlignlabError, ConfigError
from alignlab.methods.base import Method
from alignlab.methods.checkpoint import BEST, LAST, load_named, read_checkpoint, trained_state, write_checkpoint

STEP = "step-{:06d}.ckpt"


class KeepWeights(Callback):
    """Writes the weights of each validation into `folder`, and deletes the oldest ones beyond `most`."""

    def __init__(self, folder: Path, *, most: int) -> None:
        if most < 1:
            raise ConfigError(f"task.keep={most}: expected 0 or the number of validations whose weights are kept")
        self._folder, self._most = folder, most

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not isinstance(pl_module, Method) or trainer.state.fn != "fit":
            return
        state = {"step": pl_module.completed_steps, "weights": trained_state(pl_module)}
        if not trainer.is_global_zero:
            return
        write_checkpoint(state, self._folder / STEP.format(pl_module.completed_steps))
        for old in kept_files(self._folder)[: -self._most]:
            old.unlink()


def kept_files(folder: Path) -> list[Path]:
    """The kept weights of a run's validations, by step."""
    return sorted(folder.glob("step-*.ckpt"))


def read_kept(run: Path, which: str | int) -> dict[str, Tensor]:
    """The trained weights of a checkpoint of the run folder `run`: "best", "last" or the step of a kept one.

    Raises:
        ConfigError: there is none of that name; those that are there are listed.
    """
    folder = run / "checkpoints"
    path = folder / (STEP.format(which) if isinstance(which, int) else {"best": BEST, "last": LAST}.get(which, which))
    if not path.is_file() or path.suffix != ".ckpt":
        there = [name for name, file in (("best", BEST), ("last", LAST)) if (folder / file).is_file()]
        there += [str(int(file.stem.removeprefix("step-"))) for file in kept_files(folder)]
        raise ConfigError(
            f"evaluation.checkpoint={which}: {folder} has {', '.join(there) or 'no checkpoint'}; task.keep says of how "
            "many validations the weights are kept"
        )
    return read_checkpoint(path)["weights"]


def put_into(role: nn.Module, weights: dict[str, Tensor], *, prefix: str) -> None:
    """Copy the weights named `<prefix>.…` into a loaded policy or reward model; a value head has no place there."""
    own = {
        name.removeprefix(f"{prefix}."): value
        for name, value in weights.items()
        if name.startswith(f"{prefix}.") and not name.startswith(f"{prefix}.value_head.")
    }
    if not own:
        raise AlignlabError(f"checkpoint: it has no weights of a {prefix.replace('_', ' ')}")
    load_named(role, own)
