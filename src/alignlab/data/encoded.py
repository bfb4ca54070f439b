"""The encoded rows of one split, kept compactly: flat int32 arrays instead of lists of Python numbers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignlab.rows import Prompt, Row


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
class EncodedRows:
    """One split of a data set, ready to be collated. Row numbers count from 0 over the rows that were kept."""

    row_type: type[Row]
    tables: tuple[TokenTable, ...]  # one; for preference rows two: chosen, rejected
    prompts: tuple[Prompt, ...]  # as they stand in the data
    groups: np.ndarray  # (rows,) uint64: a hash of the prompt (of the text, where there is none)

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, index: np.ndarray) -> "EncodedRows":
        """Some of the rows, in the order of `index`."""
        tables = tuple(TokenTable.from_rows([table.row(i) for i in index]) for table in self.tables)
        return EncodedRows(self.row_type, tables, tuple(self.prompts[i] for i in index), self.groups[index])

    def digest(self) -> str:
        """sha256 over ids, lengths and what is scored: equal digests mean equal batches."""
        digest = hashlib.sha256(self.row_type.__name__.encode())
        for table in self.tables:
            for array in (table.starts, table.prompt_lengths, table.ids):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


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
