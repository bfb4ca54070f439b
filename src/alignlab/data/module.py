"""One LightningDataModule for every source: rows are read, checked and encoded once, then served by step number.

`prepare()` does the work; after it `train_batch(k)` is the batch of optimizer step k, a pure function of (seed, k).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

import lightning as L
import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from alignlab.batches import PromptBatch
from alignlab.data.collate import Batch, collate, prompt_batch
from alignlab.data.encoded import EncodedRows, hold_out
from alignlab.data.encoding import SplitEncoder
from alignlab.data.loader import make_loader, step_rows
from alignlab.data.sources import located_rows
from alignlab.data.templates import Template
from alignlab.data.tokenize import TextEncoder
from alignlab.errors import ConfigError, DataError
from alignlab.rows import Prompt, Row, RowSource, Split

Gold = Callable[[Sequence[Prompt], Sequence[str]], Tensor]  # a known reward
SPLITS: tuple[Split, ...] = get_args(Split)


class DataModule(L.LightningDataModule):
    """Rows of one source for one method and one tokenizer.

    `batch_size` counts rows, pairs or prompts of one optimizer step over all processes; each process gets its share.
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
        self.tokenizer = tokenizer
        self.row_type = row_type
        self.seed = seed
        self.max_length = max_length
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.max_new_tokens = max_new_tokens
        self.num_workers = num_workers
        self.gold = gold
        self.bad_rows: list[str] = []
        self.statistics: dict[str, dict[str, float]] = {}
        self._limits: dict[Split, int | None] = {"train": train_rows, "validation": validation_rows, "test": test_rows}
        self._validation_fraction = validation_fraction
        self._on_bad_row = on_bad_row
        self._check(max_prompt_length)
        self._encoder = TextEncoder(
            tokenizer,
            stop_token_ids=tuple(stop_token_ids),
            template=template,
            append_eos=append_eos,
            add_bos=add_bos,
            max_length=max_length,
            max_prompt_length=max_prompt_length,
        )
        self._encoded: dict[Split, EncodedRows] = {}
        self._world_size, self._rank = 1, 0
        self._steps: range | None = None

    # -- rows --------------------------------------------------------------------------------------------------------
    def prepare(self, world_size: int = 1, rank: int = 0) -> None:
        """Read and encode all splits (once) and take the share of process `rank` of `world_size`."""
        if not 0 <= rank < world_size:
            raise ConfigError(f"process {rank} of {world_size}: the rank must be from 0 to {world_size - 1}")
        self._world_size, self._rank = world_size, rank
        for split in SPLITS:
            self.encoded(split)

    def setup(self, stage: str | None = None) -> None:
        """Lightning's hook: `prepare` for the processes of its trainer."""
        if self.trainer is not None:
            self.prepare(self.trainer.world_size, self.trainer.global_rank)

    def encoded(self, split: Split) -> EncodedRows:
        """The rows of one split, read and encoded at the first call."""
        if split not in SPLITS:
            raise ConfigError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
        if split not in self._encoded:
            parts: tuple[Split, ...] = (split,)
            if self._validation_fraction > 0 and split != "test":
                parts = ("train", "validation")
            for part in parts:
                self._encoded[part] = self._encode(part)
            if len(parts) == 2 and not len(self._encoded["validation"]):
                self._hold_out_validation()
            for part in parts:
                self._count(part)
        return self._encoded[split]

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
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see each training row once; the last may be smaller."""
        return -(-self.num_train // self.batch_size)

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
        return collate(self.train_rows, self._step_rows(step), pad_id=self.pad_id)

    def set_range(self, start_step: int, total_steps: int) -> None:
        """Let the training loader yield the batches of steps start_step, ..., total_steps - 1, as one long pass."""
        self._check_shares()
        self._steps = range(start_step, max(start_step, total_steps))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the steps that `set_range` gave; one epoch if it was not called."""
        if self._steps is None:
            self.set_range(0, self.steps_per_epoch)
        assert self._steps is not None
        return self._loader(self.train_rows, self._steps, self._step_rows)

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
        """All rows of a split (or the first `limit`) in order, whole batches: not divided over processes."""
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
        _, first = np.unique(rows.groups, return_index=True)
        for index in _chunks(np.sort(first)[:limit].tolist(), batch_size or self.eval_batch_size):
            yield prompt_batch(rows, index, pad_id=self.pad_id)

    @property
    def pad_id(self) -> int:
        """What fills the rectangle; never read, since masks come from lengths."""
        own = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((i for i in own if i is not None), 0)

    # -- inside ------------------------------------------------------------------------------------------------------
    def _encode(self, split: Split) -> EncodedRows:
        encoder = SplitEncoder(self._encoder, self.row_type, self.max_length, self._on_bad_row == "skip")
        rows = encoder.encode(located_rows(self.source, self.row_type, split), self._limits[split])
        if encoder.bad_rows and not len(rows):
            raise DataError(f"no usable row in the {split} split; the first: {encoder.bad_rows[0]}")
        self.bad_rows += encoder.bad_rows
        self.statistics[split] = {"dropped": len(encoder.bad_rows), **encoder.counts}
        return rows

    def _hold_out_validation(self) -> None:
        kept, held = hold_out(self._encoded["train"].groups, self._validation_fraction)
        held = held[: self._limits["validation"]]
        self._encoded["validation"] = self._encoded["train"].take(held)
        self._encoded["train"] = self._encoded["train"].take(kept)

    def _count(self, split: Split) -> None:
        """rows, mean tokens, and how many of the prompts training has seen."""
        rows, counts = self._encoded[split], self.statistics[split]
        counts["rows"] = len(rows)
        if not len(rows):
            return
        prompt = np.concatenate([table.prompt_lengths for table in rows.tables])
        total = np.concatenate([table.lengths for table in rows.tables])
        counts["mean_prompt_tokens"] = float(prompt.mean())
        counts["mean_response_tokens"] = float((total - prompt).mean())
        counts["max_tokens"] = int(total.max())
        if split != "train" and "train" in self._encoded:
            counts["prompts_in_train"] = int(np.isin(rows.groups, self._encoded["train"].groups).sum())

    def _share(self, index: list[int]) -> list[int]:
        return index[self._rank :: self._world_size]

    def _step_rows(self, step: int) -> list[int]:
        if not self.num_train:
            raise DataError("the source has no training rows; give data.source.train")
        return self._share(step_rows(step, num_rows=self.num_train, batch_size=self.batch_size, seed=self.seed))

    def _check_shares(self) -> None:
        smallest = self.num_train % self.batch_size or self.batch_size
        if self.num_train and smallest < self._world_size:
            raise ConfigError(
                f"data.batch_size={self.batch_size} with {self.num_train} training rows: a batch of {smallest} rows "
                f"cannot be shared by {self._world_size} processes; set data.train_rows={self.num_train - smallest} "
                "or another batch size"
            )

    def _eval_loader(self, split: Split) -> DataLoader[Batch] | list[Any]:
        rows = self.encoded(split)
        if not len(rows):
            return []
        steps = range(-(-len(rows) // self.eval_batch_size))
        return self._loader(rows, steps, partial(self._eval_rows, len(rows)))

    def _eval_rows(self, num_rows: int, batch: int) -> list[int]:
        start = batch * self.eval_batch_size
        return self._share(list(range(start, min(start + self.eval_batch_size, num_rows))))

    def _loader(self, rows: EncodedRows, steps: range, batch: Callable[[int], list[int]]) -> DataLoader[Batch]:
        return make_loader(rows, steps, batch, pad_id=self.pad_id, num_workers=self.num_workers)

    def _check(self, max_prompt_length: int | None) -> None:
        """ConfigError naming every setting that cannot work."""
        faults = []
        if self.max_length < 2:
            faults.append(f"data.max_length={self.max_length}: expected at least 2 tokens")
        if max_prompt_length is not None and not 1 <= max_prompt_length < self.max_length:
            faults.append(
                f"data.max_prompt_length={max_prompt_length}: expected null or from 1 to "
                f"data.max_length - 1 = {self.max_length - 1}"
            )
        for name, value, least in (
            ("batch_size", self.batch_size, 1),
            ("eval_batch_size", self.eval_batch_size, 1),
            ("max_new_tokens", self.max_new_tokens, 1),
            ("num_workers", self.num_workers, 0),
            ("seed", self.seed, 0),
            *((f"{split}_rows", limit, 1) for split, limit in self._limits.items()),
        ):
            if value is not None and value < least:
                faults.append(f"data.{name}={value}: expected at least {least}")
        if not 0 <= self._validation_fraction < 1:
            faults.append(f"data.validation_fraction={self._validation_fraction}: expected from 0 to below 1")
        if self._on_bad_row not in ("error", "skip"):
            faults.append(f"data.on_bad_row={self._on_bad_row}: expected error or skip")
        if faults:
            raise ConfigError("\n".join(faults))


def _chunks(index: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(index), size):
        yield list(index[start : start + size])
