"""Alpaca instructions (Taori et al. 2023): instruction, input (may be empty), output."""

from collections.abc import Sequence

from alignlab.data import dialogue
from alignlab.data.formats import fields
from alignlab.data.formats.fields import Record
from alignlab.rows import Message, Prompt, SFTRow

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


def instruction(record: Record, *, as_messages: bool = False) -> SFTRow:
    """The published prompt text, or with `as_messages` one user turn (instruction, blank line, input)."""
    request, context = fields.reply(record, "instruction"), fields.text(record, "input")
    output = fields.reply(record, "output")
    if as_messages:
        return SFTRow(fields.user(f"{request}\n\n{context}" if context else request), output)
    # replaced in one pass: braces in the data are data
    return SFTRow((WITH_INPUT if context else WITHOUT_INPUT).format(instruction=request, input=context), output)


def prompt_of(turns: Sequence[Message], *, as_messages: bool = False) -> Prompt:
    """All turns as messages, or the last one alone as an instruction without input."""
    if as_messages:
        return dialogue.as_messages(turns)
    return dialogue.framed(WITHOUT_INPUT.replace("{instruction}", "{message}"), turns)
