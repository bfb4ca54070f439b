"""The nouns on disk: what one row of data is, before any tokenizer sees it.

A `RowSource` (a file with a format, or a world that makes its own) yields rows of the type a method asks for.
A richer row serves a poorer method: a preference row gives an SFT row (its chosen reply) and a prompt.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict, TypeVar

from alignlab.errors import DataError

Split = Literal["train", "validation", "test"]


class Message(TypedDict):
    """One turn of a dialogue."""

    role: Literal["system", "user", "assistant"]
    content: str


Prompt = str | tuple[Message, ...]
"""Plain text that the reply continues, or the turns before the reply (then the template renders them)."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A request alone: what PPO rolls out from and evaluation samples from."""

    prompt: Prompt


@dataclass(frozen=True, slots=True)
class SFTRow:
    """A request and the reply to imitate. An empty `prompt` ("") makes it plain text."""

    prompt: Prompt
    response: str


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """Two replies to one request; `chosen` was preferred."""

    prompt: Prompt
    chosen: str
    rejected: str


Row = PromptRow | SFTRow | PreferenceRow
RowT = TypeVar("RowT", PromptRow, SFTRow, PreferenceRow)


class RowSource(Protocol):
    """Anything that yields rows: `data/sources.py` reads files, `worlds/` makes them up."""

    def rows(self, row_type: type[RowT], split: Split) -> Iterator[RowT]:
        """Rows of `row_type` of one split, always in the same order."""
        ...


def as_row_type(row: Row, row_type: type[RowT]) -> RowT:
    """`row` as the poorer (or same) `row_type`; DataError where it has not got what that needs."""
    poorer: Row = row
    if row_type is PromptRow:
        poorer = PromptRow(row.prompt)
    elif row_type is SFTRow and isinstance(row, PreferenceRow):
        poorer = SFTRow(row.prompt, row.chosen)
    if isinstance(poorer, row_type):
        return poorer
    raise DataError(
        f"a {type(row).__name__} cannot serve as a {row_type.__name__}: it lacks a field that this method needs"
    )
