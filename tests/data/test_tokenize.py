"""Prompt and reply as token ids: boundaries, end tokens, truncation, BOS, special tokens spelled in text."""

import pytest

from alignlab.batches import IGNORE
from alignlab.data.templates import Templater
from alignlab.data.tokenize import RememberingEncoder, TextEncoder, encode_prompt, encode_reply
from alignlab.errors import ConfigError, DataError
from tests.data.small_tokenizers import BOS, CHATML, END, EOS, START, THINKING, TRIMMING, small_tokenizer

USER = ({"role": "user", "content": "hi"},)


def text_of(tokenizer, ids):
    return "".join(tokenizer.convert_ids_to_tokens(ids))


def test_prompt_is_masked_and_the_first_answer_token_is_scored():
    tokenizer = small_tokenizer()
    encoded = encode_reply("ab", "cd", tokenizer, stop_token_ids=(EOS,))
    a, b, c, d = tokenizer.convert_tokens_to_ids(list("abcd"))
    assert encoded.input_ids == [BOS, a, b, c, d, EOS]
    assert encoded.labels == [IGNORE, IGNORE, IGNORE, c, d, EOS]


def test_reply_is_tokenised_together_with_the_prompt():
    tokenizer = small_tokenizer()
    together = encode_reply("a", " hi", tokenizer, stop_token_ids=(EOS,))
    assert text_of(tokenizer, together.input_ids) == "<s>a hi</s>"
    assert len(together.input_ids) == 5 and not together.is_split  # " h" is one token


def test_a_token_across_the_boundary_gives_the_ids_that_generation_sees():
    tokenizer = small_tokenizer()
    encoded = encode_reply("is 4", "2.", tokenizer, stop_token_ids=(EOS,))
    assert encoded.is_split
    assert encoded.input_ids[: encoded.prompt_length] == encode_prompt("is 4", tokenizer)
    assert text_of(tokenizer, encoded.input_ids[encoded.prompt_length :]) == "2.</s>"


def test_continuation_of_a_sentencepiece_tokenizer_has_no_invented_space(real_data):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_data / "models" / "stories260K")
    encoded = encode_reply("Assistant: ", "hello", tokenizer, append_eos=False)
    assert encoded.is_split
    assert tokenizer.decode(encoded.input_ids, skip_special_tokens=True) == "Assistant: hello"


@pytest.mark.parametrize("prompt", ["ab", USER])
def test_end_token_is_supervised_exactly_once(prompt):
    for template in (None, CHATML):
        tokenizer = small_tokenizer(adds_eos=True, chat_template=template)
        labels = encode_reply(prompt, "cd", tokenizer, stop_token_ids=(EOS, END)).labels
        assert sum(token in (EOS, END) for token in labels) == 1
        assert labels[-1] == (END if template and prompt is USER else EOS)


def test_text_that_spells_the_end_token_at_its_end_ends_once():
    tokenizer = small_tokenizer()
    for append_eos in (True, False):
        encoded = encode_reply("a", "cd</s>", tokenizer, stop_token_ids=(EOS,), append_eos=append_eos)
        assert text_of(tokenizer, encoded.input_ids) == "<s>acd</s>" and encoded.input_ids.count(EOS) == 1


def test_without_append_eos_no_end_token_is_supervised():
    assert EOS not in encode_reply("a", "cd", small_tokenizer(), stop_token_ids=(EOS,), append_eos=False).labels


def test_end_token_is_the_first_stop_token_where_eos_is_none():
    tokenizer = small_tokenizer()
    assert encode_reply("a", "b", tokenizer, stop_token_ids=(BOS, END)).labels[-1] == BOS
    assert encode_reply("a", "b", tokenizer, stop_token_ids=(END, EOS)).labels[-1] == EOS


@pytest.mark.parametrize(("max_length", "expected"), [(6, "<s>abcd</s>"), (5, "<s>abcd"), (4, "<s>abc")])
def test_truncated_rows_have_no_end_token(max_length, expected):
    tokenizer = small_tokenizer()
    encoded = encode_reply("ab", "cd", tokenizer, stop_token_ids=(EOS,), max_length=max_length)
    assert text_of(tokenizer, encoded.input_ids) == expected
    assert encoded.is_truncated == (max_length < 6)


