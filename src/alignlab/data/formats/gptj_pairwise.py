"""synthetic-instruct-gptj-pairwise: an instruction with a good and a poor reply, all three bare strings."""

from alignlab.data import dialogue
from alignlab.data.formats import fields
from alignlab.data.formats.fields import Record
from alignlab.rows import PreferenceRow

prompt_of = dialogue.as_messages


def pair(
    record: Record, *, prompt: str = "prompt", chosen: str = "chosen", rejected: str = "rejected"
) -> PreferenceRow:
    """The prompt as one user turn, so that a template stands between it and the reply; arguments name the fields."""
    asked = fields.user(fields.reply(record, prompt))
    return PreferenceRow(asked, fields.reply(record, chosen), fields.reply(record, rejected))
