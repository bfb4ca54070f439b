"""Where weights come from: a run folder, a Hugging Face folder or a hub id, and what an adapter was trained on.

An adapter folder of ours carries `alignlab_base.json`: its base (a folder, seen from the adapter folder too so that
runs can be moved together, or a hub id with its revision), the sha256 of the base's weights, and how the base was
quantised. peft itself records a path only, and loads an adapter on any base of the same shape without a word.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alignlab.errors import ModelError
from alignlab.models.digest import folder_digest

BASE_FILE = "alignlab_base.json"
REWARD_FILE = "alignlab_reward.json"


@dataclass(frozen=True)
class Origin:
    """Weights that transformers can load again unchanged, by the name it knows them by."""

    name: str  # a folder or a hub id
    revision: str | None = None
    scratch: TemporaryDirectory | None = field(default=None, compare=False)  # set: the folder goes with this object

    @property
    def is_folder(self) -> bool:
        """A local folder (not a hub id)."""
        return Path(self.name).is_dir()

    def folder(self) -> Path:
        """The local folder with the files; for a hub id the snapshot that a load has left in the cache."""
        if self.is_folder:
            return Path(self.name)
        from transformers.utils import cached_file

        config = cached_file(self.name, "config.json", revision=self.revision or "main", local_files_only=True)
        return Path(str(config)).parent

    def digest(self) -> str:
        """sha256 of the weights."""
        return folder_digest(self.folder())


@dataclass(frozen=True)
class Located:
    """What `init_from` names: base weights, and the adapter that stands on them (None: plain weights)."""

    base: Origin
    adapter: Path | None = None
    quantization: dict[str, Any] | None = None  # how the adapter's base was quantised: keywords of QLoRA
    digest: str | None = None  # of the base's weights, as the adapter recorded it

    @property
    def files(self) -> Origin:
        """Where tokenizer, generation_config and our own notes are."""
        return Origin(str(self.adapter)) if self.adapter else self.base

    def verify(self) -> None:
        """ModelError if the base is not, byte for byte, the one that the adapter was trained on."""
        if self.digest is not None and (found := self.base.digest()) != self.digest:
            raise ModelError(
                f"{self.adapter}: trained on weights with sha256 {self.digest[:12]}, but {self.base.name} now has "
                f"{found[:12]}; bring back the base, or train the adapter anew on this one"
            )


def locate(init_from: str, revision: str | None = None) -> Located:
    """Finds what `init_from` names: a run folder (`run.json`), a model or adapter folder, or a hub id."""
    folder = Path(init_from).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or init_from.startswith((".", "~")) or init_from.count("/") > 1:
            raise ModelError(f"model.init_from={init_from}: no such folder")
        return Located(Origin(init_from, revision))
    folder = folder.resolve()
    if (folder / "run.json").exists():
        folder = _output_of_run(folder)
    if (folder / "adapter_config.json").exists():
        return _adapter(folder)
    if not (folder / "config.json").exists():
        raise ModelError(
            f"model.init_from={init_from}: a folder with neither config.json nor run.json; expected a model"
        )
    return Located(Origin(str(folder)))


def write_base(folder: Path, final: Path, base: Origin, quantization: dict[str, Any] | None) -> None:
    """Writes `alignlab_base.json` into an adapter `folder` that will stand at `final`."""
    record: dict[str, Any] = {"base": base.name, "revision": base.revision, "sha256": base.digest()}
    if base.is_folder:
        record["relative"] = os.path.relpath(base.name, final)
    record["quantization"] = quantization
    (folder / BASE_FILE).write_text(json.dumps(record, indent=2) + "\n")


def _output_of_run(run: Path) -> Path:
    """model/ or adapter/ of a run folder."""
    for name in ("model", "adapter"):
        if (run / name).is_dir():
            return run / name
    raise ModelError(f"{run}: a run without model/ or adapter/; is it finished, and was it a training?")


def _adapter(folder: Path) -> Located:
    """An adapter folder, ours or any other that peft wrote."""
    notes = folder / BASE_FILE
    if not notes.exists():  # not ours: peft knows a name, and nothing can be verified
        config = json.loads((folder / "adapter_config.json").read_text())
        if not (name := config.get("base_model_name_or_path")):
            raise ModelError(
                f"{folder}/adapter_config.json: base_model_name_or_path is empty; write the base's name there"
            )
        return Located(Origin(name, config.get("revision")), folder)
    record = json.loads(notes.read_text())
    places = [record["base"], str(folder / record["relative"])] if "relative" in record else [record["base"]]
    name = next((place for place in places if Path(place).is_dir()), record["base"])
    if "relative" in record and not Path(name).is_dir():
        raise ModelError(f"{folder}: its base {record['base']} is gone; move it back, or train the adapter anew")
    return Located(Origin(name, record["revision"]), folder, record["quantization"], record["sha256"])
