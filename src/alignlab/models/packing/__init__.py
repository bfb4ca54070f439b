"""Hidden states of the tokens one wants, without padding in the network and without any prompt twice.

Sequences come padded; only their real tokens are run. Three layouts give the same numbers:

    padded   the rows as they are, under their attention mask
    packed   all real tokens end to end in one row, each sequence attending to itself
    shared   packed, and a prompt that several rows begin with is there once: each reply attends to prompt and itself

With dropout, rows that share a prompt share its noise.
"""

import math
from typing import Literal, NamedTuple, get_args

from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.batches import Sequences
from alignlab.errors import ModelError
from alignlab.models.backbone import body_of, body_states
from alignlab.models.embeddings import room_for_gradient
from alignlab.models.packing.packed import Packed, longest_packable, pack, packed_states

Layout = Literal["auto", "padded", "packed", "shared"]


def hidden_at(
    model: nn.Module, sequences: Sequences, where: Bool[Tensor, "B T"], *, layout: Layout = "auto"
) -> Float[Tensor, "n D"]:
    """Last hidden states at the True positions, row by row, as `hidden_states(...)[where]` gives them.

    `where` asks for real tokens; what it gives for padding means nothing. ModelError for a layout that the network
    cannot have; "auto" takes what costs least, and "padded" for such a network.
    """
    return body_hidden_at(body_of(model), sequences, where, layout=layout)


def body_hidden_at(
    body: nn.Module, sequences: Sequences, where: Bool[Tensor, "B T"], *, layout: Layout = "auto"
) -> Float[Tensor, "n D"]:
    """`hidden_at` of a network of which only the body is at hand."""
    if layout not in get_args(Layout):
        raise ModelError(f"layout={layout!r}: one of {', '.join(get_args(Layout))} is meant")
    packed = _automatic(body, sequences) if layout == "auto" else _asked_for(body, sequences, layout)
    with room_for_gradient(body):
        if packed is None:
            return body_states(body, sequences.input_ids, sequences.attention_mask)[where]
        return packed_states(body, packed).index_select(0, packed.index[where])


def _asked_for(body: nn.Module, sequences: Sequences, layout: Layout) -> Packed | None:
    """The batch as `layout` says (None: padded)."""
    packed = None if layout == "padded" else pack(sequences, min_prefix=1 if layout == "shared" else None)
    if packed is None:
        return None
    longest = longest_packable(body)
    if longest == 0:
        raise ModelError(
            f"layout={layout}: {type(body).__name__} cannot be packed (its attention is not sdpa, or it gave other "
            "numbers when it was asked on a few tokens); use layout=auto or layout=padded"
        )
    if packed.segments.longest > longest:
        raise ModelError(
            f"layout={layout}: a sequence of {packed.segments.longest} tokens is longer than the attention window of "
            f"{type(body).__name__}, {longest}; use layout=auto or layout=padded"
        )
    return packed


def _automatic(body: nn.Module, sequences: Sequences) -> Packed | None:
    """The batch in the cheapest layout (None: padded)."""
    costs = _costs(body, sequences)
    if costs is None or costs.saving(0) <= 0 or costs.saving(int(sequences.num_scored)) <= 0:
        return None  # however few tokens were left (the scored ones always are), it would not pay
    if (longest := longest_packable(body)) == 0:
        return None
    packed = pack(sequences, min_prefix=costs.min_prefix)
    if packed is None or packed.segments.longest > longest or costs.saving(packed.segments.num_tokens) <= 0:
        return None
    return packed


class _Costs(NamedTuple):
    """Microseconds of one forward and backward of a batch; see `_costs`."""

    padded_tokens: int
    num_rows: int
    num_layers: int
    token: float  # in one layer
    row: float  # in one layer, more than in a padded batch
    min_prefix: int

    def saving(self, num_tokens: int) -> float:
        """What running that many tokens saves over the padded batch, less a margin."""
        saved = (self.padded_tokens - num_tokens) * self.token - self.num_rows * self.row
        return self.num_layers * (saved - _MARGIN * self.padded_tokens * self.token) - _ARRANGE


_ARRANGE = 300.0  # arranging a batch of 8 rows on the CPU: 0.26 ms
_MARGIN = 0.05  # of the padded batch


def _costs(body: nn.Module, sequences: Sequences) -> _Costs | None:
    """What the layouts cost this network; None for one without a transformers config.

    Measured on one CPU thread (Zen 4), forward + backward, GPT-2 and Qwen2 of 2 layers, width D from 32 to 512, rows
    of 8 to 64 tokens. A token costs a layer 4, 12, 26, 82, 290 us at D = 32, 64, 128, 256, 512, near 0.1 D + 0.001 D^2
    (at 16 tokens a row and more); a row in the loop over pieces 40 to 60 us whatever D is; a prefix that is shared 90
    us more. So a row must save 14 tokens at D = 32, 6 at D = 64, 1 at D = 256 to be worth packing, and a prompt must
    have 22, 9, 1 to be worth sharing. At 4 x 256 (vocabulary 8192, prompts 20-200 tokens, replies about 100, 4 pairs)
    padded takes 1128 ms, packed 543, shared 438. On GPUs one kernel serves all pieces: a row costs nothing there.
    """
    if not isinstance(body, PreTrainedModel):
        return None
    num_rows, width = sequences.input_ids.shape
    config = body.config.get_text_config()
    token = 0.1 * config.hidden_size + 0.001 * config.hidden_size**2
    row, prefix = (0.0, 0.0) if sequences.input_ids.is_cuda else (60.0, 90.0)
    return _Costs(num_rows * width, num_rows, config.num_hidden_layers, token, row, math.ceil(prefix / token) or 1)
