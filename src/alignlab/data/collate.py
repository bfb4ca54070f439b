"""Encoded rows become tensors: training sequences padded on the right, prompts to generate from on the left.

Masks and labels come from lengths, never from the pad id: it may be the end token's.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from alignlab.batches import IGNORE, PreferenceBatch, PromptBatch, Sequences, SFTBatch, UnpairedBatch
from alignlab.data.encoded import EncodedRows
from alignlab.rows import PreferenceRow, PromptRow, UnpairedRow

Batch = SFTBatch | PreferenceBatch | PromptBatch | UnpairedBatch
WHOLE = slice(None)


def collate(rows: EncodedRows, index: Sequence[int], *, pad_id: int, share: slice = WHOLE) -> Batch:
    """The batch of the rows numbered `index`: of the kind that their row type calls for; of that, this process's share.

    Which reply a prompt is mismatched with is settled over all of `index`, so it is the same however that is shared.
    """
    own = index[share]
    if rows.row_type is PromptRow:
        return prompt_batch(rows, own, pad_id=pad_id)
    sequences = right_padded([table.row(i) for table in rows.tables for i in own], pad_id=pad_id)
    labels = {name: torch.from_numpy(column[np.asarray(own, dtype=np.int64)]) for name, column in rows.labels.items()}
    if rows.row_type is PreferenceRow:
        return PreferenceBatch(sequences, _numbers(own), **labels)
    if rows.row_type is UnpairedRow:
        others = mismatched(rows.groups, index)
        mixed = [_crossed(rows, i, j) for i, j in zip(own, others[share], strict=True)] if others else None
        kl_sequences = None if mixed is None else right_padded(mixed, pad_id=pad_id)
        return UnpairedBatch(sequences, _numbers(own), labels["desirable"], kl_sequences)
    return SFTBatch(sequences, _numbers(own))


def prompt_batch(rows: EncodedRows, index: Sequence[int], *, pad_id: int) -> PromptBatch:
    """The prompts alone of rows of any type, padded on the left."""
    ids = [tokens[:length] for tokens, length in (rows.tables[0].row(i) for i in index)]
    width = max((len(row) for row in ids), default=0)
    input_ids = np.full((len(ids), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(ids), width), dtype=bool)
    for b, row in enumerate(ids):
        input_ids[b, width - len(row) :] = row
        mask[b, width - len(row) :] = True
    prompts = tuple(rows.prompts[i] for i in index)
    return PromptBatch(torch.from_numpy(input_ids), torch.from_numpy(mask), _numbers(index), prompts)


def right_padded(rows: Sequence[tuple[np.ndarray, int]], *, pad_id: int) -> Sequences:
    """(ids, prompt_length) of each row as one rectangle; what follows the prompt is scored."""
    width = max((len(ids) for ids, _ in rows), default=0)
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    labels = np.full((len(rows), width), IGNORE, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=bool)
    for b, (ids, prompt_length) in enumerate(rows):
        input_ids[b, : len(ids)] = ids
        labels[b, prompt_length : len(ids)] = ids[prompt_length:]
        mask[b, : len(ids)] = True
    return Sequences(torch.from_numpy(input_ids), torch.from_numpy(mask), torch.from_numpy(labels))


def mismatched(groups: np.ndarray, index: Sequence[int]) -> list[int]:
    """For each row of `index`, the row whose reply its prompt is paired with; no row where there is nobody else.

    All replies move on by the same number of rows (cyclic): the least that leaves the fewest replies with a prompt of
    their own, which is 1 where all prompts differ. A batch of one row borrows the reply of the data's next row.
    """
    if len(index) == 1 and len(groups) > 1:
        return [(index[0] + 1) % len(groups)]
    own = groups[np.asarray(index, dtype=np.int64)]
    kept = [int((own == np.roll(own, -shift)).sum()) for shift in range(1, len(own))]
    if not kept:
        return []
    return np.roll(index, -(1 + kept.index(min(kept)))).tolist()


def _crossed(rows: EncodedRows, own: int, other: int) -> tuple[np.ndarray, int]:
    """The prompt of row `own` with the reply of row `other`, token by token, cut where rows are."""
    (prompt, length), (replied, start) = rows.tables[0].row(own), rows.tables[0].row(other)
    return np.concatenate([prompt[:length], replied[start:]])[: rows.max_length], length


def _numbers(index: Sequence[int]) -> Int[Tensor, "B"]:
    return torch.tensor(list(index), dtype=torch.int64)
