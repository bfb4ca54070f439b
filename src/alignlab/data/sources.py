"""Where rows come from: local files, or a data set of the hub; each row checked, each error with its place.

`format` is a row function of `data/formats/` (or one's own): record -> Row, or a list of rows where a record holds
several (all pairs of a few replies, say). Imported without torch.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from alignlab.data.checks import check_row
from alignlab.data.reading import Located, data_suffix, read_records
from alignlab.errors import ConfigError, DataError
from alignlab.rows import FreshRows, Row, RowSource, RowT, Split, rows_as

Format = Callable[[Mapping[str, Any]], Row | list[Row]]
Where = str | Path | Sequence[str | Path] | None
"""One file, several read one after the other, or None: the split does not exist."""


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes, in hex: the identity of local data."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Files:
    """Rows from local jsonl, json, csv or parquet files (see `data/reading.py`)."""

    def __init__(self, train: Where = None, *, validation: Where = None, test: Where = None, format: Format) -> None:
        self.format = format
        self.splits = {
            name: _as_list(where) for name, where in zip(get_args(Split), (train, validation, test), strict=True)
        }
        if not any(self.splits.values()):
            raise ConfigError("data.source: no file given; set data.source.train=path/to/train.jsonl")

    def rows(self, row_type: type[RowT], split: Split) -> Iterator[RowT]:
        """Rows of one split, in file order; DataError at the first bad one. No rows where there is no such split."""
        return raise_errors(self.located_rows(row_type, split))

    def located_rows(self, row_type: type[Any], split: Split) -> Iterator[Located]:
        """(where, row | DataError) for every record: for readers that leave bad rows out."""
        for place in self.splits[split]:
            for where, record in self._records(place):
                yield from _rows(where, record, self.format, row_type)

    def fingerprint(self) -> str:
        """A hash of what the rows are read from: the files' content, not their names."""
        identity = {split: [self._identity(place) for place in places] for split, places in self.splits.items()}
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def _records(self, place: str) -> Iterator[Located]:
        return read_records(Path(place))

    def _identity(self, place: str) -> str:
        return file_digest(place)


class Hub(Files):
    """Rows of a data set on the Hugging Face hub, fetched when they are first read.

    train, validation and test name its splits. Each may instead be a path to a local file of the same shape, so that
    `data.source.train=my.jsonl` is all it takes to use one's own copy. `revision`: commit, tag or branch (a commit pins
    the data). `subset`: the hub's configuration name; `folder`: a folder of the repository ("helpful-base").
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str,
        train: Where = None,
        validation: Where = None,
        test: Where = None,
        subset: str | None = None,
        folder: str | None = None,
        format: Format,
    ) -> None:
        super().__init__(train, validation=validation, test=test, format=format)
        self.name = name
        self.revision = revision
        self.subset = subset
        self.folder = folder

    def _records(self, place: str) -> Iterator[Located]:
        if data_suffix(Path(place)):
            return read_records(Path(place))
        return self._hub_records(place)

    def _identity(self, place: str) -> str:
        if data_suffix(Path(place)):
            return file_digest(place)
        return f"{self.name}@{self.revision}/{self.subset}/{self.folder}/{place}"

    def _hub_records(self, split: str) -> Iterator[Located]:
        import datasets

        try:
            table = datasets.load_dataset(
                self.name, self.subset, data_dir=self.folder, split=split, revision=self.revision
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"hub data set {self.name}@{self.revision}, split {split!r}: cannot be loaded ({reason}); "
                "it needs the network once, or a local copy: data.source.train=path/to/file.jsonl"
            ) from error
        for number, record in enumerate(table, start=1):
            yield Located(f"{self.name}[{split}], row {number}", record)


def located_rows(source: RowSource, row_type: type[Any], split: Split) -> Iterator[Located]:
    """(where, row | DataError) from any source; one that makes its own rows has its faults raised."""
    if isinstance(source, Files):
        yield from source.located_rows(row_type, split)
        return
    for number, row in enumerate(source.rows(row_type, split), start=1):
        yield from _rows(f"{type(source).__name__}[{split}], row {number}", row, _as_made, row_type)


def located_fresh_rows(
    source: FreshRows, row_type: type[Any], *, step: int, batch_size: int, seed: int
) -> list[Located]:
    """(where, row | DataError) of one step of a stream. DataError unless that is `batch_size` rows."""
    name = f"{type(source).__name__}, step {step}"
    made = source.fresh_rows(row_type, step=step, batch_size=batch_size, seed=seed)
    located = [one for i, row in enumerate(made) for one in _rows(f"{name}, row {i}", row, _as_made, row_type)]
    if len(located) != batch_size:
        raise DataError(f"{name}: {len(located)} rows of {row_type.__name__}, expected {batch_size} (data.batch_size)")
    return located


def raise_errors(located: Iterator[Located]) -> Iterator[Any]:
    """The values; the first DataError among them is raised, with its place."""
    for where, value in located:
        if isinstance(value, DataError):
            raise DataError(f"{where}: {value}")
        yield value


def _rows(where: str, record: Any, format: Callable[[Any], Row | list[Row]], row_type: type[Any]) -> list[Located]:
    """The rows that a record serves as (see `rows.rows_as`), or its error: it is used whole or not at all."""
    if isinstance(record, DataError):
        return [Located(where, record)]
    try:
        made = format(record)
        rows = made if isinstance(made, list) else [made]
        return [Located(where, served) for row in rows for served in rows_as(check_row(row), row_type)]
    except DataError as error:
        return [Located(where, error)]
    except KeyError as error:  # a format of one's own that takes record["name"] as it comes
        missing = f"field {error}: missing, the row has {', '.join(map(repr, record))}"
        return [Located(where, DataError(missing))]


def _as_made(row: Row) -> Row:
    return row


def _as_list(where: Where) -> list[str]:
    if where is None:
        return []
    return [str(where)] if isinstance(where, str | Path) else [str(place) for place in where]
