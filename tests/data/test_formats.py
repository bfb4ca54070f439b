"""Row functions: each published shape, and what each refuses. All rows are made up."""

import pytest

from alignlab.data.checks import check_row
from alignlab.data.formats import alpaca, chat, gptj_pairwise, hh, labelled, llmbar, plain, rmbench, tldr, ultrafeedback
from alignlab.errors import DataError
from alignlab.rows import PreferenceRow, PromptRow, SFTRow

ASK = {"role": "user", "content": "Why is the sky blue?"}
GOOD = {"role": "assistant", "content": "It scatters blue light."}
BAD = {"role": "assistant", "content": "No idea."}


def test_plain_fields_may_be_named():
    record = {"q": "2+2=", "a": " 4", "b": " 5", "text": "once"}
    assert plain.preference(record, prompt="q", chosen="a", rejected="b") == PreferenceRow("2+2=", " 4", " 5")
    assert plain.demonstration(record, prompt="q", response="a") == SFTRow("2+2=", " 4")
    assert plain.text(record) == SFTRow("", "once")
    assert plain.prompt(record, prompt="q") == PromptRow("2+2=")


def test_chat_takes_the_last_turn_as_reply():
    turns = [{"role": "system", "content": "Be kind."}, ASK, BAD, ASK]
    assert chat.demonstration({"messages": [*turns, GOOD]}) == SFTRow(tuple(turns), GOOD["content"])
    assert chat.prompt({"messages": [*turns, GOOD]}) == chat.prompt({"messages": turns}) == PromptRow(tuple(turns))


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": "Why is the sky blue?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [ASK], "chosen": GOOD["content"], "rejected": BAD["content"]},
        {"prompt": "Why is the sky blue?", "chosen": GOOD["content"], "rejected": BAD["content"]},
    ],
)
def test_all_shapes_of_a_binarized_pair_give_one_row(record):
    assert ultrafeedback.binarized(record) == PreferenceRow((ASK,), GOOD["content"], BAD["content"])


def test_hh_prompt_is_the_transcript_up_to_the_last_assistant():
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Bread?\n\nAssistant:"
    record = {"chosen": start + " Flour first.", "rejected": start + " No."}
    assert hh.transcripts(record) == PreferenceRow(start, " Flour first.", " No.")


def test_hh_turns_in_the_plain_template_are_the_transcript_again():
    from alignlab.data.templates import Templater
    from tests.data.small_tokenizers import small_tokenizer

    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Bread?\n\nAssistant:"
    record = {"chosen": start + " Flour first.", "rejected": start + " No."}
    row = hh.transcripts(record, as_messages=True)
    assert row.prompt == (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bread?"},
    )
    rendered = Templater(small_tokenizer(), "plain").render(row.prompt, row.chosen)
    assert rendered.prompt + rendered.reply == record["chosen"]


def test_alpaca_leaves_the_input_part_out_where_it_is_empty():
    row = {"instruction": "Sort {these}", "input": "b a", "output": "a b"}
    with_input, without = alpaca.instruction(row), alpaca.instruction({**row, "input": ""})
    assert "### Input:\nb a\n\n### Response:\n" in with_input.prompt and "Sort {these}" in with_input.prompt
    assert "### Input" not in without.prompt and without.prompt.endswith("### Response:\n")
    assert alpaca.instruction(row, as_messages=True).prompt[0]["content"] == "Sort {these}\n\nb a"


def test_pairs_of_outputs_are_asked_in_alpacas_words_whatever_their_fields_are_called():
    row = {"instruction": "Sort {these}", "input": "b a", "output": "a b", "chosen": "a b", "rejected": "b a"}
    for as_messages in (False, True):
        pair = alpaca.preference(row, as_messages=as_messages)
        assert pair.prompt == alpaca.instruction(row, as_messages=as_messages).prompt
        assert (pair.chosen, pair.rejected) == ("a b", "b a")
    named = {"instruction": "prompt", "input": None, "chosen": "accepted", "rejected": "rejected"}
    pair = alpaca.preference({"prompt": "Sort {these}", "accepted": "x", "rejected": "y"}, **named)
    assert pair.prompt == alpaca.instruction({**row, "input": ""}).prompt and pair.chosen == "x"
    with pytest.raises(DataError, match="field 'chosen': missing"):
        alpaca.preference({"instruction": "a", "input": "", "accepted": "x", "rejected": "y"})


