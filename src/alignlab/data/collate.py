"""Encoded rows become tensors: training sequences padded on the right, prompts to generate from on the left.

Masks and labels come from lengths, never from the pad id: it may be the end token's.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from alignlab.batches import IGNORE, PreferenceBatch, PromptBatch, Sequences, SFTBatch
from alignlab.data.encoded import EncodedRows
from alignlab.rows import PreferenceRow, PromptRow

Batch = SFTBatch | PreferenceBatch | PromptBatch


def collate(rows: EncodedRows, index: Sequence[int], *, pad_id: int) -> Batch:
    """The batch of the rows numbered `index`: of the kind that their row type calls for."""
    if rows.row_type is PromptRow:
        return prompt_batch(rows, index, pad_id=pad_id)
    sequences = right_padded([table.row(i) for table in rows.tables for i in index], pad_id=pad_id)
    if rows.row_type is PreferenceRow:
        return PreferenceBatch(sequences, _numbers(index))
    return SFTBatch(sequences, _numbers(index))


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


def _numbers(index: Sequence[int]) -> Int[Tensor, "B"]:
    return torch.tensor(list(index), dtype=torch.int64)
