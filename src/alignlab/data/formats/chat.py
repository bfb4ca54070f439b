"""Dialogues as lists of {role, content}: the turns before the reply are the prompt, the chat template renders them."""

from alignlab.data import dialogue
from alignlab.data.checks import check_reply, show
from alignlab.data.formats import fields
from alignlab.data.formats.fields import Record
from alignlab.errors import DataError
from alignlab.rows import PreferenceRow, PromptRow, SFTRow, UnpairedRow

prompt_of = dialogue.as_messages


def demonstration(record: Record, *, messages: str = "messages") -> SFTRow:
    """A dialogue; its last turn, the assistant's, is the reply to imitate (earlier ones are context)."""
    prompt, response = fields.dialogue(record, messages)
    return SFTRow(prompt, response)


def preference(
    record: Record,
    *,
    prompt: str = "prompt",
    chosen: str = "chosen",
    rejected: str = "rejected",
    preference: str | None = None,
    weight: str | None = None,
    subset: str | None = None,
) -> PreferenceRow:
    """Two dialogues that differ in the last turn, or a list of messages as prompt and the two last turns (text or a
    list of one message). `preference`, `weight` and `subset` as in `plain.preference`."""
    label = fields.label(record, preference, weight, subset)
    if prompt in record and not isinstance(record[prompt], str):
        turns = fields.messages(record, prompt)
        return PreferenceRow(turns, _last_turn(record, chosen), _last_turn(record, rejected), *label)
    chosen_prompt, chosen_reply = fields.dialogue(record, chosen)
    rejected_prompt, rejected_reply = fields.dialogue(record, rejected)
    fields.same_prompt(chosen_prompt, rejected_prompt)
    return PreferenceRow(chosen_prompt, chosen_reply, rejected_reply, *label)


def unpaired(
    record: Record, *, prompt: str = "prompt", response: str = "response", desirable: str = "desirable"
) -> UnpairedRow:
    """A list of messages, the turn of the assistant that follows (text or a list of one message), and whether that is
    desirable."""
    turns, answer = fields.messages(record, prompt), _last_turn(record, response)
    return UnpairedRow(turns, answer, fields.truth(record, desirable))


def prompt(record: Record, *, messages: str = "messages") -> PromptRow:
    """A dialogue to go on with; a last turn of the assistant is left off."""
    turns = fields.messages(record, messages)
    return PromptRow(turns[:-1] if turns[-1]["role"] == "assistant" and len(turns) > 1 else turns)


def _last_turn(record: Record, field: str) -> str:
    value = fields.get(record, field)
    if isinstance(value, str):
        return check_reply(value, field)
    turns = fields.messages(record, field)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise DataError(f"field {field!r}: got {show(value)}, expected text or one message of the assistant")
    return check_reply(turns[0]["content"], f"{field}[0].content")
