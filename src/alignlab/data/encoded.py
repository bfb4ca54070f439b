"""The encoded rows of one split, kept compactly: flat int32 arrays instead of lists of Python numbers."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alignlab.errors import DataError
from alignlab.rows import PairFacts, PreferenceRow, Prompt, PromptRow, Row, UnpairedRow

_CERTAIN = {"preference": 1.0, "weight": 1.0}
"""What a label says where a row says nothing: a column of these alone is not kept."""


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Sequences of different lengths end to end."""

    ids: np.ndarray  # (tokens,) int32
    starts: np.ndarray  # (rows + 1,) int64: row i is ids[starts[i]:starts[i + 1]]
    prompt_lengths: np.ndarray  # (rows,) int32: of that, the prompt's

    @classmethod
    def from_rows(cls, rows: Sequence[tuple[np.ndarray, int]]) -> "TokenTable":
        """From (ids, prompt_length) of each row."""
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        starts[1:] = np.cumsum([len(ids) for ids, _ in rows], dtype=np.int64)
        flat = np.concatenate([ids for ids, _ in rows]) if rows else np.zeros(0, dtype=np.int32)
        return cls(flat.astype(np.int32, copy=False), starts, np.array([n for _, n in rows], dtype=np.int32))

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def row(self, index: int) -> tuple[np.ndarray, int]:
        """(ids, prompt_length) of one row."""
        return self.ids[self.starts[index] : self.starts[index + 1]], int(self.prompt_lengths[index])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.diff(self.starts)


