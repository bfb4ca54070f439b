"""HH-RLHF transcripts (Bai et al. 2022): "\\n\\nHuman: ...\\n\\nAssistant: ..." twice, differing in the last reply.

There is no prompt field: the prompt is the shared transcript up to and including the last "\\n\\nAssistant:", and the
reply is what follows, with the space it starts with. By default it stays plain text; `as_messages` makes turns of it.
The published data has rows whose transcripts are identical, differ in the prompt, or end in an empty turn.
"""

import re
from collections.abc import Sequence

from alignlab.data import dialogue
from alignlab.data.checks import check_reply, show
from alignlab.data.formats import fields
from alignlab.data.formats.fields import Record
from alignlab.errors import DataError
from alignlab.rows import Message, PreferenceRow, Prompt

ASSISTANT = "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant):")


def transcripts(record: Record, *, as_messages: bool = False) -> PreferenceRow:
    """A pair of transcripts. `as_messages`: the prompt as a list of turns, for models with a chat template."""
    prompt, chosen = _split(fields.text(record, "chosen"), "chosen")
    rejected_prompt, rejected = _split(fields.text(record, "rejected"), "rejected")
    fields.same_prompt(prompt, rejected_prompt)
    if as_messages:
        return PreferenceRow(_turns(prompt), chosen.strip(), rejected.strip())
    return PreferenceRow(prompt, chosen, rejected)


def prompt_of(turns: Sequence[Message], *, as_messages: bool = False) -> Prompt:
    """All turns, as messages or as a transcript."""
    return dialogue.as_messages(turns) if as_messages else dialogue.as_transcript(turns)


def _split(transcript: str, field: str) -> tuple[str, str]:
    at = transcript.rfind(ASSISTANT)
    if at < 0:
        raise DataError(f"field {field!r}: no '\\n\\nAssistant:' in {show(transcript)}, expected a transcript")
    at += len(ASSISTANT)
    return transcript[:at], check_reply(transcript[at:], field)


def _turns(prompt: str) -> tuple[Message, ...]:
    """The transcript's turns as messages, each without the white space around it."""
    before, *parts = _TURN.split(prompt.removesuffix(ASSISTANT))
    speakers, contents = parts[::2], parts[1::2]
    if before.strip() or not speakers or speakers[0] != "Human":
        raise DataError(f"field 'chosen': the transcript starts with {show(prompt[:40])}, expected '\\n\\nHuman: '")
    turns: list[Message] = []
    for speaker, content in zip(speakers, contents, strict=True):
        turns.append({"role": "user" if speaker == "Human" else "assistant", "content": content.strip()})
    return tuple(turns)
