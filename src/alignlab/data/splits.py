"""The splits of one source: read, checked and encoded at the first call, then kept; validation held out if asked."""

from dataclasses import dataclass, field
from typing import get_args

from alignlab.data.encoded import EncodedRows, hold_out
from alignlab.data.encoding import SplitEncoder
from alignlab.data.sources import located_rows
from alignlab.data.tokenize import TextEncoder
from alignlab.errors import ConfigError, DataError
from alignlab.rows import Row, RowSource, Split, stream_of

SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(kw_only=True)
class Splits:
    """`bad_rows` has a message for each row that was left out, `statistics` the counts of each split read so far."""

    source: RowSource
    row_type: type[Row]
    encoder: TextEncoder
    max_length: int
    skip_bad: bool
    limits: dict[Split, int | None]  # usable rows to take of each split; None: all
    validation_fraction: float  # held out of training where the source has no validation rows
    bad_rows: list[str] = field(default_factory=list)
    statistics: dict[str, dict[str, float]] = field(default_factory=dict)
    _encoded: dict[Split, EncodedRows] = field(default_factory=dict)

    @property
    def names(self) -> tuple[Split, ...]:
        """The splits that there are: a stream has no training rows to read beforehand."""
        return tuple(split for split in SPLITS if split != "train" or stream_of(self.source) is None)

    def encoded(self, split: Split) -> EncodedRows:
        """The rows of one split."""
        if split not in SPLITS:
            raise ConfigError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
        if split not in self.names:
            raise ConfigError(
                f"split {split!r}: {type(self.source).__name__} makes fresh rows at each step, there are none to read "
                "beforehand; choose a finite source"
            )
        if split not in self._encoded:
            parts: tuple[Split, ...] = (split,)
            if self.validation_fraction > 0 and split != "test":
                parts = ("train", "validation")
            for part in parts:
                self._encoded[part] = self._encode(part)
            if len(parts) == 2 and not len(self._encoded["validation"]):
                self._hold_out_validation()
            for part in parts:
                train = self._encoded.get("train") if part != "train" else None
                self.statistics[part] |= self._encoded[part].statistics(train)
        return self._encoded[split]

    def _encode(self, split: Split) -> EncodedRows:
        encoder = SplitEncoder(self.encoder, self.row_type, self.max_length, self.skip_bad)
        rows = encoder.encode(located_rows(self.source, self.row_type, split), self.limits[split])
        if encoder.bad_rows and not len(rows):
            raise DataError(f"no usable row in the {split} split; the first: {encoder.bad_rows[0]}")
        self.bad_rows += encoder.bad_rows
        self.statistics[split] = {"dropped": len(encoder.bad_rows), **encoder.counts}
        return rows

    def _hold_out_validation(self) -> None:
        kept, held = hold_out(self._encoded["train"].groups, self.validation_fraction)
        held = held[: self.limits["validation"]]
        self._encoded["validation"] = self._encoded["train"].take(held)
        self._encoded["train"] = self._encoded["train"].take(kept)


def split_faults(
    limits: dict[Split, int | None], validation_fraction: float, on_bad_row: str, *, is_stream: bool
) -> list[str]:
    """A message for each setting that cannot work."""
    faults = [
        f"data.{split}_rows={limit}: expected at least 1"
        for split, limit in limits.items()
        if limit is not None and limit < 1
    ]
    if not 0 <= validation_fraction < 1:
        faults.append(f"data.validation_fraction={validation_fraction}: expected from 0 to below 1")
    if on_bad_row not in ("error", "skip"):
        faults.append(f"data.on_bad_row={on_bad_row}: expected error or skip")
    if is_stream and (limits["train"] is not None or validation_fraction > 0):
        faults.append(
            f"data.train_rows={limits['train']}, data.validation_fraction={validation_fraction}: the source makes "
            "fresh rows at each step, so there is no training split to take rows of; set them to null and 0"
        )
    return faults
