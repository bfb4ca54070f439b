"""Labelled text (IMDB reviews and their like): the text is learnt or continued, the label is not used here.

What uses the label is `data/opposites.py`: pairs of a text of one label and a text of the other.
"""

import re

from alignlab.data.formats import fields
from alignlab.data.formats.fields import Record
from alignlab.errors import ConfigError, DataError
from alignlab.rows import SFTRow

_BREAKS = re.compile(r"\s*(?:<br\s*/?>\s*)+", re.IGNORECASE)


def without_breaks(text: str) -> str:
    """The text with each run of HTML line breaks, and the white space around it, as one space."""
    return _BREAKS.sub(" ", text)


def review(record: Record, *, text: str = "text", prompt_words: int = 0, keep_breaks: bool = True) -> SFTRow:
    """The first `prompt_words` words are the prompt, the rest is the reply (0: all of it is the reply).

    `text` names the field; without `keep_breaks`, HTML line breaks ("<br />") are read as one space. Controlled
    sentiment generation (Ziegler et al. 2019, Rafailov et al. 2023) continues such beginnings of reviews.
    """
    value = fields.reply(record, text)
    if not keep_breaks:
        value = without_breaks(value)
    if prompt_words == 0:
        return SFTRow("", value)
    if prompt_words < 0:
        raise ConfigError(f"data.source.format.prompt_words={prompt_words}: expected 0 or more")
    beginning = re.match(rf"\s*\S+(?:\s+\S+){{{prompt_words - 1}}}(?=\s)", value)
    if beginning is None or not value[beginning.end() :].strip():
        raise DataError(f"field {text!r}: no text left after the {prompt_words} words that make the prompt")
    return SFTRow(beginning.group(), value[beginning.end() :])
