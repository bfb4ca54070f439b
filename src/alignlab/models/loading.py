"""Loading networks strictly: float32 master weights, no missing and no unexpected tensor, no remote code.

Two things that the libraries let pass are errors here. A checkpoint that lacks a tensor loads with a random one and
no exception; and weights come in the dtype they were stored in, where a small learning rate moves nothing (bfloat16
has 8 bits of mantissa). Whatever is made at random is made from a given seed, and the global RNG is left alone.

Every network, made or loaded, computes GELU's tanh form in one operation, whatever its config calls it (unless
`hardware.plain` names gelu).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from alignlab.errors import ModelError
from alignlab.kernels.plain import is_plain
from alignlab.models.backbone import body_prefix
from alignlab.models.heads import init_reward_head
from alignlab.models.origins import REWARD_FILE, Origin
from alignlab.models.quiet import first_line

Kind = Literal["causal", "classifier"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's global generator starts from `seed`; afterwards it is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def auto_class(kind: Kind) -> Any:
    """The transformers factory of a causal LM or of a one-label sequence classifier."""
    import transformers

    return transformers.AutoModelForCausalLM if kind == "causal" else transformers.AutoModelForSequenceClassification


def read_config(origin: Origin, kind: Kind, *, dropout: float) -> Any:
    """The transformers config at `origin`, prepared for `kind`. ModelError if there is none."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            origin.name, revision=origin.revision or "main", trust_remote_code=False, local_files_only=origin.is_folder
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"model.init_from={origin.name}: cannot read its config: {first_line(error)}") from error
    return prepare_config(config, kind, dropout=dropout)


def make_config(architecture: dict[str, Any], kind: Kind, *, dropout: float) -> Any:
    """A config from `model.architecture`: `model_type` and that type's own settings. ModelError for unknown ones."""
    from transformers import AutoConfig

    settings = dict(architecture)
    if "model_type" not in settings:
        raise ModelError("model.architecture: model_type is missing, for example llama, gpt2 or distilbert")
    model_type = settings.pop("model_type")
    try:
        config = AutoConfig.for_model(model_type, **settings)
    except ValueError as error:
        raise ModelError(f"model.architecture.model_type={model_type}: {first_line(error)}") from error
    known = {*AutoConfig.for_model(model_type).to_dict(), *config.attribute_map}
    if unknown := sorted(set(settings) - known):
        raise ModelError(f"model.architecture: {model_type} has no setting {', '.join(unknown)}")
    return prepare_config(config, kind, dropout=dropout)


def prepare_config(config: Any, kind: Kind, *, dropout: float) -> Any:
    """Sets every dropout rate to `dropout`, and one label for a classifier; in place."""
    for name, value in vars(config).items():
        if (
            ("dropout" in name or name.endswith("pdrop"))
            and isinstance(value, (int, float))
            and type(value) is not bool
        ):
            setattr(config, name, float(dropout))
    if kind == "classifier":
        config.num_labels = 1
    return config


def random_network(config: Any, kind: Kind, *, seed: int) -> Any:
    """A network with random weights that are a function of `config` and `seed` alone."""
    with seeded(seed):
        model = auto_class(kind).from_config(config, dtype=torch.float32, trust_remote_code=False)
    if kind == "classifier":
        init_reward_head(reward_head(model), seed=seed)
    return with_fused_gelu(model)


def load_network(origin: Origin, config: Any, kind: Kind, *, seed: int, quantization: Any = None) -> Any:
    """The network at `origin` in float32 (or quantised as told).

    A classifier made from something else gets a fresh head from `seed`; every other missing or unexpected tensor is a
    ModelError that names it.
    """
    extra = {} if quantization is None else {"quantization_config": quantization}
    try:
        with seeded(seed):
            model, report = auto_class(kind).from_pretrained(
                origin.name,
                revision=origin.revision or "main",
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=origin.is_folder,
                output_loading_info=True,
                **extra,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model.init_from={origin.name}: cannot load its weights: {first_line(error)}") from error
    fresh_head = _check_report(origin, model, report, kind)
    if fresh_head:
        init_reward_head(reward_head(model), seed=seed)
    if wrong := {str(p.dtype) for p in model.parameters() if p.is_floating_point()} - {"torch.float32"}:
        raise ModelError(f"model.init_from={origin.name}: weights in {', '.join(wrong)} after a load in float32")
    return with_fused_gelu(model)


def with_fused_gelu(model: Any) -> Any:
    """`model` with transformers' "gelu_new" in one operation, in place; its config still says gelu_new.

    gelu_new writes 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) out in eight operations and keeps a tensor of
    the MLP's width from most of them for the backward pass. This is the same function, and keeps its input alone.
    """
    from transformers.activations import NewGELUActivation

    if is_plain("gelu"):
        return model
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return model


def reward_head(model: Any) -> nn.Linear:
    """The last linear layer of a one-label classifier: `score` of a decoder, `classifier` of an encoder."""
    for name in ("score", "classifier", "out_proj"):
        head = getattr(model, name, None)
        head = getattr(head, "out_proj", head)  # some encoders keep a small network there
        if isinstance(head, nn.Linear):
            return head
    raise ModelError(
        f"{type(model).__name__}: no linear `score` or `classifier` head was found; use another architecture"
    )


def _check_report(origin: Origin, model: Any, report: dict[str, Any], kind: Kind) -> bool:
    """Whether the head is new; ModelError for a tensor that should be there, or should not."""
    in_body = f"{body_prefix(model)}."
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    ours = (
        origin.is_folder and (origin.folder() / REWARD_FILE).exists()
    )  # a trained reward model: its head must be there
    heads_may_differ = kind == "classifier" and not ours and any(not name.startswith(in_body) for name in missing)
    if heads_may_differ:
        bad_missing = [name for name in missing if name.startswith(in_body)]
        bad_unexpected = [name for name in unexpected if name.startswith(in_body)]
    else:
        bad_missing, bad_unexpected = missing, unexpected
    if bad_missing or bad_unexpected:
        raise ModelError(
            f"model.init_from={origin.name}: weights do not fit {type(model).__name__}: "
            f"missing {_some(bad_missing)}; unexpected {_some(bad_unexpected)}"
        )
    return heads_may_differ


def _some(names: list[str]) -> str:
    """A few names and how many more there are."""
    shown = ", ".join(names[:3]) or "none"
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