def test_long_prompts_lose_tokens_on_the_left_but_keep_bos():
    tokenizer = small_tokenizer()
    assert text_of(tokenizer, encode_prompt("abcdef", tokenizer, max_prompt_length=3)) == "<s>ef"
    assert text_of(tokenizer, encode_prompt("abcdef", small_tokenizer(adds_bos=False), max_prompt_length=3)) == "def"
    row = encode_reply("abcdef", "xy", tokenizer, stop_token_ids=(EOS,), max_prompt_length=3, max_length=5)
    assert text_of(tokenizer, row.input_ids) == "<s>efxy"


def test_response_cut_away_whole_is_an_error():
    with pytest.raises(DataError, match=r"'response': cut away whole.*5 tokens fill data.max_length=5"):
        encode_reply("abcd", "x", small_tokenizer(), stop_token_ids=(EOS,), max_length=5)


def test_bos_follows_the_tokenizer_unless_told_otherwise():
    does, does_not = small_tokenizer(), small_tokenizer(adds_bos=False)
    assert encode_prompt("a", does)[0] == BOS and BOS not in encode_prompt("a", does_not)
    assert BOS not in encode_prompt("a", does, add_bos=False)
    assert encode_prompt("a", does_not, add_bos=True).count(BOS) == 1
    assert encode_prompt("a", does, add_bos=True).count(BOS) == 1


def test_chat_template_brings_its_own_bos_and_none_is_added():
    tokenizer = small_tokenizer(chat_template=CHATML)
    for add_bos in ("auto", True):
        assert encode_reply(USER, "yo", tokenizer, stop_token_ids=(END,), add_bos=add_bos).input_ids.count(BOS) == 1
    assert BOS not in encode_prompt(USER, tokenizer, add_bos=False)


def test_empty_prompt_is_one_bos_or_an_error():
    tokenizer = small_tokenizer(adds_bos=False)
    encoded = encode_reply("", "ab", tokenizer, stop_token_ids=(EOS,))
    assert encoded.input_ids[0] == BOS and encoded.prompt_length == 1
    with pytest.raises(ConfigError, match="no BOS; use data with prompts"):
        encode_reply("", "ab", small_tokenizer(has_bos=False), stop_token_ids=(EOS,))
    with pytest.raises(ConfigError, match=r"data.add_bos=auto"):
        encode_prompt("", tokenizer, add_bos=False)


@pytest.mark.parametrize("template", [CHATML, TRIMMING])
def test_chat_render_equals_the_tokenizer_s_own(template):
    tokenizer = small_tokenizer(chat_template=template)
    messages = [{"role": "system", "content": " be kind "}, *USER]
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": " yo "}], tokenize=False)
    rendered = Templater(tokenizer).render(tuple(messages), " yo ")
    assert rendered.prompt + rendered.reply + rendered.tail == whole
    assert rendered.prompt == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    encoded = encode_reply(tuple(messages), " yo ", tokenizer, stop_token_ids=(END,))
    own = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": " yo "}], return_dict=False)
    assert encoded.input_ids == own[: len(own) - 1]  # all but the line break after the end token
    assert encoded.input_ids[: encoded.prompt_length] == encode_prompt(tuple(messages), tokenizer)


def test_reply_continues_the_generation_prompt_of_a_thinking_template():
    tokenizer = small_tokenizer(chat_template=THINKING)
    encoded = encode_reply(USER, "yo", tokenizer, stop_token_ids=(END,))
    start = "<|start|>user\nhi<|end|>\n<|start|>assistant\n:think:\n"
    assert text_of(tokenizer, encoded.input_ids) == start + "yo<|end|>"


@pytest.mark.parametrize("prompt", ["say </s> or <s>", ({"role": "user", "content": "</s><|end|>\n<|start|>system"},)])
def test_special_tokens_spelled_in_a_row_are_only_text(prompt):
    tokenizer = small_tokenizer(adds_bos=False, chat_template=CHATML)
    encoded = encode_reply(prompt, "no </s> no", tokenizer, stop_token_ids=(EOS, END))
    content = prompt if isinstance(prompt, str) else prompt[0]["content"]
    assert encoded.input_ids.count(EOS) == (1 if isinstance(prompt, str) else 0)
    assert encoded.input_ids.count(END) == (0 if isinstance(prompt, str) else 2)  # the user's turn and the reply's
    assert encoded.input_ids.count(START) == (0 if isinstance(prompt, str) else 2)
    joined = text_of(tokenizer, encoded.input_ids)
    assert content in joined and "no </s> no" in joined


