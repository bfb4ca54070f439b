"""Alpaca instructions (Taori et al. 2023): instruction, input (may be empty), output; or a better and a worse one."""

from collections.abc import Sequence

from alignlab.data import dialogue
from alignlab.data.formats import fields
from alignlab.data.formats.fields import Record
from alignlab.rows import Message, PreferenceRow, Prompt, SFTRow

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
    prompt = _prompt(fields.reply(record, "instruction"), fields.text(record, "input"), as_messages=as_messages)
    return SFTRow(prompt, fields.reply(record, "output"))


def preference(
    record: Record,
    *,
    instruction: str = "instruction",
    input: str | None = "input",
    chosen: str = "chosen",
    rejected: str = "rejected",
    as_messages: bool = False,
) -> PreferenceRow:
    """Two outputs to one instruction, whose prompt is that of `instruction` above, so that a model which learnt to
    answer those is asked in the same words. The arguments name the fields; `input=None`: the rows have none."""
    context = "" if input is None else fields.text(record, input)
    prompt = _prompt(fields.reply(record, instruction), context, as_messages=as_messages)
    return PreferenceRow(prompt, fields.reply(record, chosen), fields.reply(record, rejected))


def prompt_of(turns: Sequence[Message], *, as_messages: bool = False) -> Prompt:
    """All turns as messages, or the last one alone as an instruction without input."""
    if as_messages:
        return dialogue.as_messages(turns)
    return dialogue.framed(WITHOUT_INPUT.replace("{instruction}", "{message}"), turns)


def _prompt(request: str, context: str, *, as_messages: bool) -> Prompt:
    if as_messages:
        return fields.user(f"{request}\n\n{context}" if context else request)
    # replaced in one pass: braces in the data are data
    return (WITH_INPUT if context else WITHOUT_INPUT).format(instruction=request, input=context)
