"""A chat asks as the rows of a run's data do."""

import pytest

from alignlab.data.dialogue import prompt_maker
from alignlab.data.formats import alpaca, chat, gptj_pairwise, hh, labelled, plain, tldr, ultrafeedback
from alignlab.rows import Message, PromptRow
from alignlab.worlds.text import TextWorld

HELLO: Message = {"role": "user", "content": "Hello {you}"}
REPLY: Message = {"role": "assistant", "content": " Hi."}
AGAIN: Message = {"role": "user", "content": "Who?"}
DIALOGUE = [HELLO, REPLY, AGAIN]
STRIPPED = (HELLO, {"role": "assistant", "content": "Hi."}, AGAIN)


@pytest.mark.parametrize("as_messages", [False, True])
def test_alpaca_and_hh_ask_as_their_rows_do(as_messages: bool):
    options = {"as_messages": as_messages}
    row = alpaca.instruction({"instruction": "Hello {you}", "input": "", "output": "x"}, **options)
    assert prompt_maker(alpaca.instruction, options)([HELLO]) == row.prompt
    transcript = "\n\nHuman: Hello {you}\n\nAssistant: Hi.\n\nHuman: Who?\n\nAssistant:"
    pair = hh.transcripts({"chosen": transcript + " I.", "rejected": transcript + " You."}, **options)
    assert prompt_maker(hh.transcripts, options)(DIALOGUE) == pair.prompt


def test_formats_of_dialogues_ask_with_all_turns():
    assert chat.prompt({"messages": list(STRIPPED)}).prompt == STRIPPED
    for format in (chat.demonstration, chat.preference, gptj_pairwise.pair, ultrafeedback.binarized):
        assert prompt_maker(format, {"messages": "messages"})(DIALOGUE) == STRIPPED


def test_the_text_world_asks_a_question_of_its_own():
    ask = prompt_maker(TextWorld, {"seed": 0, "num_sft": 5})
    for row in [row for row, _ in zip(TextWorld().rows(PromptRow, "test"), range(20), strict=False)]:
        assert isinstance(row.prompt, str)
        question = row.prompt.removeprefix("Q: ").removesuffix("\nA:")
        assert ask([HELLO, REPLY, {"role": "user", "content": question}]) == row.prompt


def test_a_post_to_sum_up_ends_with_the_cue_of_its_rows():
    post = {"subreddit": "a", "title": "b", "post": "Hello {you}", "summary": "c"}
    prompt = tldr.demonstration(post).prompt
    asked = prompt_maker(tldr.demonstration, {})([HELLO])
    assert isinstance(prompt, str) and isinstance(asked, str) and prompt.endswith(asked)


def test_other_formats_go_on_with_the_text_so_far():
    for format in (plain.preference, plain.text, labelled.review):
        ask = prompt_maker(format, {"prompt": "prompt"})
        assert ask([HELLO]) == "Hello {you}"
        assert ask(DIALOGUE) == "Hello {you} Hi. Who?"
        assert ask([HELLO, {"role": "assistant", "content": "!\n"}, AGAIN]) == "Hello {you} !\nWho?"
