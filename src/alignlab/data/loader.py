"""What batch k is made of, and a loader that yields batches: nothing here depends on what was loaded before.

Step k of a run over finite data takes the rows of batch k mod steps_per_epoch of epoch k // steps_per_epoch, in an
order that is a pure function of (seed, epoch); a stream makes its rows from (seed, k). So the data position of a run is
its step number, and a resumed run needs nothing else. A process takes its `share` of each step's rows.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from alignlab.data.collate import Batch, collate
from alignlab.data.encoded import EncodedRows
from alignlab.data.encoding import SplitEncoder
from alignlab.data.sources import located_fresh_rows
from alignlab.data.tokenize import RememberingEncoder
from alignlab.errors import ConfigError, DataError
from alignlab.rows import FreshRows, Row


@lru_cache(maxsize=4)
def epoch_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of the rows for one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def step_rows(step: int, *, num_rows: int, batch_size: int, seed: int) -> list[int]:
    """Row numbers of one optimizer step, over all processes. The last batch of an epoch may be smaller."""
    epoch, batch = divmod(step, -(-num_rows // batch_size))
    return epoch_order(num_rows, seed, epoch)[batch * batch_size : (batch + 1) * batch_size].tolist()


def token_steps(lengths: np.ndarray, batch_tokens: int) -> int:
    """Steps of an epoch whose batches hold about `batch_tokens` tokens; the same number in every epoch."""
    return min(-(-int(lengths.sum()) // batch_tokens), len(lengths))


def step_rows_by_tokens(step: int, *, lengths: np.ndarray, batch_tokens: int, seed: int) -> list[int]:
    """Row numbers of one optimizer step that has its share of the epoch's tokens, at most `batch_tokens` and less than
    a row more. Every batch has a row."""
    num_batches = token_steps(lengths, batch_tokens)
    epoch, batch = divmod(step, num_batches)
    order = epoch_order(len(lengths), seed, epoch)
    bounds = _bounds(np.cumsum(lengths[order]), num_batches)
    return order[bounds[batch] : bounds[batch + 1]].tolist()


def _bounds(ends: np.ndarray, num_batches: int) -> list[int]:
    """Where each of `num_batches` runs of rows starts, by the tokens up to each row's end; then where the last ends."""
    bounds = [0]
    for batch in range(1, num_batches):
        wanted = int(np.searchsorted(ends, ends[-1] * batch / num_batches, side="right"))
        most = len(ends) - (num_batches - batch)  # the batches after this one need a row each
        bounds.append(min(max(wanted, bounds[-1] + 1), most))
    return [*bounds, len(ends)]


@dataclass(frozen=True, kw_only=True)
class ShuffledBatches:
    """Training batches of finite data: every row once an epoch."""

    rows: EncodedRows
    batch_size: int
    batch_tokens: int | None = None
    seed: int
    pad_id: int
    share: slice

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see each row once."""
        if self.batch_tokens is None:
            return -(-len(self.rows) // self.batch_size)
        return token_steps(self.rows.lengths, self.batch_tokens)

    def __call__(self, step: int) -> Batch:
        """This process's part of optimizer step `step`."""
        if not len(self.rows):
            raise DataError("the source has no training rows; give data.source.train")
        if self.batch_tokens is None:
            index = step_rows(step, num_rows=len(self.rows), batch_size=self.batch_size, seed=self.seed)
        else:
            lengths = self.rows.lengths
            index = step_rows_by_tokens(step, lengths=lengths, batch_tokens=self.batch_tokens, seed=self.seed)
        return collate(self.rows, index, pad_id=self.pad_id, share=self.share)

    def check_shares(self, world_size: int) -> None:
        """ConfigError unless every batch has a row for each of `world_size` processes."""
        if self.batch_tokens is not None:
            self._check_tokens(self.batch_tokens, world_size)
            return
        last = len(self.rows) % self.batch_size
        if not last and len(self.rows):
            _check_batch_size(self.batch_size, world_size)
        elif 0 < last < world_size:
            raise ConfigError(
                f"data.batch_size={self.batch_size} with {len(self.rows)} training rows: a batch of {last} rows "
                f"cannot be shared by {world_size} processes; set data.train_rows={len(self.rows) - last} "
                "or another batch size"
            )

    def _check_tokens(self, batch_tokens: int, world_size: int) -> None:
        """However the rows fall."""
        longest = int(self.rows.lengths.max(initial=0))
        # a batch has more than half of batch_tokens, less what a row may overhang
        least = longest if world_size == 1 else 2 * longest * world_size
        if batch_tokens < least:
            raise ConfigError(
                f"data.batch_tokens={batch_tokens}: the longest training row has {longest} tokens, and "
                f"{world_size} process(es) share a batch; expected at least {least}"
            )


@dataclass(frozen=True, kw_only=True)
class FreshBatches:
    """Training batches of a stream, its rows made, checked and encoded at each step.

    Row i of step k has the number k * batch_size + i. All processes make all rows of a step, then take their share.
    """

    source: FreshRows
    row_type: type[Row]
    encoder: RememberingEncoder
    max_length: int
    batch_size: int
    seed: int
    pad_id: int
    share: slice

    def __call__(self, step: int) -> Batch:
        """This process's part of optimizer step `step`. DataError for a row that cannot be used."""
        located = located_fresh_rows(self.source, self.row_type, step=step, batch_size=self.batch_size, seed=self.seed)
        encoder = SplitEncoder(self.encoder, self.row_type, self.max_length, skip_bad=True)
        rows = encoder.encode(iter(located), None)
        if encoder.bad_rows:
            raise DataError(f"{encoder.bad_rows[0]}. A source that makes fresh rows must make usable ones")
        batch = collate(rows, range(self.batch_size), pad_id=self.pad_id, share=self.share)
        return batch._replace(rows=batch.rows + step * self.batch_size)

    def check_shares(self, world_size: int) -> None:
        """ConfigError unless a batch has a row for each of `world_size` processes."""
        _check_batch_size(self.batch_size, world_size)


@dataclass(frozen=True, kw_only=True)
class OrderedBatches:
    """Batches of held-out rows, in the order of the data."""

    rows: EncodedRows
    batch_size: int
    pad_id: int
    share: slice

    def __call__(self, number: int) -> Batch:
        """This process's part of batch `number`."""
        return collate(self.rows, self._index(number), pad_id=self.pad_id, share=self.share)

    @property
    def numbers(self) -> list[int]:
        """The batches that this process has a part of."""
        batches = range(-(-len(self.rows) // self.batch_size))
        return [number for number in batches if len(self._index(number)[self.share])]

    def _index(self, number: int) -> range:
        start = number * self.batch_size
        return range(start, min(start + self.batch_size, len(self.rows)))


class Batches(Dataset[Batch]):
    """Indexed by number; makes whole batches, in the main process or a worker alike."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self._make = make

    def __getitem__(self, number: int) -> Batch:
        return self._make(number)


def make_loader(numbers: Iterable[int], make: Callable[[int], Batch], *, num_workers: int) -> DataLoader[Batch]:
    """A loader of the batches `make(k)`. Its own generator: a stock one draws a seed from the global RNG every pass."""
    return DataLoader(
        Batches(make),
        sampler=numbers,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=num_workers,
        generator=torch.Generator(),
    )


def _as_is(batch: Any) -> Any:
    return batch


def _check_batch_size(batch_size: int, world_size: int) -> None:
    if batch_size < world_size:
        raise ConfigError(f"data.batch_size={batch_size}: a batch cannot be shared by {world_size} processes; raise it")
