"""Text while it is written: whole characters, and together exactly the reply."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignlab.rollout.generate import generate
from alignlab.rollout.streaming import TextStream
from tests import tiny_models as tiny
from tests.rollout.test_generate import LENGTHS, one_row, reply_ids, seeded

STOPS = (2, 11, 17, 20, 30)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, as GPT-2's tokenizer falls back to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def pieces_of(tokenizer, prompt: list[int], tokens: list[int], stops: tuple[int, ...] = ()) -> list[str]:
    """What a stream hands on, token by token."""
    pieces: list[str] = []
    stream = TextStream(tokenizer, prompt, stop_token_ids=stops, write=pieces.append)
    for token in tokens:
        stream(torch.tensor([0]), torch.tensor([token]))
    stream.close()
    return pieces


def test_a_character_of_several_tokens_comes_whole() -> None:
    tokenizer = byte_tokenizer()
    text = "a\u00e9\u20ac\U0001f600\u00e9b"  # 1, 2, 3, 4, 2 and 1 bytes
    tokens = tokenizer(text)["input_ids"]
    assert len(tokens) == 13
    assert pieces_of(tokenizer, tokenizer("x")["input_ids"], tokens) == list(text)


def test_bytes_that_are_no_character_are_told_once_that_is_certain() -> None:
    tokenizer = byte_tokenizer()
    prompt, euro = tokenizer("x")["input_ids"], tokenizer("\u20ac")["input_ids"]
    assert pieces_of(tokenizer, prompt, [*euro[:2], *tokenizer("a")["input_ids"]]) == ["\ufffda"]
    assert pieces_of(tokenizer, prompt, euro[:2]) == ["\ufffd"]  # cut at its longest


def test_the_first_space_of_tokenizers_that_mark_words_is_kept() -> None:
    words = Tokenizer(models.WordLevel({"\u2581once": 0, "\u2581upon": 1, "\u2581a": 2, "<unk>": 3}, unk_token="<unk>"))
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert pieces_of(tokenizer, [0], [1, 2]) == [" upon", " a"]


@pytest.mark.parametrize("seed", range(4))
def test_the_pieces_are_the_reply_without_its_stop_token(seed: int) -> None:
    policy = tiny.tiny_policy("gpt2", stop_token_ids=STOPS)  # stop tokens that have text
    prompts = one_row(tiny.tiny_prompts(LENGTHS), 1)
    pieces: list[str] = []
    stream = TextStream(policy.tokenizer, prompts.input_ids[0].tolist(), stop_token_ids=STOPS, write=pieces.append)
    rollout = generate(policy, prompts, max_new_tokens=20, generator=seeded(seed), temperature=2.0, on_tokens=stream)
    stream.close()
    assert "".join(pieces) == rollout.responses[0]
    assert len(pieces) == len([token for token in reply_ids(rollout, 0) if token > 3 and token not in STOPS])


def test_who_looks_on_sees_every_token_and_changes_none() -> None:
    policy, prompts = tiny.tiny_policy("llama", stop_token_ids=STOPS), tiny.tiny_prompts(LENGTHS)
    seen: list[list[int]] = [[] for _ in LENGTHS]

    def look(rows: torch.Tensor, tokens: torch.Tensor) -> None:
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            seen[row].append(token)

    alone, watched = (
        generate(policy, prompts, max_new_tokens=20, generator=seeded(1), on_tokens=watcher) for watcher in (None, look)
    )
    assert all(ours.equal(theirs) for ours, theirs in zip(alone.sequences, watched.sequences, strict=True))
    assert alone.sampler_logprobs.equal(watched.sampler_logprobs)
    assert seen == [reply_ids(alone, row) for row in range(4)]
    assert len({len(tokens) for tokens in seen}) > 1  # rows left the batch at different steps


def test_an_onlooker_that_raises_ends_the_reply_and_leaves_the_policys_mode() -> None:
    policy, prompts = tiny.tiny_policy("llama"), tiny.tiny_prompts((3,))
    policy.train()

    def stop(_rows: torch.Tensor, _tokens: torch.Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(policy, prompts, max_new_tokens=20, greedy=True, on_tokens=stop)
    assert policy.model.training
