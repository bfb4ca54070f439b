"""Reading one field of a record: present, of the right type, never converted."""

import difflib
from collections.abc import Mapping
from typing import Any, cast

from alignlab.data.checks import check_messages, check_reply, check_text
from alignlab.errors import DataError
from alignlab.rows import Message

Record = Mapping[str, Any]
"""One decoded line of a file."""


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


def user(content: str) -> tuple[Message, ...]:
    """A request of one user turn."""
    return ({"role": "user", "content": content},)


def same_prompt(chosen: object, rejected: object) -> None:
    """DataError unless both replies of a pair answer the same dialogue."""
    if chosen != rejected:
        raise DataError(
            "fields 'chosen' and 'rejected': their dialogues differ before the last turn, expected one shared prompt"
        )
