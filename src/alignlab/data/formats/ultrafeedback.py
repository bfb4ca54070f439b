"""UltraFeedback, binarized (Cui et al. 2023; Tunstall et al. 2023): requests with a better and a worse reply.

Both published shapes: `chosen` and `rejected` as lists of messages (with or without a `prompt` field), or all three as
strings. The prompt is a dialogue either way, so that the template of the model renders it.
"""

from alignlab.data import dialogue
from alignlab.data.formats import chat, fields
from alignlab.data.formats.fields import Record
from alignlab.rows import PreferenceRow

prompt_of = dialogue.as_messages


def binarized(record: Record) -> PreferenceRow:
    """One pair; a flat `prompt` string becomes one user turn."""
    chosen_is_text = isinstance(fields.get(record, "chosen"), str)
    if chosen_is_text and isinstance(fields.get(record, "prompt"), str):
        prompt = fields.user(fields.reply(record, "prompt"))
        return PreferenceRow(prompt, fields.reply(record, "chosen"), fields.reply(record, "rejected"))
    return chat.preference(record)
