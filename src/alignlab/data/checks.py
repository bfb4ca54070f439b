"""What makes a row usable, checked once for every row whatever file or format it came from."""

import math
from typing import Any

from alignlab.errors import DataError
from alignlab.rows import PreferenceRow, PromptRow, Row, SFTRow, UnpairedRow

ROLES = ("system", "user", "assistant")


def show(value: Any) -> str:
    """`value` as an error message should show it: its JSON type and, if short, itself."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean {str(value).lower()}"
    if isinstance(value, str):
        return f"string {value[:40]!r}" + ("..." if len(value) > 40 else "")
    if isinstance(value, list | tuple):
        return f"list of {len(value)}"
    if isinstance(value, dict):
        return f"object with {', '.join(map(str, list(value)[:6])) or 'no fields'}"
    return f"{'number' if isinstance(value, int | float) else type(value).__name__} {str(value)[:40]}"


def check_text(value: Any, field: str) -> str:
    """`value` if it is text that can be encoded, else DataError."""
    if not isinstance(value, str):
        raise DataError(f"field {field!r}: got {show(value)}, expected a string")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"field {field!r}: half of a surrogate pair at character {error.start}, expected valid Unicode"
            ) from None
    return value


def check_reply(value: Any, field: str) -> str:
    """`value` if it is text with something other than white space in it, else DataError."""
    if not check_text(value, field).strip():
        raise DataError(f"field {field!r}: the response is empty, expected text")
    return value


def check_messages(value: Any, field: str) -> None:
    """Turns of a dialogue: role and content strings, at most one system turn and that one first."""
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"field {field!r}: got {show(value)}, expected a list of messages, at least one")
    for i, message in enumerate(value):
        if not isinstance(message, dict):
            raise DataError(f"field '{field}[{i}]': got {show(message)}, expected an object with role and content")
        role = message.get("role")
        if role not in ROLES:
            raise DataError(f"field '{field}[{i}].role': got {show(role)}, expected one of {', '.join(ROLES)}")
        if role == "system" and i > 0:
            raise DataError(f"field '{field}[{i}].role': a system turn is allowed first only")
        check_text(message.get("content"), f"{field}[{i}].content")


def check_probability(value: Any, field: str) -> float:
    """`value` if it is a number from 0 to 1, else DataError."""
    if _is_number(value) and 0 <= value <= 1:
        return value
    raise DataError(f"field {field!r}: got {show(value)}, expected a probability: a number from 0 to 1")


def check_weight(value: Any, field: str) -> float:
    """`value` if it is a finite number above 0, else DataError."""
    if _is_number(value) and 0 < value < math.inf:
        return value
    raise DataError(f"field {field!r}: got {show(value)}, expected a finite number above 0")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_row(row: Any) -> Row:
    """`row` if a method can use it; DataError naming the field where it cannot.

    Refused: fields of the wrong type, empty responses, identical pairs, a dialogue whose last turn is the assistant's,
    soft labels that are no probabilities, weights that are not positive.
    """
    if not isinstance(row, PromptRow | SFTRow | PreferenceRow | UnpairedRow):
        raise DataError(
            f"the format returned a {type(row).__name__}, expected PromptRow, SFTRow, PreferenceRow or UnpairedRow"
        )
    if isinstance(row.prompt, str):
        check_text(row.prompt, "prompt")
        if isinstance(row, PromptRow) and not row.prompt:
            raise DataError("field 'prompt': empty, expected a request")
    else:
        check_messages(row.prompt, "prompt")
        if row.prompt[-1]["role"] != "user":
            raise DataError(
                f"field 'prompt': the last turn before the reply is the {row.prompt[-1]['role']}'s, expected the user's"
            )
    if isinstance(row, SFTRow | UnpairedRow):
        check_reply(row.response, "response")
    if isinstance(row, UnpairedRow) and not isinstance(row.desirable, bool):
        raise DataError(f"field 'desirable': got {show(row.desirable)}, expected true or false")
    if isinstance(row, PreferenceRow):
        check_reply(row.chosen, "chosen")
        check_reply(row.rejected, "rejected")
        if row.chosen == row.rejected:
            raise DataError("fields 'chosen' and 'rejected': identical, expected two different replies")
        check_probability(row.preference, "preference")
        check_weight(row.weight, "weight")
        if row.subset is not None and not check_text(row.subset, "subset").strip():
            raise DataError("field 'subset': empty, expected the name of a part of the data")
    return row
