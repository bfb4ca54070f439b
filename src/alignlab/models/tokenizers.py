"""Tokenizers and stop tokens: what a network reads, and where its replies end."""

from collections.abc import Sequence
from typing import Any

from alignlab.errors import ModelError
from alignlab.models.origins import Origin
from alignlab.models.quiet import first_line

_GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that read a text exactly as tokenizer.json says."""


def load_tokenizer(origin: Origin) -> Any:
    """The tokenizer saved at `origin`. ModelError if there is none.

    One that declares a generic class is loaded as that class. AutoTokenizer overrules the declaration for some model
    types (qwen2, phi3, ...): it would put their own splitting of words in place of the one in the file, unsaid.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    where = {"revision": origin.revision or "main", "local_files_only": origin.is_folder}
    try:
        generic = get_tokenizer_config(origin.name, **where).get("tokenizer_class") in _GENERIC
        kind = PreTrainedTokenizerFast if generic else AutoTokenizer
        return kind.from_pretrained(origin.name, trust_remote_code=False, **where)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.tokenizer: {origin.name} has no tokenizer that can be read: {first_line(error)}"
        ) from error


def loading_class(tokenizer: Any) -> str:
    """The transformers class whose `from_pretrained` gives this tokenizer back from where it was saved."""
    return "PreTrainedTokenizerFast" if type(tokenizer).__name__ in _GENERIC else "AutoTokenizer"


def own_tokenizer(origin: Origin, given: Any) -> Any:
    """The tokenizer that came with the weights at `origin`, or `given` where they have none.

    ModelError if both exist and map texts to different ids: the weights would read noise.
    """
    if given is None:
        return load_tokenizer(origin)
    try:
        own = load_tokenizer(origin)
    except ModelError:
        return given
    if own.get_vocab() != given.get_vocab():
        raise ModelError(
            f"model.tokenizer: its vocabulary is not that of {origin.name}, which brings its own tokenizer; leave "
            "model.tokenizer at null (model=pretrained)"
        )
    return own


def with_padding(tokenizer: Any) -> Any:
    """The tokenizer with a pad token: its own, else its end token (masks come from lengths, so that is safe)."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "model.tokenizer: it names neither a pad nor an end token; set one of them in the tokenizer"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_vocabulary(tokenizer: Any, vocab_size: int) -> None:
    """ModelError if the tokenizer has ids that the network has no embedding for (nothing is ever resized silently)."""
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocab_size:
        raise ModelError(
            f"model.tokenizer: its highest token id is {highest}, but the network has embeddings for {vocab_size}; "
            "they do not belong together"
        )


def stop_tokens(explicit: Sequence[int] | None, origin: Origin | None, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a reply: the given ones, else generation_config's, else the tokenizer's end token.

    ModelError for none at all, and for ids outside the vocabulary.
    """
    if explicit is not None:
        found, named = tuple(explicit), f"model.stop_token_ids={list(explicit)}"
    elif origin is not None and (ids := _generation_stops(origin)):
        found, named = ids, f"{origin.name}/generation_config.json: eos_token_id={list(ids)}"
    else:
        end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id  # encoders have sep
        found, named = () if end is None else (end,), "the tokenizer's end token"
    if not found:
        raise ModelError(
            "no stop token: neither generation_config nor the tokenizer names one; set model.stop_token_ids"
        )
    highest = max(tokenizer.get_vocab().values())
    if any(token < 0 or token > highest for token in found):
        raise ModelError(f"{named}: the tokenizer's ids run from 0 to {highest}")
    return tuple(dict.fromkeys(found))


def _generation_stops(origin: Origin) -> tuple[int, ...]:
    """eos_token_id of the generation_config at `origin`, if there is one."""
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(
            origin.name, revision=origin.revision or "main", local_files_only=origin.is_folder
        )
    except OSError:
        return ()
    ids: Any = config.eos_token_id
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)
