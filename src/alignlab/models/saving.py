"""What a finished run leaves behind, and how it is loaded again.

    run/model/      full weights: `AutoModelForCausalLM.from_pretrained(run/model)` (or ...ForSequenceClassification)
    run/adapter/    a peft adapter: `PeftModel.from_pretrained(base, run/adapter)`
    run/base/       the weights under it, where they existed in memory only (random or merged ones)

safetensors only. Each folder is written beside its place and renamed, so that a kill leaves the old one or the new one.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignlab.errors import ModelError
from alignlab.models.adapter_state import TRAINED, base_state, save_adapter
from alignlab.models.adapters import NoAdapter
from alignlab.models.assembly import adapter_kind, from_located, with_adapter
from alignlab.models.backbone import unwrapped
from alignlab.models.digest import weights_digest as weights_digest
from alignlab.models.loading import Kind
from alignlab.models.origins import REWARD_FILE, Located, Origin, locate, write_base
from alignlab.models.policy import Policy
from alignlab.models.quiet import quiet
from alignlab.models.reward_model import RewardModel, read_notes, write_notes
from alignlab.models.source import set_generation
from alignlab.models.tokenizers import load_tokenizer, stop_tokens, with_padding


def save_policy(policy: Policy, folder: Path, *, card: str = "") -> Path:
    """Writes `folder/model`, or `folder/adapter` (and `folder/base` where needed), with `card` as its README.md.

    Returns the folder that was written. The value head is training state and is left to checkpoints.
    """
    set_generation(policy)
    return _save(policy, folder, card)


def save_reward_model(reward_model: RewardModel, folder: Path, *, card: str = "") -> Path:
    """The same for a reward model; its scale and text format go into a small json beside the weights."""
    return _save(reward_model, folder, card)


def load_policy(run_folder: Path | str, *, merge: bool = False) -> Policy:
    """The trained policy of a run, in eval mode: on the base and in the quantisation it was trained with.

    An adapter stays one, so that `adapter_off()` is what the run started from; `merge=True` folds it into the weights
    (faster sampling; not for a quantised base).
    """
    located = locate(str(run_folder))
    model, tokenizer = _load(located, "causal", merge=merge)
    stops = stop_tokens(None, located.files, tokenizer)
    policy = Policy(
        model, tokenizer=tokenizer, stop_token_ids=stops, origin=located.base, quantization=located.quantization
    )
    return policy.eval()


def load_reward_model(run_folder: Path | str, *, merge: bool = True) -> RewardModel:
    """The trained reward model of a run, in eval mode, with its scale; with `merge` an adapter is, if that is exact."""
    located = locate(str(run_folder))
    if not (located.files.folder() / REWARD_FILE).exists():
        raise ModelError(f"{run_folder}: not a reward model of alignlab: it has no {REWARD_FILE}")
    model, tokenizer = _load(located, "classifier", merge=merge and located.quantization is None)
    reward_model = RewardModel(model, tokenizer=tokenizer, origin=located.base, quantization=located.quantization)
    read_notes(reward_model, located.files)
    return reward_model.eval()


def _load(located: Located, kind: Kind, *, merge: bool) -> tuple[Any, Any]:
    """Network and tokenizer as they were saved."""
    with quiet():
        tokenizer = with_padding(load_tokenizer(located.files))
        if located.adapter is None or merge:
            if located.quantization is not None:
                raise ModelError(f"{located.adapter}: its base is quantised, merging would change it; use merge=False")
            model = from_located(located, kind, NoAdapter(), dropout=0.0, seed=0).model
        else:
            if adapter_kind(located.adapter) != kind:
                raise ModelError(f"{located.adapter}: an adapter of a {adapter_kind(located.adapter)}, not of a {kind}")
            model = with_adapter(located, kind, located.quantization, name=TRAINED, dropout=0.0, seed=0)
    unwrapped(model).config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _save(role: Policy | RewardModel, folder: Path, card: str) -> Path:
    """model/ or adapter/ with everything that belongs to it."""
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    base = _save_base(role, folder) if role.has_adapter else None
    final = folder / ("model" if base is None else "adapter")
    with quiet(), replacing(final) as place:
        if base is None:
            role.model.save_pretrained(place)  # pyright: ignore[reportCallIssue]
        else:
            save_adapter(role.model, place, base_name=base.name, revision=base.revision)
            write_base(place, final, base, role.quantization)
        role.tokenizer.save_pretrained(place)
        if isinstance(role, RewardModel):
            write_notes(role, place)
        else:
            unwrapped(role.model).generation_config.save_pretrained(place)
        (place / "README.md").write_text(card)
    return final


def _save_base(role: Policy | RewardModel, folder: Path) -> Origin:
    """Where the frozen weights under the adapter can be had: as they came, or from `folder/base`, written here."""
    if role.origin is not None and role.origin.scratch is None:
        return role.origin
    final = folder / "base"
    with quiet(), replacing(final) as place:
        if role.origin is not None:
            shutil.copytree(role.origin.name, place, dirs_exist_ok=True)
        else:
            unwrapped(role.model).save_pretrained(place, state_dict=base_state(role.model))
        role.tokenizer.save_pretrained(place)
    return Origin(str(final))


@contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """A fresh folder beside `final` that takes its place at the end; a failure leaves `final` as it was."""
    place = final.with_name(f".{final.name}.{os.getpid()}.new")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    for file in place.rglob("*"):
        _sync(file)
    old = final.with_name(f".{final.name}.{os.getpid()}.old")
    if final.exists():
        final.rename(old)
    place.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Flushes a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