def test_reviews_are_learnt_whole_or_continued():
    record = {"text": "A fine film about ducks.", "label": 1}
    assert labelled.review(record) == SFTRow("", record["text"])
    assert labelled.review(record, prompt_words=2) == SFTRow("A fine", " film about ducks.")
    with pytest.raises(DataError, match="no text left after the 5 words"):
        labelled.review(record, prompt_words=5)


def test_line_breaks_of_a_review_are_a_space_where_asked():
    record = {"text": "A fine<br /><br /> film. <BR/>Ducks!"}
    assert labelled.review(record).response == record["text"]
    assert labelled.review(record, keep_breaks=False).response == "A fine film. Ducks!"
    assert labelled.review(record, prompt_words=2, keep_breaks=False) == SFTRow("A fine", " film. Ducks!")


def test_gptj_prompt_becomes_one_turn():
    row = gptj_pairwise.pair({"prompt": ASK["content"], "chosen": "Light.", "rejected": "Paint."})
    assert row == PreferenceRow((ASK,), "Light.", "Paint.")
    assert gptj_pairwise.pair(
        {"q": ASK["content"], "a": "Light.", "b": "No."}, prompt="q", chosen="a", rejected="b"
    ) == (PreferenceRow((ASK,), "Light.", "No."))


def test_tldr_shapes_agree():
    post = {"subreddit": "cats", "title": "My cat", "post": "It sleeps."}
    prompt = "SUBREDDIT: r/cats\n\nTITLE: My cat\n\nPOST: It sleeps.\n\nTL;DR:"
    official = {"info": post, "summaries": [{"text": " Cat."}, {"text": " Sleepy cat."}], "choice": 1}
    flat = {"prompt": prompt, "chosen": " Sleepy cat.", "rejected": " Cat."}
    assert tldr.comparison(official) == tldr.comparison(flat) == PreferenceRow(prompt, " Sleepy cat.", " Cat.")
    assert tldr.demonstration({**post, "summary": "Sleepy cat."}) == SFTRow(prompt, " Sleepy cat.")
    assert tldr.demonstration({"prompt": prompt, "completion": " Sleepy cat."}) == SFTRow(prompt, " Sleepy cat.")


