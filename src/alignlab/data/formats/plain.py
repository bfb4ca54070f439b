"""Plain fields: prompt and replies as text. The reply continues the prompt exactly as the two stand in the file:
a space between them has to be in one of the two (in the reply, where tokenizers want it)."""

from alignlab.data.formats import fields
from alignlab.data.formats.fields import Record
from alignlab.rows import PreferenceRow, PromptRow, SFTRow, UnpairedRow


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
    """Two replies to one prompt; the arguments name the fields. `preference` (the probability that `chosen` is the
    better one), `weight` and `subset` are read where they are named; else the label is certain, pairs count alike and
    are not told apart."""
    label = fields.label(record, preference, weight, subset)
    return PreferenceRow(
        fields.text(record, prompt), fields.reply(record, chosen), fields.reply(record, rejected), *label
    )


def unpaired(
    record: Record, *, prompt: str = "prompt", response: str = "response", desirable: str = "desirable"
) -> UnpairedRow:
    """A prompt, a reply, and whether the reply is desirable; the arguments name the fields."""
    return UnpairedRow(fields.text(record, prompt), fields.reply(record, response), fields.truth(record, desirable))


def demonstration(record: Record, *, prompt: str = "prompt", response: str = "response") -> SFTRow:
    """A prompt and the reply to imitate; the arguments name the fields."""
    return SFTRow(fields.text(record, prompt), fields.reply(record, response))


def text(record: Record, *, text: str = "text") -> SFTRow:
    """Text without a prompt: every token of it is learnt. `text` names the field."""
    return SFTRow("", fields.reply(record, text))


def prompt(record: Record, *, prompt: str = "prompt") -> PromptRow:
    """A prompt alone, to sample from."""
    return PromptRow(fields.reply(record, prompt))
