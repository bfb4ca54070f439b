"""A reply's text while it is written: whole characters only, and in the end exactly the reply's text."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from alignlab.rollout.generate import continuation_text

_BROKEN = "\ufffd"
"""What a decoder shows for bytes that are no character, or not yet: they may be the first of one."""


class TextStream:
    """`on_tokens` of a `generate` with one prompt: hands on each new piece of text to `write`.

    Every token decodes the reply anew, because what a token adds depends on those before it: some 0.1 ms per 100
    tokens, little beside a network's step.
    """

    def __init__(
        self, tokenizer: Any, prompt: Sequence[int], *, stop_token_ids: Sequence[int], write: Callable[[str], object]
    ) -> None:
        """`prompt`: the ids that the reply follows."""
        self._tokenizer, self._prompt, self._stops, self._write = tokenizer, prompt, set(stop_token_ids), write
        self.tokens: list[int] = []
        self._written = ""

    def __call__(self, _rows: Int[Tensor, "1"], tokens: Int[Tensor, "1"]) -> None:
        """One token more; a stop token ends the reply and has no text."""
        [token] = tokens.tolist()
        if token in self._stops:
            self.close()
            return
        self.tokens.append(token)
        self._hand_on(self._text().rstrip(_BROKEN))

    def close(self) -> None:
        """Hand on what was held back; needed where the reply may have been cut at its longest."""
        self._hand_on(self._text())

    def _text(self) -> str:
        return continuation_text(self._tokenizer, self._prompt, self.tokens)

    def _hand_on(self, text: str) -> None:
        if len(text) > len(self._written) and text.startswith(self._written):
            self._write(text[len(self._written) :])
            self._written = text
