"""Which rows make up step k, and a loader that yields them: nothing here depends on what was loaded before.

Step k of a run takes the rows of batch k mod steps_per_epoch of epoch k // steps_per_epoch, in an order that is a pure
function of (seed, epoch). So the data position of a run is its step number, and a resumed run needs nothing else.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from alignlab.data.collate import Batch, collate
from alignlab.data.encoded import EncodedRows


@lru_cache(maxsize=4)
def epoch_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of the rows for one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def step_rows(step: int, *, num_rows: int, batch_size: int, seed: int) -> list[int]:
    """Row numbers of one optimizer step, over all processes. The last batch of an epoch may be smaller."""
    epoch, batch = divmod(step, -(-num_rows // batch_size))
    return epoch_order(num_rows, seed, epoch)[batch * batch_size : (batch + 1) * batch_size].tolist()


class BatchDataset(Dataset[Batch]):
    """Indexed by lists of row numbers; yields whole batches, in the main process or a worker alike."""

    def __init__(self, rows: EncodedRows, *, pad_id: int) -> None:
        self._rows = rows
        self._collate: Callable[..., Batch] = partial(collate, pad_id=pad_id)

    def __getitem__(self, index: Sequence[int]) -> Batch:
        return self._collate(self._rows, index)

    def __len__(self) -> int:
        return len(self._rows)


class IndexLists(Sampler[list[int]]):
    """Yields `batch(k)` for k in `steps`, unless empty on this process. Stateless: each pass is the same."""

    def __init__(self, steps: range, batch: Callable[[int], list[int]]) -> None:
        self._steps = steps
        self._batch = batch

    def __iter__(self) -> Iterator[list[int]]:
        return (index for index in map(self._batch, self._steps) if index)

    def __len__(self) -> int:
        return len(self._steps)


def make_loader(
    rows: EncodedRows, steps: range, batch: Callable[[int], list[int]], *, pad_id: int, num_workers: int
) -> DataLoader[Batch]:
    """A loader of ready batches. Its own generator: a stock one draws a seed from the global RNG on every pass."""
    return DataLoader(
        BatchDataset(rows, pad_id=pad_id),
        sampler=IndexLists(steps, batch),
        batch_size=None,
        collate_fn=_as_is,
        num_workers=num_workers,
        generator=torch.Generator(),
    )


def _as_is(batch: Any) -> Any:
    return batch
