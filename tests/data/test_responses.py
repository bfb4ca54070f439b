"""The responses that test rows come with."""

import json

import pytest

from alignlab.data.formats.plain import demonstration, preference, prompt
from alignlab.data.responses import has_rows, prompt_key, responses_of
from alignlab.data.sources import Files
from alignlab.errors import DataError
from alignlab.rows import PreferenceRow, SFTRow
from alignlab.worlds.text import TextWorld


def files(path, format, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Files(test=path, format=format)


def test_pairs_give_the_better_reply_and_bad_rows_are_left_out(tmp_path):
    pair = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    source = files(tmp_path / "a.jsonl", preference, {"prompt": "q"}, pair, {**pair, "chosen": "better"})
    assert has_rows(source, PreferenceRow)
    assert responses_of(source) == {prompt_key("p"): ["good", "better"]}


def test_demonstrations_give_what_is_to_be_imitated_and_prompts_nothing(tmp_path):
    source = files(tmp_path / "a.jsonl", demonstration, {"prompt": "p", "response": "r"})
    assert responses_of(source) == {prompt_key("p"): ["r"]} and not has_rows(source, PreferenceRow)
    with pytest.raises(DataError, match="no responses"):
        responses_of(files(tmp_path / "b.jsonl", prompt, {"prompt": "p"}))


def test_a_world_with_both_gives_the_chosen_one():
    world = TextWorld(seed=0, num_sft=4, num_preferences=4, num_prompts=4, num_validation=2, num_test=3)
    rows = list(world.rows(PreferenceRow, "test"))
    found = responses_of(world)
    assert [found[prompt_key(row.prompt)][0] for row in rows] == [row.chosen for row in rows]
    assert has_rows(world, SFTRow)


def test_a_dialogue_has_one_key_in_rows_and_in_json():
    turns = ({"role": "user", "content": "Hi"},)
    assert prompt_key(turns) == prompt_key(json.loads(json.dumps(turns)))
