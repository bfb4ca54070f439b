"""From a prompt and a reply to the two texts that are tokenised: chat templates, and one plain one.

`template`: "auto" renders a list of messages with the tokenizer's own chat template where it has one, else plainly;
"chat" renders everything with it (a plain string becomes one user turn); "plain" never uses it.
A prompt that is a plain string is otherwise left as it is, and the reply continues it.

The plain template is that of the HH-RLHF transcripts: the system turn as it is, then "\\n\\nHuman: ..." and
"\\n\\nAssistant: ..."; the prompt ends with "\\n\\nAssistant:" and the reply starts with a space.

Text of a row may spell special tokens ("</s>"). It never becomes one: inside chat templates such spellings are replaced
by private-use characters while the template is rendered, and put back as ordinary text when it is encoded.
"""

import re
from typing import Any, Literal, NamedTuple

from alignlab.errors import ConfigError, DataError
from alignlab.rows import Message, Prompt

Template = Literal["auto", "chat", "plain"]
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
PLACEHOLDER = 0x100000
"""First of the private-use characters that stand for spelled special tokens while a template is rendered."""
REPLY = "\U0010fffd"
"""The private-use character that stands for the reply there, so that what surrounds it is seen exactly."""


class Rendered(NamedTuple):
    """Texts of one row. The prompt's tokens come first, then the reply's, then an end token."""

    prompt: str
    reply: str
    tail: str  # what the template writes after the reply: its end token is looked for here
    is_chat: bool  # special tokens in `prompt` and `reply` are the template's, so they are parsed
    is_guarded: bool  # ... and those spelled by the row stand as placeholders


class Templater:
    """Renders prompts and replies for one tokenizer."""

    def __init__(self, tokenizer: Any, template: Template = "auto") -> None:
        if template not in ("auto", "chat", "plain"):
            raise ConfigError(f"data.template={template}: expected auto, chat or plain")
        if template == "chat" and not tokenizer.chat_template:
            raise ConfigError("data.template=chat: this tokenizer has no chat template; set data.template=plain")
        self._tokenizer = tokenizer
        self._template = template
        added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.specials = sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, self.specials)) or "(?!)")
        self._trims: bool | None = None

    def render(self, prompt: Prompt, reply: str = "") -> Rendered:
        """Prompt, reply and tail as text; without a reply the last two are empty."""
        if self._template == "plain" or (self._template == "auto" and isinstance(prompt, str)):
            return _plain(prompt, reply)
        if not self._tokenizer.chat_template:
            return _plain(prompt, reply)
        turns: tuple[Message, ...] = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        is_guarded = any(self._spelled.search(text) for text in (reply, *(turn["content"] for turn in turns)))
        if is_guarded:
            turns = tuple({"role": turn["role"], "content": self._guard(turn["content"])} for turn in turns)
            reply = self._guard(reply)
        start = self._chat(turns, add_generation_prompt=True)
        if not reply:
            return Rendered(start, "", "", True, is_guarded)
        before, _, tail = self._whole(turns, REPLY).partition(REPLY)
        # where the prompt's rendering is no prefix of the whole one (templates that put an empty thought before old
        # replies), the bare reply continues what generation will start from
        lead = before[len(start) :] if before.startswith(start) else ""
        return Rendered(start, lead + (reply.strip() if self._is_trimming() else reply), tail, True, is_guarded)

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """Guarded text as (piece, is_special): the template's special tokens apart, the row's spellings put back."""
        parts = re.split(f"({self._spelled.pattern})", text)
        return [(part if i % 2 else self._unguard(part), i % 2 == 1) for i, part in enumerate(parts) if part]

    def _chat(self, turns: tuple[Message, ...], *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            return self._tokenizer.apply_chat_template(
                [dict(turn) for turn in turns], tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise DataError(f"the chat template refuses this dialogue ({error}); its turns are {roles}") from None

    def _whole(self, turns: tuple[Message, ...], reply: str) -> str:
        return self._chat((*turns, {"role": "assistant", "content": reply}), add_generation_prompt=False)

    def _is_trimming(self) -> bool:
        """Whether the template takes the white space off a reply's ends; found out once."""
        if self._trims is None:
            turns: tuple[Message, ...] = ({"role": "user", "content": "a"},)
            self._trims = self._whole(turns, f" {REPLY} ") == self._whole(turns, REPLY)
        return self._trims

    def _guard(self, text: str) -> str:
        return self._spelled.sub(lambda match: chr(PLACEHOLDER + self.specials.index(match.group())), text)

    def _unguard(self, text: str) -> str:
        for i, special in enumerate(self.specials):
            text = text.replace(chr(PLACEHOLDER + i), special)
        return text


def _plain(prompt: Prompt, reply: str) -> Rendered:
    if isinstance(prompt, str):
        return Rendered(prompt, reply, "", False, False)
    # replies that were sampled bring their space along
    return Rendered(plain_prompt(prompt), reply if not reply or reply[0].isspace() else f" {reply}", "", False, False)


def plain_prompt(turns: tuple[Message, ...]) -> str:
    """Turns as a transcript that the assistant is to go on with."""
    names = {"system": "", "user": f"{HUMAN} ", "assistant": f"{ASSISTANT} "}
    return "".join(names[turn["role"]] + turn["content"] for turn in turns) + ASSISTANT