@pytest.mark.parametrize(
    ("function", "record", "message"),
    [
        (plain.text, {"txet": "a"}, "field 'text': missing, the row has 'txet'; did you mean 'txet'"),
        (plain.text, {"text": 7}, "field 'text': got number 7, expected a string"),
        (plain.text, {"text": None}, "field 'text': got null"),
        (plain.text, {"text": ["a"]}, "field 'text': got list of 1"),
        (plain.text, {"text": True}, "field 'text': got boolean true"),
        (plain.text, {"text": " \n"}, "field 'text': the response is empty"),
        (plain.text, {"text": "\ud800"}, "field 'text': half of a surrogate pair"),
        (plain.preference, {"prompt": "a", "chosen": {"x": 1}, "rejected": "b"}, "'chosen': got object with x"),
        (chat.demonstration, {"messages": "hi"}, "field 'messages': got string 'hi', expected a list of messages"),
        (chat.demonstration, {"messages": []}, "field 'messages': got list of 0"),
        (chat.demonstration, {"messages": [ASK]}, "the last by user; expected a request and then"),
        (chat.demonstration, {"messages": [ASK, {"role": "bot", "content": "a"}]}, r"'messages\[1\].role': got string"),
        (chat.demonstration, {"messages": [ASK, {"role": "assistant"}]}, r"'messages\[1\].content': got null"),
        (chat.demonstration, {"messages": [ASK, {"role": "system", "content": "x"}]}, "allowed first only"),
        (chat.demonstration, {"messages": [ASK, "no"]}, r"'messages\[1\]': got string 'no', expected an object"),
        (chat.preference, {"chosen": [ASK, GOOD], "rejected": [BAD, BAD]}, "their dialogues differ"),
        (hh.transcripts, {"chosen": "hello", "rejected": "hello"}, "field 'chosen': no .*Assistant:.*string 'hello'"),
        (
            hh.transcripts,
            {"chosen": "\n\nAssistant: ", "rejected": "\n\nAssistant: a"},
            "'chosen': the response is empty",
        ),
        (hh.transcripts, {"chosen": "a\n\nAssistant: a", "rejected": "b\n\nAssistant: b"}, "their dialogues differ"),
        (tldr.comparison, {"info": {}, "summaries": [{}, {}], "choice": True}, "'choice': got boolean true"),
        (tldr.comparison, {"info": 3, "summaries": [{}, {}], "choice": 1}, "'info': got number 3"),
        (alpaca.instruction, {"instruction": "a", "output": "b"}, "field 'input': missing"),
    ],
)
def test_malformed_record_is_refused_with_field_and_expectation(function, record, message):
    with pytest.raises(DataError, match=message):
        function(record)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (PreferenceRow("a", "same", "same"), "'chosen' and 'rejected': identical"),
        (PreferenceRow("a", "x", " "), "'rejected': the response is empty"),
        (SFTRow("a", ""), "'response': the response is empty"),
        (SFTRow(3, "a"), "'prompt': got number 3, expected a list of messages"),
        (SFTRow((ASK, GOOD), "a"), "the last turn before the reply is the assistant's"),
        (PromptRow(""), "'prompt': empty"),
        ({"prompt": "a"}, "the format returned a dict"),
    ],
)
def test_rows_of_any_format_are_checked(row, message):
    with pytest.raises(DataError, match=message):
        check_row(row)


def test_a_subset_is_read_where_its_field_is_named():
    record = {"prompt": "2+2=", "chosen": " 4", "rejected": " 5", "part": "sums"}
    assert plain.preference(record).subset is None
    assert plain.preference(record, subset="part").subset == "sums"
    turns = {"prompt": [ASK], "chosen": "Light.", "rejected": "Paint.", "part": "sky"}
    assert chat.preference(turns, subset="part").subset == "sky"
    with pytest.raises(DataError, match=r"'partt': missing.*did you mean 'part'"):
        plain.preference(record, subset="partt")
    with pytest.raises(DataError, match="'part': got number 3, expected a string"):
        plain.preference(record | {"part": 3}, subset="part")


def test_rm_bench_is_nine_pairs_with_their_styles():
    record = {"prompt": "Why?", "domain": "chat", "chosen": ["a", "b", "c"], "rejected": ["x", "y", "z"]}
    rows = rmbench.pairs(record)
    assert [(row.chosen, row.rejected) for row in rows[2:5]] == [("a", "z"), ("b", "x"), ("b", "y")]
    assert [row.styles for row in rows[2:5]] == [(0, 2), (1, 0), (1, 1)] and len(rows) == 9
    assert {row.subset for row in rows} == {"chat"} and rows[0].prompt == ({"role": "user", "content": "Why?"},)
    assert rmbench.pairs(record, subset=None)[0].subset is None
    with pytest.raises(DataError, match="'rejected': got list of 2, expected a list of 3: concise, detailed, markdown"):
        rmbench.pairs(record | {"rejected": ["x", "y"]})
    with pytest.raises(DataError, match=r"'chosen\[1\]': the response is empty"):
        rmbench.pairs(record | {"chosen": ["a", " ", "c"]})


def test_llmbar_has_two_shapes():
    published = {"input": "Name a fruit.", "output_1": "A carrot.", "output_2": "An apple.", "label": 2}
    flat = {"prompt": "Name a fruit.", "chosen": "An apple.", "rejected": "A carrot.", "subset": "natural"}
    ask = ({"role": "user", "content": "Name a fruit."},)
    assert llmbar.pair(published) == llmbar.pair(flat) == PreferenceRow(ask, "An apple.", "A carrot.")
    assert llmbar.pair(flat, subset="subset").subset == "natural"
    with pytest.raises(DataError, match="'label': got number 0, expected 1 or 2"):
        llmbar.pair(published | {"label": 0})
