"""The real tokens of a batch in one row, and the networks that can be run on such a row.

Symbols: B rows, T padded columns, N tokens of the packed row. A row's prompt is what stands before its first scored
token; rows that begin with the same prompt can have it once.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor, nn

from alignlab.batches import IGNORE, Sequences
from alignlab.models.backbone import body_states, device_of, evaluating, takes_positions
from alignlab.models.packing.attention import NAME, Segments, make_segments, row_multiple, running
from alignlab.models.packing.pieces import Piece

_NO_WINDOW = 1 << 62


class Packed(NamedTuple):
    """A packed row, and where in it each token of the batch went."""

    input_ids: Int[Tensor, "1 N"]
    position_ids: Int[Tensor, "1 N"]  # from 0 in each sequence
    index: Int[Tensor, "B T"]  # 0 at padding
    segments: Segments


def pack(sequences: Sequences, *, min_prefix: int | None = None) -> Packed | None:
    """The real tokens of a batch in one row; None if there are none.

    A prompt of at least `min_prefix` tokens that several rows begin with comes once (None: never). Arranged on the
    CPU, since the layers' loop needs the lengths there.
    """
    device = sequences.input_ids.device
    ids, mask, labels = (part.numpy(force=True) for part in sequences)
    rank = mask.cumsum(1) - 1  # (B, T): which of its row's real tokens it is, from 0
    sizes = mask.sum(1)
    sources, prefixes = _shared_prompts(ids, mask, _prompt_lengths(rank, labels), min_prefix)

    pieces: list[Piece] = []
    starts, place = np.zeros_like(sizes), np.zeros_like(sizes)  # of a row's own piece: its first token, its number
    length = 0
    for row in np.argsort(sources, kind="stable").tolist():  # the rows of a prompt together, the one that has it first
        if (own := int(sizes[row] - prefixes[row])) > 0:
            starts[row], place[row] = length, len(pieces)
            pieces.append(Piece(own, int(place[sources[row]]), int(prefixes[row])) if prefixes[row] else Piece(own))
            length += own
    if length == 0:
        return None
    if filler := -length % row_multiple(device):
        pieces.append(Piece(filler))

    prefix, start = prefixes[:, None], starts[:, None]
    index = np.where(rank < prefix, start[sources] + rank, start + rank - prefix) * mask
    packed_ids, positions = np.zeros((2, length + filler), dtype=np.int64)
    packed_ids[index[mask]] = ids[mask]  # a shared prompt is written once per row, each time the same tokens
    positions[index[mask]] = rank[mask]
    ids_row, positions_row, places = (torch.from_numpy(part).to(device) for part in (packed_ids, positions, index))
    return Packed(ids_row[None], positions_row[None], places, make_segments(tuple(pieces), device))


def packed_states(body: nn.Module, packed: Packed, windows: list[int] | None = None) -> Float[Tensor, "N D"]:
    """The last hidden state of every token of a packed row; the body's attention implementation must be `NAME`.

    `windows` gathers the attention spans of the layers that have one: such a layer is run as if it had none.
    """
    with running(packed.segments, windows):
        output = body(
            input_ids=packed.input_ids,
            attention_mask=torch.ones_like(packed.input_ids),
            position_ids=packed.position_ids,
            use_cache=False,
        )
    return output.last_hidden_state[0]


def longest_packable(body: Any) -> int:
    """Tokens of the longest sequence that this network may have packed; 0: none. It is asked once and remembered."""
    known: dict[str, int] = body.__dict__.setdefault("_longest_packable", {})  # goes along with a deep copy
    device = device_of(body).type
    if device not in known:
        known[device] = _probe(body)
    taken_back = known[device] and body.config._attn_implementation != NAME  # somebody chose another attention since
    return 0 if taken_back else known[device]


@torch.no_grad()
def _probe(body: Any) -> int:
    """Asks the network itself, on a few tokens, whether packing leaves every number as it is.

    That finds what no list of architectures could: attention code of its own, recurrence, look-ahead, positions that
    are not ids. On success its attention implementation is `NAME`.
    """
    before = getattr(getattr(body, "config", None), "_attn_implementation", None)
    if before not in ("sdpa", NAME) or not takes_positions(body) or not body._can_set_attn_implementation():
        return 0
    rows = _probe_rows(body)
    real, windows = rows.attention_mask, [_NO_WINDOW]
    with evaluating(body):
        expected = body_states(body, rows.input_ids, real)[real]
        body.set_attn_implementation(NAME)
        try:
            results = [body_states(body, rows.input_ids, real)[real]]
            for packed in (pack(rows), pack(rows, min_prefix=1)):
                assert packed is not None
                results.append(packed_states(body, packed, windows)[packed.index[real]])
        except Exception:  # whatever this network cannot do, it can still be run padded
            results = [torch.full_like(expected, torch.nan)]
    if all(_relative_error(result, expected) < _tolerance(body, expected) for result in results):
        return min(windows)
    body.set_attn_implementation(before)
    return 0


def _probe_rows(body: Any) -> Sequences:
    """Two replies to one prompt and a row of its own, padded on the left."""
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 7, 4], [0, 0, 5, 3, 1, 6]])
    real = torch.arange(6) >= torch.tensor([[0], [1], [2]])
    reply = torch.arange(6) >= torch.tensor([[3], [4], [5]])
    ids = ids % body.config.get_text_config().vocab_size
    return Sequences(*(part.to(device_of(body)) for part in (ids, real, ids.where(reply, IGNORE))))


def _relative_error(result: Float[Tensor, "n D"], expected: Float[Tensor, "n D"]) -> float:
    """The largest error of a token, over its size; NaN or infinite where either is."""
    error = torch.linalg.vector_norm((result - expected).double(), dim=-1)
    return (error / torch.linalg.vector_norm(expected.double(), dim=-1)).max().item()


def _tolerance(body: nn.Module, states: Tensor) -> float:
    """Rounding stays under it, a token that sees what it must not see comes out above it."""
    exact = all(part.dtype in (torch.float32, torch.float64) for part in (states, *body.parameters()))
    return 1e-3 if exact and not torch.is_autocast_enabled(states.device.type) else 1e-1


def _prompt_lengths(rank: ndarray, labels: ndarray) -> ndarray:
    """[B]: real tokens before the first scored one; none (0 or -1) for a row without scored tokens."""
    first = (labels != IGNORE).argmax(1)[:, None]  # column 0 where there is none
    return np.take_along_axis(rank, first, axis=1)[:, 0]


def _shared_prompts(ids: ndarray, mask: ndarray, prompts: ndarray, min_prefix: int | None) -> tuple[ndarray, ndarray]:
    """[B] twice: the first row with the same prompt, and how many of its tokens a row takes (that row itself: 0)."""
    rows = np.arange(len(ids))
    sources = rows.copy()
    first_with: dict[bytes, int] = {}
    for row in np.flatnonzero(prompts >= max(min_prefix, 1)).tolist() if min_prefix is not None else ():
        prompt = ids[row][mask[row]][: prompts[row]]
        sources[row] = first_with.setdefault(prompt.tobytes(), row)
    return sources, np.where(sources == rows, 0, prompts)
