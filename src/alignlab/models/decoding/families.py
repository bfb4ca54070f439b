"""Which networks are decoded by a loop of ours: exactly these classes, and nothing unusual in them.

What the loop steps over is the forward of the body, of its blocks and of their attention. A network in which one of
these is of another class, or carries a hook (FSDP's sharding, accelerate's offloading), has no family and is run
through its own forward.
"""

from typing import Any

from torch import nn

from alignlab.models.decoding.layers import Embedded, Family, GPT2Layer, GPTNeoLayer, Rotated, RotatedLayer

_STATIC_ROTATIONS = ("default", "linear", "llama3", "yarn")  # the angle at a position never changes with the length


def family_of(network: Any, body: Any) -> Family | None:
    """`network` (without a peft wrapper) and its `body` as a list of layers, or None."""
    config = network.config
    if _are("GPT2LMHeadModel", network):
        usual = not (config.add_cross_attention or config.reorder_and_upcast_attn)
        if usual and _untouched(body, *body.h) and _are("GPT2Attention", *(block.attn for block in body.h)):
            return Embedded(body, [GPT2Layer(block) for block in body.h])
    elif _are("GPTNeoForCausalLM", network):
        outer = [block.attn for block in body.h]
        if _untouched(body, *body.h, *outer) and _are("GPTNeoSelfAttention", *(attn.attention for attn in outer)):
            return Embedded(body, [GPTNeoLayer(block) for block in body.h])
    elif _are("LlamaForCausalLM", network) or _are("Qwen2ForCausalLM", network):
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        usual = kinds == {"full_attention"} and body.rotary_emb.rope_type in _STATIC_ROTATIONS
        name = type(network).__name__.replace("ForCausalLM", "Attention")
        if usual and _untouched(body, *body.layers) and _are(name, *(block.self_attn for block in body.layers)):
            return Rotated(body, [RotatedLayer(block) for block in body.layers])
    return None


def _are(name: str, *modules: nn.Module) -> bool:
    """Whether all are transformers' class of this name, untouched: a subclass of it may compute something else."""
    return _untouched(*modules) and all(type(module).__name__ == name for module in modules)


def _untouched(*modules: nn.Module) -> bool:
    """Whether all are transformers' own, with the forward of their class and nothing hooked on to it."""
    return all(
        type(module).__module__.startswith("transformers.models.")
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
        for module in modules
    )
