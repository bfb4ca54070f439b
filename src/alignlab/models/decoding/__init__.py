"""One token at a time: networks that remember what they have read.

`decoding_network` gives a network two ways to be decoded from. For GPT-2, GPT-Neo, Llama and Qwen2 in their usual
settings it is a loop of ours over the network's own submodules, with one preallocated cache (`direct`); for all others
it is transformers' forward with a cache that grows (`general`). Both answer with the hidden state that the LM head
reads, and give the same one.

The network must be in eval mode (dropout is stepped over) and gradients are not recorded.
"""

from typing import Literal, Protocol, get_args

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from alignlab.errors import ConfigError
from alignlab.models.backbone import body_of, unwrapped
from alignlab.models.decoding.direct import DirectNetwork
from alignlab.models.decoding.families import family_of
from alignlab.models.decoding.general import GeneralNetwork

Decoder = Literal["auto", "general"]


class DecodingNetwork(Protocol):
    """B rows of which all have read equally many columns; padding of the prompt is on the left."""

    def read_prompts(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        """The last hidden states at the last column. Once, before any token."""
        ...

    def read_tokens(self, tokens: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """The last hidden states after one more token per row."""
        ...

    def keep(self, rows: Int[Tensor, "K"]) -> None:
        """Goes on with these rows only, in this order."""
        ...


def decoding_network(
    model: nn.Module, prompt_mask: Bool[Tensor, "B T"], *, max_tokens: int, decoder: Decoder = "auto"
) -> DecodingNetwork:
    """`model` (wrapped by peft or not) ready to read prompts of this mask and at most `max_tokens` tokens after them.

    `decoder="general"` takes transformers' forward for every network (for tests and benchmarks); ConfigError for a
    decoder of another name.
    """
    if decoder not in get_args(Decoder):
        raise ConfigError(f"decoder={decoder}: expected one of {', '.join(get_args(Decoder))}")
    network = unwrapped(model)
    family = family_of(network, body_of(model)) if decoder == "auto" else None
    if family is not None:
        return DirectNetwork(family, prompt_mask, max_tokens=max_tokens)
    return GeneralNetwork(network.config, body_of(model), prompt_mask, max_tokens=max_tokens)
