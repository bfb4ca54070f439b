"""Rows of a source become `EncodedRows`: encoded once, in batches; bad ones refused or left out; counted."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from alignlab.data.encoded import EncodedRows, PairColumns, TokenTable, group_of, labels_of, preference_rows
from alignlab.data.reading import Located
from alignlab.data.tokenize import Encoded, RememberingEncoder, TextEncoder, check_encoded
from alignlab.errors import DataError
from alignlab.rows import PreferenceRow, PromptRow, Row, SFTRow, UnpairedRow

CHUNK = 2048
"""Rows that are tokenised in one call."""

Item = tuple[tuple[Encoded, ...], Row] | DataError


@dataclass
class SplitEncoder:
    """Encodes one split. `bad_rows` has a message for each row that was left out."""

    encoder: TextEncoder | RememberingEncoder
    row_type: type[Row]
    max_length: int
    skip_bad: bool
    bad_rows: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"truncated": 0, "split_boundary": 0})

    def encode(self, located: Iterator[Located], limit: int | None) -> EncodedRows:
        """The first `limit` usable rows (all of them if None)."""
        tables: list[list[tuple[np.ndarray, int]]] = [[] for _ in range(2 if self.row_type is PreferenceRow else 1)]
        rows: list[Row] = []
        while limit is None or len(rows) < limit:
            chunk = list(islice(located, CHUNK if limit is None else min(CHUNK, limit - len(rows))))
            if not chunk:
                break
            for (where, _), item in zip(chunk, self._encode_chunk([value for _, value in chunk]), strict=True):
                if isinstance(item, DataError):
                    self._refuse(where, item)
                    continue
                sequences, row = item
                for table, sequence in zip(tables, sequences, strict=True):
                    table.append((np.array(sequence.input_ids, dtype=np.int32), sequence.prompt_length))
                    self.counts["truncated"] += sequence.is_truncated
                    self.counts["split_boundary"] += sequence.is_split
                rows.append(row)
        made = tuple(TokenTable.from_rows(table) for table in tables)
        prompts = tuple(row.prompt for row in rows)
        groups = np.array([group_of(row.prompt, _reply_of(row)) for row in rows], dtype=np.uint64)
        pairs = PairColumns.from_rows(preference_rows(rows)) if self.row_type is PreferenceRow else None
        labels = labels_of(rows, self.row_type)
        return EncodedRows(self.row_type, made, prompts, groups, labels, self.max_length, pairs)

    def _refuse(self, where: str, error: DataError) -> None:
        if not self.skip_bad:
            raise DataError(f"{where}: {error}. Mend the row, or set data.on_bad_row=skip to leave such rows out")
        self.bad_rows.append(f"{where}: {error}")

    def _encode_chunk(self, values: list[Any]) -> list[Item]:
        try:
            return self._encode_rows(values)
        except DataError:  # a chat template refused one of the dialogues: find out which
            return [item for value in values for item in self._encode_alone(value)]

    def _encode_alone(self, value: Any) -> list[Item]:
        try:
            return self._encode_rows([value])
        except DataError as error:
            return [error]

    def _encode_rows(self, values: list[Any]) -> list[Item]:
        good = [value for value in values if not isinstance(value, DataError)]
        if self.row_type is PromptRow:
            ids = self.encoder.prompts([row.prompt for row in good])
            encoded = iter([(Encoded(row, len(row), False, False),) for row in ids])
        else:
            prompts = [row.prompt for row in good]
            chosen = [_reply_of(row) for row in good]
            if self.row_type is PreferenceRow:  # in one call, which encodes the shared prompts once
                both = self.encoder.replies(prompts * 2, chosen + [row.rejected for row in good])
                encoded = iter(list(zip(both[: len(good)], both[len(good) :], strict=True)))
            else:
                encoded = iter([(sequence,) for sequence in self.encoder.replies(prompts, chosen)])
        return [value if isinstance(value, DataError) else self._checked(next(encoded), value) for value in values]

    def _checked(self, sequences: tuple[Encoded, ...], row: Row) -> Item:
        try:
            if isinstance(row, PromptRow):
                if len(sequences[0].input_ids) >= self.max_length:
                    check_encoded(sequences[0], "prompt", self.max_length)
                return sequences, row
            fields = ("chosen", "rejected") if isinstance(row, PreferenceRow) else ("response",)
            for name, sequence in zip(fields, sequences, strict=True):
                check_encoded(sequence, name, self.max_length)
        except DataError as error:
            return error
        if len(sequences) == 2 and sequences[0].input_ids == sequences[1].input_ids:
            return DataError(
                f"fields 'chosen' and 'rejected': the same tokens, cut at data.max_length={self.max_length}; raise it"
                if sequences[0].is_truncated
                else "fields 'chosen' and 'rejected': the same tokens (this tokenizer does not tell them apart)"
            )
        return sequences, row


def _reply_of(row: Row) -> str:
    if isinstance(row, PreferenceRow):
        return row.chosen
    return row.response if isinstance(row, SFTRow | UnpairedRow) else ""
