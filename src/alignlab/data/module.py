"""One LightningDataModule for every source: rows are read, checked and encoded once, then served by step number.

`prepare()` does the work; after it `train_batch(k)` is the batch of optimizer step k, a pure function of (seed, k).
Where the source is a stream (see `rows.FreshRows`) that batch is made at step k, and there are no epochs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

from alignlab.batches import PromptBatch
from alignlab.data.collate import Batch, collate, prompt_batch
from alignlab.data.encoded import EncodedRows
from alignlab.data.loader import FreshBatches, OrderedBatches, ShuffledBatches, make_loader
from alignlab.data.splits import Splits, split_faults
from alignlab.data.templates import Template
from alignlab.data.tokenize import RememberingEncoder, TextEncoder
from alignlab.errors import ConfigError
from alignlab.rows import Prompt, Row, RowSource, Split, stream_of

Gold = Callable[[Sequence[Prompt], Sequence[str]], Tensor]  # a known reward


class DataModule(L.LightningDataModule):
    """Rows of one source for one method and one tokenizer.

    `batch_size` counts rows, pairs or prompts of one optimizer step over all processes; each process gets its share.
    `batch_tokens` cuts an epoch into steps of about so many tokens instead (prompts and replies; pairs have two).
    With `on_bad_row="skip"` rows that cannot be used are left out and listed in `bad_rows`. `gold` is the true reward
    where one is known, kept for whoever evaluates. The rules of encoding are those of `data/tokenize.py`.
    """

    def __init__(
        self,
        *,
        source: RowSource,
        tokenizer: Any,
        row_type: type[Row],
        stop_token_ids: Sequence[int],
        seed: int,
        max_length: int,
        batch_size: int,
        batch_tokens: int | None = None,
        max_prompt_length: int | None = None,
        template: Template = "auto",
        append_eos: bool = True,
        add_bos: Literal["auto"] | bool = "auto",
        on_bad_row: Literal["error", "skip"] = "error",
        train_rows: int | None = None,
        validation_rows: int | None = None,
        test_rows: int | None = None,
        validation_fraction: float = 0.0,
        eval_batch_size: int | None = None,
        max_new_tokens: int = 64,
        num_workers: int = 0,
        gold: Gold | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.stream = stream_of(source)
        self.tokenizer = tokenizer
        self.row_type = row_type
        self.seed = seed
        self.max_length = max_length
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.eval_batch_size = eval_batch_size or batch_size
        self.max_new_tokens = max_new_tokens
        self.num_workers = num_workers
        self.gold = gold
        limits: dict[Split, int | None] = {"train": train_rows, "validation": validation_rows, "test": test_rows}
        faults = split_faults(limits, validation_fraction, on_bad_row, is_stream=self.stream is not None)
        if self.stream is not None and batch_tokens is not None:
            faults.append(f"data.batch_tokens={batch_tokens}: the source makes fresh rows at each step; set batch_size")
        self._check(max_prompt_length, faults)
        self._encoder = TextEncoder(
            tokenizer,
            stop_token_ids=tuple(stop_token_ids),
            template=template,
            append_eos=append_eos,
            add_bos=add_bos,
            max_length=max_length,
            max_prompt_length=max_prompt_length,
        )
        self._remembering = RememberingEncoder(self._encoder)
        self._splits = Splits(
            source=source,
            row_type=row_type,
            encoder=self._encoder,
            max_length=max_length,
            skip_bad=on_bad_row == "skip",
            limits=limits,
            validation_fraction=validation_fraction,
        )
        self.bad_rows, self.statistics = self._splits.bad_rows, self._splits.statistics
        self._world_size, self._rank = 1, 0
        self._steps: range | None = None

    # -- rows --------------------------------------------------------------------------------------------------------
    def prepare(self, world_size: int = 1, rank: int = 0) -> None:
        """Read and encode all splits (once) and take the share of process `rank` of `world_size`."""
        if not 0 <= rank < world_size:
            raise ConfigError(f"process {rank} of {world_size}: the rank must be from 0 to {world_size - 1}")
        self._world_size, self._rank = world_size, rank
        for split in self._splits.names:
            self.encoded(split)

    def setup(self, stage: str | None = None) -> None:
        """Lightning's hook: `prepare` for the processes of its trainer."""
        if self.trainer is not None:
            self.prepare(self.trainer.world_size, self.trainer.global_rank)

    def encoded(self, split: Split) -> EncodedRows:
        """The rows of one split, read and encoded at the first call."""
        return self._splits.encoded(split)

    @property
    def train_rows(self) -> EncodedRows:
        """Encoded training rows, `row i` being the one that batches call i."""
        return self.encoded("train")

    @property
    def validation_rows(self) -> EncodedRows:
        """Encoded validation rows: the source's own, else those held out of training; may be none."""
        return self.encoded("validation")

    @property
    def test_rows(self) -> EncodedRows:
        """Encoded test rows; may be none."""
        return self.encoded("test")

    @property
    def num_train(self) -> int:
        """Training rows after limits and left-out rows."""
        return len(self.train_rows)

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps that see each training row once; the last may be smaller. None for a stream."""
        return self._shuffled(self._share).steps_per_epoch if self.stream is None else None

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt of all splits, as it is sampled from; of a stream, of those held out."""
        tables = [table for split in self._splits.names for table in self.encoded(split).tables]
        return max(int(table.prompt_lengths.max(initial=0)) for table in tables)

    def digest(self, split: Split = "train") -> str:
        """Content hash of a split's ids and labels: what a cache of per-row results is keyed by."""
        return self.encoded(split).digest()

    @property
    def fingerprint(self) -> str | None:
        """Identity of the source (content of local files, revision of hub data); None where it makes its own rows."""
        fingerprint: Callable[[], str] | None = getattr(self.source, "fingerprint", None)
        return fingerprint() if fingerprint is not None else None

    # -- batches -----------------------------------------------------------------------------------------------------
    def train_batch(self, step: int) -> Batch:
        """This process's part of optimizer step `step` (from 0), whatever was loaded before."""
        return self._training(self._share)(step)

    def set_range(self, start_step: int, total_steps: int) -> None:
        """Let the training loader yield the batches of steps start_step, ..., total_steps - 1, as one long pass."""
        self._training(self._share).check_shares(self._world_size)
        self._steps = range(start_step, max(start_step, total_steps))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the steps that `set_range` gave; one epoch if it was not called."""
        if self._steps is None:
            if self.steps_per_epoch is None:
                raise ConfigError("the source makes fresh rows at each step: set_range must say how many")
            self.set_range(0, self.steps_per_epoch)
        assert self._steps is not None
        return make_loader(self._steps, self._training(self._share), num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """All validation rows in order, this process's part of each batch; an empty list where there are none."""
        return self._eval_loader("validation")

    def validation_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Same as `val_dataloader`, which is Lightning's name for it."""
        return self._eval_loader("validation")

    def test_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """All test rows in order, this process's part of each batch; an empty list where there are none."""
        return self._eval_loader("test")

    def batches(self, split: Split, *, limit: int | None = None) -> Iterator[Batch]:
        """All rows of a split (or the first `limit`) in order, whole batches: not divided over processes.

        The training rows of a stream are those of its first steps, as many whole batches as hold `limit` rows.
        """
        if split == "train" and self.stream is not None and limit is not None:
            yield from map(self._training(slice(None)), range(-(-limit // self.batch_size)))
            return
        rows = self.encoded(split)
        for index in _chunks(range(len(rows))[:limit], self.eval_batch_size):
            yield collate(rows, index, pad_id=self.pad_id)

    def prompt_batches(
        self, split: Split, *, limit: int | None = None, batch_size: int | None = None
    ) -> Iterator[PromptBatch]:
        """Prompts of a split to sample replies to, in order, whatever the row type; not divided over processes.

        Each prompt once, though several pairs may share it (empty prompts are all kept). `rows` are row numbers.
        """
        rows = self.encoded(split)
        for index in _chunks(rows.first_of_each_prompt[:limit].tolist(), batch_size or self.eval_batch_size):
            yield prompt_batch(rows, index, pad_id=self.pad_id)

    def replies(self, split: Split, *, limit: int | None = None) -> list[str]:
        """What the data itself answers to the prompts of `prompt_batches`, in order; see `EncodedRows.replies`."""
        rows = self.encoded(split)
        return rows.replies(rows.first_of_each_prompt[:limit], self.tokenizer)

    @property
    def pad_id(self) -> int:
        """What fills the rectangle; never read, since masks come from lengths."""
        own = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((i for i in own if i is not None), 0)

    # -- inside ------------------------------------------------------------------------------------------------------
    @property
    def _share(self) -> slice:
        """Of the rows of a batch, those of this process."""
        return slice(self._rank, None, self._world_size)

    def _training(self, share: slice) -> ShuffledBatches | FreshBatches:
        """The training batches by step."""
        if self.stream is None:
            return self._shuffled(share)
        return FreshBatches(
            source=self.stream,
            row_type=self.row_type,
            encoder=self._remembering,
            max_length=self.max_length,
            batch_size=self.batch_size,
            seed=self.seed,
            pad_id=self.pad_id,
            share=share,
        )

    def _shuffled(self, share: slice) -> ShuffledBatches:
        return ShuffledBatches(
            rows=self.train_rows,
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            seed=self.seed,
            pad_id=self.pad_id,
            share=share,
        )

    def _eval_loader(self, split: Split) -> DataLoader[Batch] | list[Any]:
        rows = self.encoded(split)
        if not len(rows):
            return []
        make = OrderedBatches(rows=rows, batch_size=self.eval_batch_size, pad_id=self.pad_id, share=self._share)
        return make_loader(make.numbers, make, num_workers=self.num_workers)

    def _check(self, max_prompt_length: int | None, faults: list[str]) -> None:
        """ConfigError naming every setting that cannot work, `faults` among them."""
        if self.max_length < 2:
            faults.append(f"data.max_length={self.max_length}: expected at least 2 tokens")
        if max_prompt_length is not None and not 1 <= max_prompt_length < self.max_length:
            faults.append(
                f"data.max_prompt_length={max_prompt_length}: expected null or from 1 to "
                f"data.max_length - 1 = {self.max_length - 1}"
            )
        for name, value, least in (
            ("batch_size", self.batch_size, 1),
            ("batch_tokens", self.batch_tokens or 1, 1),
            ("eval_batch_size", self.eval_batch_size, 1),
            ("max_new_tokens", self.max_new_tokens, 1),
            ("num_workers", self.num_workers, 0),
            ("seed", self.seed, 0),
        ):
            if value < least:
                faults.append(f"data.{name}={value}: expected at least {least}")
        if faults:
            raise ConfigError("\n".join(faults))


def _chunks(index: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(index), size):
        yield list(index[start : start + size])
