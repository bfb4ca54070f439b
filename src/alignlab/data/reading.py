"""Records from local files, one by one, each with the place it stands at. Nothing is converted or guessed.

jsonl, json (a list of objects, or one object a line), csv (every value is text) and parquet; .gz of the first three.
A record that cannot be decoded is yielded as the DataError that says why, so that a reader may go on with the next;
a file that cannot be read at all raises.
"""

import csv
import difflib
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from alignlab.data.checks import show
from alignlab.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
CSV_FIELD_LIMIT = 2**30  # characters; the standard library's 131,072 is shorter than long documents


class Located(NamedTuple):
    """Something read, or the error in its place, with where it stands: "train.jsonl:12"."""

    where: str
    value: Any


def read_records(path: Path) -> Iterator[Located]:
    """Every record of the file as (where, dict | DataError), in file order."""
    suffix = data_suffix(path)
    if suffix is None:
        raise DataError(f"{path}: unknown kind of file, expected {', '.join(SUFFIXES)} (all but parquet also as .gz)")
    if not path.is_file():
        raise DataError(f"{path}: no such file{_near(path)}")
    reader = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}[suffix]
    empty = True
    for located in reader(path):
        empty = False
        yield located
    if empty:
        raise DataError(f"{path}: the file holds no rows")


def data_suffix(path: Path) -> str | None:
    """The kind of a data file by its name, ".gz" aside; None for anything else (a split name, say)."""
    suffixes = [s.lower() for s in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    kind = (suffixes[-2] if len(suffixes) > 1 else "") if zipped else (suffixes[-1] if suffixes else "")
    return kind if kind in SUFFIXES and not (zipped and kind == ".parquet") else None


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent} either)"
    names = [p.name for p in path.parent.iterdir() if data_suffix(p)]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""


def _lines(path: Path) -> Iterator[tuple[int, str | DataError]]:
    """Numbered lines, decoded; a byte order mark at the start is not text."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                try:
                    yield number, line.decode("utf-8")
                except UnicodeDecodeError as error:
                    byte = error.object[error.start]
                    yield number, DataError(f"byte {byte:#04x} at position {error.start}: expected UTF-8 text")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a complete gzip file ({error}); fetch it again") from None


def _jsonl(path: Path) -> Iterator[Located]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        if isinstance(line, DataError):
            yield Located(where, line)
        elif line.strip():  # blank lines are no rows
            yield Located(where, _decoded(line.rstrip("\r\n")))


def _decoded(line: str) -> dict[str, Any] | DataError:
    try:
        return _checked(json.loads(line, object_pairs_hook=_object, parse_constant=_refuse_constant))
    except json.JSONDecodeError as error:
        return DataError(f"broken JSON at column {error.colno} ({error.msg}); expected one object on one line")
    except DataError as error:
        return error
    except (ValueError, RecursionError) as error:  # numbers or nesting beyond what Python reads
        return DataError(f"unreadable JSON ({error})")


def _checked(value: Any) -> dict[str, Any] | DataError:
    return value if isinstance(value, dict) else DataError(f"got {show(value)}, expected an object with named fields")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"field {twice!r}: given twice, expected each field once")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise DataError(f"{name} is not JSON, expected a number or null")


def _json(path: Path) -> Iterator[Located]:
    lines = list(_lines(path))
    first = next((line for _, line in lines if isinstance(line, DataError) or line.strip()), "")
    if not (isinstance(first, str) and first.lstrip().startswith("[")):
        yield from _jsonl(path)
        return
    broken = next(((number, line) for number, line in lines if isinstance(line, DataError)), None)
    if broken is not None:
        raise DataError(f"{path}:{broken[0]}: {broken[1]}")
    try:
        records = json.loads(
            "".join(str(line) for _, line in lines), object_pairs_hook=_object, parse_constant=_refuse_constant
        )
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: broken JSON at column {error.colno} ({error.msg})") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    for number, record in enumerate(records, start=1):
        yield Located(f"{path}, item {number}", _checked(record))


def _csv(path: Path) -> Iterator[Located]:
    csv.field_size_limit(CSV_FIELD_LIMIT)
    broken: list[DataError] = []

    def decoded() -> Iterator[str]:
        for _, line in _lines(path):
            if isinstance(line, DataError):
                broken.append(line)
                yield "\n"  # keeps the line numbers; the row is reported below
            else:
                yield line

    reader = csv.reader(decoded(), strict=True)
    header = _next_csv(reader)
    if header is None:
        return
    if isinstance(header, DataError) or broken or len(set(header)) < len(header):
        raise DataError(f"{path}:1: the first line must name each column once ({broken[0] if broken else header})")
    while (values := _next_csv(reader)) is not None:
        where = f"{path}:{reader.line_num}"
        if broken:
            yield Located(where, broken[0])
            broken.clear()
        elif isinstance(values, DataError):
            yield Located(where, values)
        elif values and len(values) != len(header):
            yield Located(where, DataError(f"{len(values)} values, expected {len(header)}: {', '.join(header)}"))
        elif values:
            yield Located(where, dict(zip(header, values, strict=True)))


def _next_csv(reader: Any) -> list[str] | DataError | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        return DataError(f"broken CSV ({error})")


def _parquet(path: Path) -> Iterator[Located]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield Located(f"{path}, row {number}", record)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({error})") from None
