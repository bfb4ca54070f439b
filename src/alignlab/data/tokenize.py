"""From texts to token ids: prompt and reply tokenised together, one end token, one truncation rule.

Together: the ids of prompt + reply are used where the prompt's own ids are a prefix of them. Where a token would
straddle the boundary (prompt "... is 4", reply "2."), the row gets the prompt's ids and then those of the reply as a
continuation, which is what generation will see; such rows are counted (`is_split`).

End: a complete reply ends with exactly one supervised end token: the one its text spells at its end ("...</s>"), else
the chat template's, else the tokenizer's eos if it is among the stop tokens, else the first stop token. What a
template writes after it is dropped. With append_eos false only a spelled one remains.

Truncation: a prompt longer than max_prompt_length loses tokens on its left (a leading BOS stays); then a row longer
than max_length is cut on its right and has no end token. A row whose reply is cut away whole is a bad row.

BOS: add_bos "auto" does what the tokenizer does for plain text (a chat template brings its own); true and false
override it. An empty prompt always needs one token to predict from, so it gets the BOS in any case.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from alignlab.batches import IGNORE
from alignlab.data.templates import Rendered, Template, Templater
from alignlab.errors import ConfigError, DataError
from alignlab.rows import Prompt

_ANCHORS = ("\n", ".", "a")
"""Texts after which a reply can be tokenised as a continuation, without the space some tokenizers put first."""


class Encoded(NamedTuple):
    """Token ids of a prompt and a reply; the reply starts at `prompt_length`."""

    input_ids: list[int]
    prompt_length: int
    is_truncated: bool  # the reply was cut at max_length
    is_split: bool  # a token would have straddled the boundary

    @property
    def labels(self) -> list[int]:
        """The reply's ids, and IGNORE at the prompt's positions."""
        return [IGNORE] * self.prompt_length + self.input_ids[self.prompt_length :]


class TextEncoder:
    """Encodes prompts and replies for one tokenizer and one set of rules (see the module's text)."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        stop_token_ids: Sequence[int] = (),
        template: Template = "auto",
        append_eos: bool = True,
        add_bos: Literal["auto"] | bool = "auto",
        max_length: int | None = None,
        max_prompt_length: int | None = None,
    ) -> None:
        if add_bos not in ("auto", True, False):
            raise ConfigError(f"data.add_bos={add_bos}: expected auto, true or false")
        self._tokenizer = tokenizer
        self._templater = Templater(tokenizer, template)
        self._append_eos = append_eos
        self._add_bos = add_bos
        self._max_length = max_length
        self._max_prompt_length = max_prompt_length
        self._stops = tuple(stop_token_ids)
        self._end_id = _end_id(tokenizer, self._stops) if append_eos else None
        self._lead = self._leading_ids()
        spelled = tokenizer.convert_ids_to_tokens(list(self._stops))
        self._spelled_stops = {text: i for text, i in zip(spelled, self._stops) if text in self._templater.specials}

    def prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Ids of each prompt, ready to be continued, cut on the left at max_prompt_length."""
        rendered = [self._templater.render(prompt) for prompt in prompts]
        ids = self._ids([(r.prompt, r) for r in rendered])
        return [self._cut_prompt(self._with_bos(own, r)) for own, r in zip(ids, rendered)]

    def replies(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Encoded]:
        """Ids of each prompt with its response. Of a response cut away whole no id is left after `prompt_length`."""
        rendered, ends = [], []
        for prompt, response in zip(prompts, responses, strict=True):
            body, spelled = self._strip_spelled_stop(response)
            row = self._templater.render(prompt, body)
            rendered.append(row)
            ends.append(spelled if spelled is not None else self._end_of(row))
        prompt_ids = self._ids([(r.prompt, r) for r in rendered])
        joint_ids = self._ids([(r.prompt + r.reply, r) for r in rendered])
        return [self._assemble(*row) for row in zip(rendered, prompt_ids, joint_ids, ends)]

    # -- one row ---------------------------------------------------------------------------------------------------
    def _assemble(self, row: Rendered, prompt: list[int], joint: list[int], end: int | None) -> Encoded:
        is_split = joint[: len(prompt)] != prompt
        reply = self._continuation(row) if is_split else joint[len(prompt) :]
        start = self._cut_prompt(self._with_bos(prompt, row))
        ids = start + reply + ([end] if end is not None else [])
        limit = self._max_length or len(ids)
        return Encoded(ids[:limit], len(start), len(ids) > limit, is_split)

    def _cut_prompt(self, ids: list[int]) -> list[int]:
        if self._max_prompt_length is None or len(ids) <= self._max_prompt_length:
            return ids
        first = {self._tokenizer.bos_token_id, self._tokenizer.cls_token_id} - {None}
        head = ids[:1] if ids[0] in first else []
        keep = self._max_prompt_length - len(head)
        return head + (ids[-keep:] if keep else [])

    def _with_bos(self, ids: list[int], row: Rendered) -> list[int]:
        bos = self._tokenizer.bos_token_id
        if not row.is_chat:
            ids = [*self._lead, *ids]
        elif self._add_bos is True and ids[:1] != [bos]:
            ids = [bos, *ids]
        elif self._add_bos is False and bos is not None and ids[:1] == [bos]:
            ids = ids[1:]
        if ids:
            return ids
        if bos is None or self._add_bos is False:
            raise ConfigError(
                "an empty prompt leaves nothing to predict the first token from: "
                + ("this tokenizer has no BOS; use data with prompts" if bos is None else "set data.add_bos=auto")
            )
        return [bos]

    def _leading_ids(self) -> list[int]:
        """What stands before the ids of plain text."""
        bos = self._tokenizer.bos_token_id
        if self._add_bos is True and bos is None:
            raise ConfigError("data.add_bos=true: this tokenizer has no BOS token; set data.add_bos=auto")
        bare = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self._tokenizer("a")["input_ids"]
        at = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        lead = list(full[:at])
        if self._add_bos is True and bos not in lead:
            return [bos, *lead]
        return lead if self._add_bos is not False else [i for i in lead if i != bos]

    def _strip_spelled_stop(self, response: str) -> tuple[str, int | None]:
        for text, stop in self._spelled_stops.items():
            if response.endswith(text):
                return response[: -len(text)], stop
        return response, None

    def _end_of(self, row: Rendered) -> int | None:
        if not self._append_eos or not row.tail:
            return self._end_id
        # only the template's own text follows the reply
        tail = self._tokenizer(row.tail, add_special_tokens=False)["input_ids"]
        return next((i for i in tail if i in self._stops), self._end_id)

    def _continuation(self, row: Rendered) -> list[int]:
        """Ids of the reply as it would stand after other text."""
        for anchor in _ANCHORS:
            before, both = self._ids([(anchor, row), (anchor + row.reply, row)])
            if both[: len(before)] == before:
                return both[len(before) :]
        return self._ids([(row.reply, row)])[0]

    # -- many texts ------------------------------------------------------------------------------------------------
    def _ids(self, texts: Sequence[tuple[str, Rendered]]) -> list[list[int]]:
        """Ids without any added token, each distinct text encoded once; one call for each way of encoding."""
        known: dict[tuple[str, bool, bool], list[int]] = {}
        keys = [(text, row.is_chat, row.is_guarded) for text, row in texts]
        for is_chat in (False, True):
            wanted = list(dict.fromkeys(text for text, chat, guarded in keys if chat == is_chat and not guarded))
            known.update(zip(((text, is_chat, False) for text in wanted), self._encode(wanted, parse_specials=is_chat)))
        for key in keys:
            if key[2] and key not in known:
                known[key] = self._guarded_ids(key[0])
        return [known[key] for key in keys]

    def _encode(self, texts: list[str], *, parse_specials: bool) -> Iterable[list[int]]:
        if not texts:
            return []
        return self._tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=not parse_specials,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    def _guarded_ids(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece, is_special in self._templater.pieces(text):
            if is_special:
                ids.append(self._tokenizer.convert_tokens_to_ids(piece))
            else:
                ids.extend(next(iter(self._encode([piece], parse_specials=False))))
        return ids


class RememberingEncoder:
    """A `TextEncoder` that keeps what it has encoded: for streams that draw the same texts again and again."""

    def __init__(self, encoder: TextEncoder, *, most: int = 2**17) -> None:
        """`most`: texts that are kept; then it forgets them all."""
        self._encoder, self._most = encoder, most
        self._known: dict[tuple[str, str], Encoded] = {}

    def prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """As `TextEncoder.prompts`."""
        return self._encoder.prompts(prompts)

    def replies(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Encoded]:
        """As `TextEncoder.replies`."""
        keys = [(repr(prompt), response) for prompt, response in zip(prompts, responses, strict=True)]
        if len(self._known) + len(keys) > self._most:
            self._known.clear()
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        made = self._encoder.replies([prompts[i] for i in new.values()], [responses[i] for i in new.values()])
        self._known.update(zip(new, made, strict=True))
        return [self._known[key] for key in keys]


def _end_id(tokenizer: Any, stop_token_ids: Sequence[int]) -> int:
    if tokenizer.eos_token_id is not None and (not stop_token_ids or tokenizer.eos_token_id in stop_token_ids):
        return tokenizer.eos_token_id
    if stop_token_ids:
        return stop_token_ids[0]
    if tokenizer.sep_token_id is not None:  # encoders close a text with it
        return tokenizer.sep_token_id
    raise ConfigError("data.append_eos=true: this tokenizer has no end token; set model.stop_token_ids")


def encode_prompt(
    prompt: Prompt,
    tokenizer: Any,
    template: Template = "auto",
    *,
    add_bos: Literal["auto"] | bool = "auto",
    max_prompt_length: int | None = None,
) -> list[int]:
    """Ids of one prompt, as training and generation see it. For many, make one `TextEncoder`."""
    encoder = TextEncoder(
        tokenizer, template=template, append_eos=False, add_bos=add_bos, max_prompt_length=max_prompt_length
    )
    return encoder.prompts([prompt])[0]


def encode_reply(
    prompt: Prompt,
    response: str,
    tokenizer: Any,
    template: Template = "auto",
    *,
    stop_token_ids: Sequence[int] = (),
    append_eos: bool = True,
    add_bos: Literal["auto"] | bool = "auto",
    max_length: int | None = None,
    max_prompt_length: int | None = None,
) -> Encoded:
    """Ids and labels of one prompt with its response; DataError where max_length leaves nothing of the response."""
    encoder = TextEncoder(
        tokenizer,
        stop_token_ids=stop_token_ids,
        template=template,
        append_eos=append_eos,
        add_bos=add_bos,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
    )
    encoded = encoder.replies([prompt], [response])[0]
    return check_encoded(encoded, "response", max_length)


def check_encoded(encoded: Encoded, field: str, max_length: int | None) -> Encoded:
    """`encoded` if something of the response is left, else DataError."""
    if len(encoded.input_ids) > encoded.prompt_length:
        return encoded
    raise DataError(
        f"field {field!r}: cut away whole, the prompt's {encoded.prompt_length} tokens fill "
        f"data.max_length={max_length}; raise it or set data.max_prompt_length"
    )
