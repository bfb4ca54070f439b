"""How a dialogue becomes the prompt that a run was trained to answer.

A format whose prompts are not simply text has, beside its row function, a function `prompt_of(turns)` in its module:
the turns so far, the last of them the user's, as a prompt such as its rows have. It may take options of the row
function that change the prompt (`as_messages`). A source without a format may have one in its own module. Where there
is none the prompts are text that a reply continues, and so is the dialogue.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from alignlab.data.templates import plain_prompt
from alignlab.rows import Message, Prompt

PromptOf = Callable[[Sequence[Message]], Prompt]
"""(turns so far, the last one the user's) -> prompt."""
HOOK = "prompt_of"


def prompt_maker(made_by: Any, options: Mapping[str, Any]) -> PromptOf:
    """`prompt_of` from the module of `made_by` (a row function or a source's class), given those of its `options`
    that it takes; else `as_text`."""
    hook = getattr(sys.modules[made_by.__module__], HOOK, None)
    if hook is None:
        return as_text
    taken = set(inspect.signature(hook).parameters) & set(options)
    return partial(hook, **{name: options[name] for name in taken})


def as_messages(turns: Sequence[Message]) -> Prompt:
    """All turns, for the chat template."""
    return _stripped(turns)


def as_transcript(turns: Sequence[Message]) -> Prompt:
    """All turns as HH-RLHF writes them, up to the cue "\\n\\nAssistant:"."""
    return plain_prompt(_stripped(turns))


def as_text(turns: Sequence[Message]) -> Prompt:
    """The whole text so far; turns that meet without white space get a space between them."""
    text = ""
    for turn in turns:
        joined = not text or text[-1].isspace() or turn["content"][:1].isspace()
        text += turn["content"] if joined else f" {turn['content']}"
    return text


def framed(frame: str, turns: Sequence[Message]) -> Prompt:
    """The last message alone, in the place of `{message}`: for rows that hold one request each."""
    return frame.replace("{message}", turns[-1]["content"].strip())


def _stripped(turns: Sequence[Message]) -> tuple[Message, ...]:
    return tuple([Message(role=turn["role"], content=turn["content"].strip()) for turn in turns])