@dataclass(frozen=True, slots=True)
class PairColumns:
    """What pairs are known by beside their tokens: for evaluation; no batch has it, and no digest."""

    lengths: np.ndarray  # (rows, 2) int32: characters of chosen and rejected
    subsets: tuple[str | None, ...] = ()  # none where no row has one
    styles: tuple[tuple[int, int] | None, ...] = ()  # likewise

    @classmethod
    def from_rows(cls, rows: Sequence[PreferenceRow]) -> "PairColumns":
        """The columns of these rows."""
        lengths = np.array([(len(row.chosen), len(row.rejected)) for row in rows], dtype=np.int32).reshape(-1, 2)
        subsets, styles = tuple(row.subset for row in rows), tuple(row.styles for row in rows)
        return cls(
            lengths,
            subsets if any(subset is not None for subset in subsets) else (),
            styles if any(style is not None for style in styles) else (),
        )

    def take(self, index: np.ndarray) -> "PairColumns":
        """Some of the rows."""
        return PairColumns(
            self.lengths[index],
            tuple(self.subsets[i] for i in index) if self.subsets else (),
            tuple(self.styles[i] for i in index) if self.styles else (),
        )


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """One split of a data set, ready to be collated. Row numbers count from 0 over the rows that were kept."""

    row_type: type[Row]
    tables: tuple[TokenTable, ...]  # one; for preference rows two: chosen, rejected
    prompts: tuple[Prompt, ...]  # as they stand in the data
    groups: np.ndarray  # (rows,) uint64: a hash of the prompt (of the text, where there is none)
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)  # by name, each (rows,); see `labels_of`
    max_length: int | None = None  # tokens that rows were cut at
    pairs: PairColumns | None = None  # of preference rows

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row; of a pair, of both its sequences."""
        return np.stack([table.lengths for table in self.tables]).sum(0)

    def take(self, index: np.ndarray) -> "EncodedRows":
        """Some of the rows, in the order of `index`."""
        tables = tuple(TokenTable.from_rows([table.row(i) for i in index]) for table in self.tables)
        prompts, labels = tuple(self.prompts[i] for i in index), {name: x[index] for name, x in self.labels.items()}
        pairs = None if self.pairs is None else self.pairs.take(index)
        return EncodedRows(self.row_type, tables, prompts, self.groups[index], labels, self.max_length, pairs)

    @property
    def first_of_each_prompt(self) -> np.ndarray:
        """Row numbers, each prompt once (its first row), in order."""
        _, first = np.unique(self.groups, return_index=True)
        return np.sort(first)

    def replies(self, index: np.ndarray, tokenizer: Any) -> list[str]:
        """The replies of some of the rows as text, of a pair the chosen one; cut where the row was, no end token.

        DataError for rows of prompts alone.
        """
        if self.row_type is PromptRow:
            raise DataError("rows of prompts alone have no replies; expected SFTRow, PreferenceRow or UnpairedRow")
        found = [self.tables[0].row(i) for i in index.tolist()]
        return [tokenizer.decode(ids[length:].tolist(), skip_special_tokens=True) for ids, length in found]

    def pair_facts(self) -> list[PairFacts]:
        """What an evaluation may ask about each pair, by row number. DataError where the rows are no pairs."""
        if self.pairs is None:
            raise DataError(f"{self.row_type.__name__} rows have no facts of pairs; expected PreferenceRow")
        subsets = self.pairs.subsets or (None,) * len(self)
        found = []
        for i, turned in enumerate((self.labels.get("preference", np.ones(len(self))) < 0.5).tolist()):
            way = -1 if turned else 1  # the rejected reply is the likelier one
            styles = self.pairs.styles[i] if self.pairs.styles else None
            chosen, rejected = self.pairs.lengths[i].tolist()[::way]
            known = None if styles is None else (styles[::way][0], styles[::way][1])
            found.append(PairFacts(int(self.groups[i]), chosen, rejected, subset=subsets[i], styles=known))
        return found

    def statistics(self, train: "EncodedRows | None" = None) -> dict[str, float]:
        """Number of rows, mean tokens, and how many of the prompts `train` (other rows) has too."""
        counts: dict[str, float] = {"rows": len(self)}
        if not len(self):
            return counts
        prompt = np.concatenate([table.prompt_lengths for table in self.tables])
        total = np.concatenate([table.lengths for table in self.tables])
        counts["mean_prompt_tokens"] = float(prompt.mean())
        counts["mean_response_tokens"] = float((total - prompt).mean())
        counts["max_tokens"] = int(total.max())
        if train is not None:
            counts["prompts_in_train"] = int(np.isin(self.groups, train.groups).sum())
        return counts

    def digest(self) -> str:
        """sha256 over ids, lengths, what is scored and how it is labelled: equal digests mean equal batches."""
        digest = hashlib.sha256(self.row_type.__name__.encode())
        for table in self.tables:
            for array in (table.starts, table.prompt_lengths, table.ids):
                digest.update(np.ascontiguousarray(array).tobytes())
        for name in sorted(self.labels):
            digest.update(name.encode() + np.ascontiguousarray(self.labels[name]).tobytes())
        return digest.hexdigest()


def labels_of(rows: Sequence[Row], row_type: type[Row]) -> dict[str, np.ndarray]:
    """What rows say beside their texts: `preference` and `weight` of pairs (float32; neither where all are 1),
    `desirable` of unpaired rows (bool)."""
    if row_type is UnpairedRow:
        return {"desirable": np.array([row.desirable for row in rows if isinstance(row, UnpairedRow)], dtype=bool)}
    pairs = preference_rows(rows) if row_type is PreferenceRow else []
    columns = {name: np.array([getattr(row, name) for row in pairs], dtype=np.float32) for name in _CERTAIN}
    return {name: column for name, column in columns.items() if (column != _CERTAIN[name]).any()}


def preference_rows(rows: Sequence[Row]) -> list[PreferenceRow]:
    """The pairs among the rows: all of them, where the row type is theirs."""
    return [row for row in rows if isinstance(row, PreferenceRow)]


def group_of(prompt: Prompt, text: str) -> int:
    """64 bits that rows with the same prompt share; rows without one are told apart by their text."""
    key = repr(prompt) if prompt else f"text {text}"
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def hold_out(groups: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out) row numbers, about `fraction` held out (one prompt at least), no prompt on both sides.

    Chosen by the hash of the prompt alone: the same rows for every seed, so that runs of different seeds are judged
    on the same ones.
    """
    unique, counts = np.unique(groups, return_counts=True)  # sorted by hash: an order unrelated to the data's
    num_held = max(1, int((np.cumsum(counts) <= fraction * len(groups)).sum())) if len(unique) > 1 else 0
    is_held = np.isin(groups, unique[:num_held])
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)
