"""From what `init_from` names to a network ready for an adapter: the four ways weights and adapters are put together.

| base, adapter found there         | trained in full or with LoRA     | trained with QLoRA                       |
|-----------------------------------|----------------------------------|------------------------------------------|
| none: random from `architecture`  | made from the seed               | made, written to a scratch folder, loaded |
| plain weights                     | loaded                           | loaded in 4 bits                         |
| weights and an adapter on them    | adapter merged into the weights  | kept frozen under the new one            |

Either way the network returned is, with no new adapter on it, exactly what training starts from.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from alignlab.errors import ModelError
from alignlab.models.adapter_state import START, TRAINED
from alignlab.models.adapters import LoRA, NoAdapter, quantization_config
from alignlab.models.backbone import body_of
from alignlab.models.loading import Kind, auto_class, load_network, prepare_config, random_network, read_config
from alignlab.models.origins import Located, Origin
from alignlab.models.quiet import first_line
from alignlab.models.targets import heads_of

Adapter = NoAdapter | LoRA


class Network(NamedTuple):
    """A network and where its frozen weights can be had again."""

    model: Any
    origin: Origin | None  # None: they exist in memory only, and must be saved beside an adapter


def from_architecture(config: Any, kind: Kind, adapter: Adapter, *, seed: int) -> Network:
    """A random network; for a quantising adapter its float32 weights wait in a scratch folder to be saved."""
    model = random_network(config, kind, seed=seed)
    settings = adapter.quantization()
    if settings is None:
        return Network(model, None)
    scratch = TemporaryDirectory(prefix="alignlab-base-")
    model.save_pretrained(scratch.name)
    origin = Origin(scratch.name, scratch=scratch)
    return Network(_load(origin, config, kind, settings, seed=seed), origin)


def from_located(located: Located, kind: Kind, adapter: Adapter, *, dropout: float, seed: int) -> Network:
    """The network that `located` names, an adapter there merged or kept; see the table above."""
    settings = adapter.quantization()
    if located.adapter is None:
        config = read_config(located.base, kind, dropout=dropout)
        return Network(_load(located.base, config, kind, settings, seed=seed), located.base)
    trained_as = adapter_kind(located.adapter)
    if trained_as == "classifier" and kind == "causal":
        raise ModelError(f"{located.adapter}: an adapter of a reward model; a policy cannot start from it")
    if settings is not None:
        if kind == "classifier":
            raise ModelError(
                f"{located.adapter}: a quantised reward model cannot start from an adapter; use adapter=lora, or start "
                "from plain weights"
            )
        model = with_adapter(located, kind, settings, name=START, dropout=dropout, seed=seed)
        return Network(model, located.base)
    merged = with_adapter(located, trained_as, None, name=TRAINED, dropout=dropout, seed=seed).merge_and_unload()
    if trained_as != kind:
        merged = as_classifier(merged, dropout=dropout, seed=seed)
    return Network(merged, None)


def with_adapter(
    located: Located, kind: Kind, settings: dict[str, Any] | None, *, name: str, dropout: float, seed: int
) -> Any:
    """The base with the adapter found on it, frozen and at work, under the adapter name `name`."""
    from peft import PeftModel

    assert located.adapter is not None
    config = read_config(located.base, kind, dropout=dropout)
    model = _load(located.base, config, kind, settings, seed=seed)
    located.verify()
    try:
        # cast: in the compute dtype of a 4-bit base the adapter would be rounded
        return PeftModel.from_pretrained(
            model, str(located.adapter), adapter_name=name, is_trainable=False, autocast_adapter_dtype=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{located.adapter}: does not fit its base {located.base.name}: {first_line(error)}"
        ) from error


def as_classifier(causal: Any, *, dropout: float, seed: int) -> Any:
    """A reward network with the body of a causal LM and a fresh head."""
    config = prepare_config(type(causal.config).from_dict(causal.config.to_dict()), "classifier", dropout=dropout)
    model = random_network(config, "classifier", seed=seed)
    body_of(model).load_state_dict(body_of(causal).state_dict(), strict=True)
    return model


def adapter_kind(folder: Path) -> Kind:
    """What the network under an adapter is, by its task type."""
    task = json.loads((folder / "adapter_config.json").read_text()).get("task_type")
    return "classifier" if task == "SEQ_CLS" else "causal"


def _load(origin: Origin, config: Any, kind: Kind, settings: dict[str, Any] | None, *, seed: int) -> Any:
    """Plain weights in float32, or frozen in 4 bits as `settings` say (heads stay in float32)."""
    if settings is None:
        return load_network(origin, config, kind, seed=seed)
    from peft import prepare_model_for_kbit_training

    with torch.device("meta"):
        skeleton = auto_class(kind).from_config(config, trust_remote_code=False)
    quantization = quantization_config(settings, skip=heads_of(skeleton))
    model = load_network(origin, config, kind, seed=seed, quantization=quantization)
    for layer in model.modules():
        # bitsandbytes would repack a layer for bfloat16 at its first forward in eval mode, which rounds its scales for
        # good: policy and reference would part ways; and it fails on widths that are not multiples of 64
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
