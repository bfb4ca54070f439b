"""The parts of a Hugging Face network that alignlab touches: its body, its head, its modes.

Every function takes the network as it is, wrapped by peft or not. LoRA layers live inside the body, so calling the
body directly runs them. The head is applied by the caller, at the positions it needs and nowhere else.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from alignlab.errors import ModelError


class Head(NamedTuple):
    """A linear LM head: logits = scale x, or softcap tanh(scale x / softcap), of x = hidden @ weight.T + bias.

    The names are those of the arguments of `linear_logprobs` and `linear_loss`.
    """

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, "V"] | None
    scale: float = 1.0
    softcap: float | None = None

    def logits_of(self, products: Float[Tensor, "*axes V"]) -> Float[Tensor, "*axes V"]:
        """What the network makes of x."""
        scaled = products if self.scale == 1.0 else products * self.scale
        return scaled if self.softcap is None else torch.tanh(scaled / self.softcap) * self.softcap


def unwrapped(model: nn.Module) -> Any:
    """The Hugging Face network inside a peft wrapper, or the network itself."""
    get_base: Any = getattr(model, "get_base_model", None)
    return model if get_base is None else get_base()


def body_of(model: nn.Module) -> nn.Module:
    """The network without its head: what turns token ids into hidden states (adapters included)."""
    inner = unwrapped(model)
    body = inner.base_model
    if body is inner:
        raise ModelError(f"{type(inner).__name__} has no head of its own: a causal LM or a classifier is needed")
    return body


def body_prefix(model: nn.Module) -> str:
    """The attribute name that the body has inside its network, for example `model` or `transformer`."""
    return unwrapped(model).base_model_prefix


def positions_of(attention_mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Position ids that count real tokens only, so that left padding never shifts learned positions."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def hidden_states(
    model: nn.Module, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T D"]:
    """The last hidden state at every position, without a cache; any padding side gives a row the same values."""
    return body_states(body_of(model), input_ids, attention_mask)


def body_states(
    body: nn.Module, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T D"]:
    """`hidden_states` of a network of which only the body is at hand."""
    extra = {"position_ids": positions_of(attention_mask)} if takes_positions(body) else {}
    return body(input_ids=input_ids, attention_mask=attention_mask.long(), use_cache=False, **extra).last_hidden_state


def takes_positions(body: nn.Module) -> bool:
    """Whether the body is told positions (networks that are not derive them from the mask)."""
    return "position_ids" in inspect.signature(body.forward).parameters


def lm_head(model: nn.Module) -> Head:
    """The LM head. ModelError unless it is one plain, unadapted linear layer.

    Scale and soft cap are read from the network's config, under the names that transformers gives them.
    """
    network = unwrapped(model)
    head = network.get_output_embeddings()
    if type(head) is not nn.Linear:
        found = type(head).__name__ if head is not None else "none"
        raise ModelError(
            f"the LM head of {type(network).__name__} is {found}; log-probs are computed from a plain "
            "nn.Linear: leave the head out of adapter.target_modules, or use another architecture"
        )
    times, over = (getattr(network.config, name, None) for name in ("logit_scale", "logits_scaling"))
    softcap = getattr(network.config, "final_logit_softcapping", None)
    return Head(head.weight, head.bias, (times or 1.0) / (over or 1.0), softcap)


@torch.no_grad()
def check_plain_head(model: nn.Module) -> None:
    """ModelError unless the network's own logits are those of `lm_head`: nothing else between or after.

    Asked of the network itself on four tokens, because every architecture names such a setting differently.
    """
    head = lm_head(model)
    device = head.weight.device
    ids = torch.arange(4, device=device)[None] % head.weight.shape[0]
    with evaluating(model):
        hidden = hidden_states(model, ids, torch.ones_like(ids, dtype=torch.bool))
        ours = head.logits_of(nn.functional.linear(hidden, head.weight, head.bias))
        theirs = unwrapped(model)(input_ids=ids, use_cache=False).logits
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"{type(unwrapped(model)).__name__} does not compute logits as head(hidden): the largest difference is "
            f"{(ours - theirs).abs().max():.3g} (a scale or a soft cap of another name than Cohere's, Granite's and "
            "Gemma 2's, or a layer in between?); such architectures are not supported"
        )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside (dropout and gradient checkpointing off); afterwards each submodule is as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def device_of(module: nn.Module) -> torch.device:
    """The device of the first parameter."""
    return next(module.parameters()).device