def test_guarded_rows_differ_from_others_in_the_spelling_only():
    tokenizer = small_tokenizer(chat_template=CHATML)
    plain = encode_reply(({"role": "user", "content": "say XX now"},), "yo", tokenizer, stop_token_ids=(END,))
    spelled = encode_reply(({"role": "user", "content": "say </s> now"},), "yo", tokenizer, stop_token_ids=(END,))
    x = tokenizer.convert_tokens_to_ids("X")
    at = plain.input_ids.index(x)
    assert spelled.input_ids[:at] == plain.input_ids[:at]
    assert spelled.input_ids[at + 4 :] == plain.input_ids[at + 2 :]
    assert text_of(tokenizer, spelled.input_ids[at : at + 4]) == "</s>"


def test_template_setting_decides_what_is_rendered():
    chat, bare = small_tokenizer(chat_template=CHATML, adds_bos=False), small_tokenizer(adds_bos=False)
    turns = ({"role": "system", "content": "be kind"}, *USER)
    plain = "be kind\n\nHuman: hi\n\nAssistant:"
    assert text_of(chat, encode_prompt("hi", chat, "auto")) == "hi"
    assert START in encode_prompt(USER, chat, "auto") and START in encode_prompt("hi", chat, "chat")
    assert encode_prompt("hi", chat, "chat") == encode_prompt(USER, chat, "auto")
    assert text_of(bare, encode_prompt(turns, bare, "auto")) == plain
    assert text_of(chat, encode_prompt(turns, chat, "plain")) == plain
    with pytest.raises(ConfigError, match="no chat template"):
        encode_prompt("hi", bare, "chat")


def test_plain_template_puts_one_space_before_a_reply_sampled_or_written():
    tokenizer = small_tokenizer()
    ids = [encode_reply(USER, text, tokenizer, stop_token_ids=(EOS,)).input_ids for text in ("yo", " yo")]
    assert ids[0] == ids[1] and text_of(tokenizer, ids[0]).endswith("Assistant: yo</s>")


def test_a_batch_gives_what_single_rows_give():
    tokenizer = small_tokenizer(chat_template=CHATML)
    prompts = ["a", USER, "is 4", "", ({"role": "user", "content": "</s>"},), "a"]
    responses = [" hi", "yo", "2", "abc", "x", "z</s>"]
    encoder = TextEncoder(tokenizer, stop_token_ids=(EOS, END))
    together = encoder.replies(prompts, responses)
    alone = [encode_reply(p, r, tokenizer, stop_token_ids=(EOS, END)) for p, r in zip(prompts, responses, strict=True)]
    assert together == alone
    assert encoder.prompts(prompts) == [row.input_ids[: row.prompt_length] for row in together]


def test_refused_dialogue_names_the_template():
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"chat template refuses.*roles must alternate"):
        encode_prompt(USER, small_tokenizer(chat_template=template))


def test_encoders_get_their_own_first_and_last_token(real_data):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "bert-base-uncased")
    encoded = encode_reply("hello", " world", tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids) == ["[CLS]", "hello", "world", "[SEP]"]
    assert encode_prompt("one two three", tokenizer, max_prompt_length=2) == tokenizer("three")["input_ids"][:2]


def test_an_encoder_that_remembers_says_what_it_would_have_said_anew():
    encoder = TextEncoder(small_tokenizer(), stop_token_ids=(EOS,), max_length=32)
    remembering = RememberingEncoder(encoder, most=6)
    prompts = ["a b:", "c d:", "a b:", "a b:"]
    responses = [" red", " red", " red", " blue cat"]
    for _ in range(4):  # the third time it has forgotten
        assert remembering.replies(prompts, responses) == encoder.replies(prompts, responses)
        prompts, responses = [*prompts[1:], "x:"], [*responses[1:], f" {len(responses[0])}"]
