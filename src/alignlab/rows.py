"""The nouns on disk: what one row of data is, before any tokenizer sees it.

A `RowSource` (a file with a format, or a world that makes its own) yields rows of the type a method asks for.
A richer row serves a poorer method: a preference row gives an SFT row (its likelier reply), a prompt, and two unpaired
rows (chosen: desirable; rejected: undesirable).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypedDict, TypeVar, cast

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
    """Two replies to one request; `chosen` was preferred.

    `preference` is the probability that `chosen` really is the better one, from 0 to 1 (1: the label is certain).
    `weight` is how much the pair counts in a mean over pairs, above 0. The others are for evaluation alone: `subset`
    names the part of a benchmark that the pair is of, `styles` how elaborate the two replies are, from 0, the plainest.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    preference: float = 1.0
    weight: float = 1.0
    subset: str | None = None
    styles: tuple[int, int] | None = None


class PairFacts(NamedTuple):
    """What an evaluation may ask about a pair beside its scores; chosen: the reply that its label says is likelier
    the better one (`PreferenceBatch.likelier`)."""

    prompt: int  # the same number where the prompt is the same
    chosen_length: int  # characters, as the reply stands in the data: the same for every tokenizer and max_length
    rejected_length: int
    subset: str | None = None
    styles: tuple[int, int] | None = None  # of chosen, of rejected


@dataclass(frozen=True, slots=True)
class UnpairedRow:
    """One reply to a request, and whether it is of the kind that is wanted."""

    prompt: Prompt
    response: str
    desirable: bool


Row = PromptRow | SFTRow | PreferenceRow | UnpairedRow
RowT = TypeVar("RowT", PromptRow, SFTRow, PreferenceRow, UnpairedRow)


class RowSource(Protocol):
    """Anything that yields rows: `data/sources.py` reads files, `worlds/` makes them up."""

    def rows(self, row_type: type[RowT], split: Split) -> Iterator[RowT]:
        """Rows of `row_type` of one split, always in the same order."""
        ...


class FreshRows(RowSource, Protocol):
    """A source that makes its training rows anew at each optimizer step: a stream without epochs or an end.

    `rows` then serves the validation and test splits alone. A source that can do both, by its settings, has None as
    its `fresh_rows` where it is not a stream.
    """

    def fresh_rows(self, row_type: type[RowT], *, step: int, batch_size: int, seed: int) -> Sequence[RowT]:
        """The `batch_size` rows of optimizer step `step` (from 0): a pure function of the arguments."""
        ...


def stream_of(source: RowSource) -> FreshRows | None:
    """`source` itself if it makes fresh training rows, else None."""
    return cast(FreshRows, source) if getattr(source, "fresh_rows", None) is not None else None


def rows_as(row: Row, row_type: type[RowT]) -> tuple[RowT, ...]:
    """`row` as rows of `row_type`: two where a pair serves as unpaired rows (chosen, rejected), else one.

    DataError for a pair that unpaired rows cannot express: one with a soft label or a weight.
    """
    if row_type is not UnpairedRow or not isinstance(row, PreferenceRow):
        return (as_row_type(row, row_type),)
    if row.preference not in (0, 1) or row.weight != 1:
        raise DataError(
            f"a pair with preference={row.preference}, weight={row.weight} cannot serve as unpaired rows, which are "
            "desirable or not and count alike; expected preference 0 or 1 and weight 1"
        )
    unpaired = (
        UnpairedRow(row.prompt, row.chosen, row.preference == 1),
        UnpairedRow(row.prompt, row.rejected, row.preference == 0),
    )
    return cast(tuple[RowT, ...], unpaired)


def as_row_type(row: Row, row_type: type[RowT]) -> RowT:
    """`row` as the poorer (or same) `row_type`; DataError where it has not got what that needs.

    Of a pair, SFT imitates the reply that is likelier the better one: `rejected` where `preference` is below a half.
    """
    poorer: Row = row
    if row_type is PromptRow:
        poorer = PromptRow(row.prompt)
    elif row_type is SFTRow and isinstance(row, PreferenceRow):
        poorer = SFTRow(row.prompt, row.chosen if row.preference >= 0.5 else row.rejected)
    if isinstance(poorer, row_type):
        return poorer
    raise DataError(
        f"a {type(row).__name__} cannot serve as a {row_type.__name__}: it lacks a field that this method needs"
    )
