"""The responses that a source's test rows come with: what a policy's own replies can be held to."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from alignlab.data.sources import located_rows
from alignlab.errors import DataError
from alignlab.rows import PreferenceRow, Row, RowSource, SFTRow, as_row_type


def has_rows(source: RowSource, row_type: type[Row]) -> bool:
    """Whether the test split has a usable row of this type."""
    try:
        return any(not isinstance(row, DataError) for _, row in located_rows(source, row_type, "test"))
    except DataError:  # a source that makes its rows, and none of this type
        return False


def responses_of(source: RowSource) -> dict[str, list[str]]:
    """`prompt_key` -> the responses of the test rows with that prompt, in order: the better reply of each pair where
    there are pairs, else what is to be imitated. Rows that cannot be used are left out.

    Raises:
        DataError: no row has a response.
    """
    found: dict[str, list[str]] = defaultdict(list)
    row_type = PreferenceRow if has_rows(source, PreferenceRow) else SFTRow
    if not has_rows(source, row_type):
        raise DataError("the test rows have no responses: neither pairs nor demonstrations are among them")
    for _, row in located_rows(source, row_type, "test"):
        if not isinstance(row, DataError):
            wanted: Any = as_row_type(row, SFTRow)
            found[prompt_key(wanted.prompt)].append(wanted.response)
    return dict(found)


def prompt_key(prompt: str | Sequence[Any]) -> str:
    """A prompt as one text, the same for messages as they stand in rows (tuples) and in JSON (lists)."""
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False)
