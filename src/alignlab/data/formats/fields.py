"""Reading one field of a record: present, of the right type, never converted (csv may spell a number as text)."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, cast

from alignlab.data.checks import check_messages, check_probability, check_reply, check_text, check_weight, show
from alignlab.errors import DataError
from alignlab.rows import Message

Record = Mapping[str, Any]
"""One decoded line of a file."""

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_TRUTHS = {**dict.fromkeys((1, "1", "true", "True"), True), **dict.fromkeys((0, "0", "false", "False"), False)}


def get(record: Record, field: str) -> Any:
    """The value of `field`; DataError with the nearest name where it is missing."""
    if field in record:
        return record[field]
    near = difflib.get_close_matches(field, [str(key) for key in record], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(f"field {field!r}: missing, the row has {', '.join(map(repr, record)) or 'no fields'}{hint}")


def text(record: Record, field: str) -> str:
    """A string, possibly empty."""
    return check_text(get(record, field), field)


def reply(record: Record, field: str) -> str:
    """A string with something in it besides white space."""
    return check_reply(get(record, field), field)


def messages(record: Record, field: str) -> tuple[Message, ...]:
    """A list of {role, content} objects."""
    value: list[Any] = get(record, field)
    check_messages(value, field)
    return tuple([cast(Message, {"role": m["role"], "content": m["content"]}) for m in value])


def dialogue(record: Record, field: str) -> tuple[tuple[Message, ...], str]:
    """A list of messages that ends with the assistant's: the turns before it, and its text."""
    turns = messages(record, field)
    last = turns[-1]
    if last["role"] != "assistant" or len(turns) < 2:
        raise DataError(
            f"field {field!r}: {len(turns)} message(s), the last by {last['role']}; "
            "expected a request and then the assistant's reply"
        )
    return turns[:-1], check_reply(last["content"], f"{field}[{len(turns) - 1}].content")


def label(
    record: Record, preference: str | None, weight: str | None, subset: str | None = None
) -> tuple[float, float, str | None]:
    """(preference, weight, subset) of a pair from the fields of these names; 1, 1 and None where none is named.

    A number from 0 to 1 and a positive one, or the text of such numbers, which is all that csv can hold; text.
    """
    return (
        1.0 if preference is None else check_probability(_number(get(record, preference)), preference),
        1.0 if weight is None else check_weight(_number(get(record, weight)), weight),
        None if subset is None else reply(record, subset),
    )


def truth(record: Record, field: str) -> bool:
    """true or false, also as 1 or 0 and as the text of these."""
    value = get(record, field)
    if isinstance(value, bool | int | str) and value in _TRUTHS:
        return _TRUTHS[value]
    raise DataError(f"field {field!r}: got {show(value)}, expected true or false (or 1 or 0)")


def _number(value: Any) -> Any:
    """The number that a text spells in full; anything else as it is, to be refused by whoever checks it."""
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def user(content: str) -> tuple[Message, ...]:
    """A request of one user turn."""
    return ({"role": "user", "content": content},)


def same_prompt(chosen: object, rejected: object) -> None:
    """DataError unless both replies of a pair answer the same dialogue."""
    if chosen != rejected:
        raise DataError(
            "fields 'chosen' and 'rejected': their dialogues differ before the last turn, expected one shared prompt"
        )
