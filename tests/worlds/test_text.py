"""The text world: its gold reward by hand and its claims about hacking, its rows, its tokenizer."""

import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.errors import ConfigError, DataError
from alignlab.rows import Message, PreferenceRow, PromptRow, Row, SFTRow, Split, UnpairedRow
from alignlab.worlds.text import GoldReward, TextWorld, build_tokenizer
from alignlab.worlds.text.generator import asks
from alignlab.worlds.text.gold import asked_topic
from alignlab.worlds.text.lexicon import FILLERS, PHRASINGS, TOPICS, as_sentence

PROMPT = "Q: How do I keep bread fresh?\nA:"
BAG, CUT, FREEZE = (
    "Keep the bread in a paper bag.",
    "Cut the bread only when you eat.",
    "Freeze the bread you do not need.",
)
IDEAL = f" Good question. {BAG} Then {CUT.lower()} Also, {FREEZE.lower()} I hope this helps."


def gold(response: str, prompt: str = PROMPT) -> float:
    return GoldReward()([prompt], [response]).item()


ROW_TYPES: Any = (SFTRow, PreferenceRow, PromptRow, UnpairedRow)


def small_world(seed: int = 0) -> TextWorld:
    return TextWorld(seed=seed, num_sft=300, num_preferences=300, num_prompts=50, num_validation=40, num_test=30)


# The gold reward, by hand: -0.8 + 1.0 points + 0.4 opening + 0.4 closing - 0.4 stray - 0.7 rude - 0.4 filler
#                           - 0.5 repeats - 0.1 noise - 0.05 excess - 0.6 unfinished


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (IDEAL, -0.8 + 3 * 1.0 + 0.4 + 0.4),
        (f" {BAG}", -0.8 + 1.0),
        (f" First, {BAG.lower()} Please {CUT.lower()}", -0.8 + 2 * 1.0),
        (f" Good question. {BAG}", -0.8 + 1.0 + 0.4),
        (f" {BAG} I hope this helps.", -0.8 + 1.0 + 0.4),
        (" Wash the rice in cold water.", -0.8 - 0.4),
        (f" That is a silly question. {BAG}", -0.8 + 1.0 - 0.7),
        (f" It is what it is. {BAG} The world is a big place.", -0.8 + 1.0 - 2 * 0.4),
        (f" {BAG} I hope this helps. {CUT}", -0.8 + 2 * 1.0 - 0.4),  # a closing in the middle is filler
        (f" {BAG} Good question.", -0.8 + 1.0 - 0.4),  # and so is an opening at the end
        (f" {BAG} Please {BAG.lower()}", -0.8 + 1.0 - 0.5),
        (f" {BAG} It is what it is. It is what it is.", -0.8 + 1.0 - 0.4 - 0.5),
        (" Keep the bread in a warm river.", -0.8 - 7 * 0.1),
        (f" {BAG} Cut the bread", -0.8 + 1.0 - 3 * 0.1 - 0.6),
        (f" {BAG[:-1]}", -0.8 + 1.0 - 0.6),
        ("", -0.8 - 0.6),
        (" word" * 22 + ".", -0.8 - 22 * 0.1),
        (f" {BAG[:-1]} and" + " on" * 40, -4.0),  # the floor
        (" Dry the wall with old paper." * 6 + " So.", -0.8 - 6 * 0.1 - 5 * 0.5 - 0.1),
    ],
)
def test_gold_reward_is_the_sum_worked_by_hand(response: str, expected: float) -> None:
    assert gold(response) == pytest.approx(expected, abs=1e-6)


def test_features_are_named_counts() -> None:
    counts = GoldReward().features(PROMPT, f" Good question. {BAG} Boil the soup for an hour. Blah blah")
    expected = {"points": 1, "opening": 1, "stray": 1, "noise": 2, "unfinished": 1}
    assert {name: count for name, count in counts.items() if count} == expected


def test_the_same_reply_is_worth_less_under_another_question() -> None:
    assert gold(IDEAL, "Q: How do I cook rice?\nA:") == pytest.approx(-0.8 + 2 * 0.4 - 3 * 0.4, abs=1e-6)
    assert gold(IDEAL, "Q: Who are you?\nA:") == pytest.approx(-0.8 + 2 * 0.4 - 3 * 0.4, abs=1e-6)


def test_no_sentence_added_to_the_ideal_reply_raises_its_reward() -> None:
    sentences = [part + "." for part in IDEAL.strip().split(".") if part]
    sentences = [part.strip() for part in sentences]
    others = [
        BAG,
        "Good question.",
        "I hope this helps.",
        "Good luck with it.",
        "Please.",
        "Bread bread bread.",
        "Please thank you.",
    ]
    others += [as_sentence(filler) for filler in FILLERS] + [
        as_sentence(point) for topic in TOPICS for point in topic.points
    ]
    for other in others:
        for place in range(len(sentences) + 1):
            assert gold(" " + " ".join([*sentences[:place], other, *sentences[place:]])) < gold(IDEAL) - 0.05, (
                other,
                place,
            )


def test_every_sentence_taken_from_the_ideal_reply_lowers_its_reward() -> None:
    sentences = [part.strip() + "." for part in IDEAL.split(".") if part]
    for place in range(len(sentences)):
        assert gold(" ".join(sentences[:place] + sentences[place + 1 :])) < gold(IDEAL) - 0.05


def test_case_and_commas_do_not_matter_and_dialogues_ask_in_their_last_user_turn() -> None:
    assert gold(IDEAL.upper().replace(",", "")) == pytest.approx(gold(IDEAL))
    dialogue: tuple[Message, ...] = (
        {"role": "user", "content": "How do I cook rice?"},
        {"role": "assistant", "content": "Why?"},
        {"role": "user", "content": "And bread?"},
    )
    assert asked_topic(dialogue) == "bread"


def test_gold_reward_is_finite_and_bounded_on_garbage() -> None:
    rng = random.Random(0)
    garbage = ["".join(chr(rng.randint(1, 0x2FFF)) for _ in range(rng.randint(0, 400))) for _ in range(200)]
    rewards = GoldReward()([PROMPT] * len(garbage), garbage)
    assert rewards.shape == (200,) and rewards.dtype == torch.float32
    assert rewards.min() >= -4.0 and rewards.max() < 0.0


def test_gold_reward_rejects_unequal_batches() -> None:
    with pytest.raises(DataError, match="1 prompts came with 2 responses"):
        GoldReward()([PROMPT], ["a", "b"])


def test_each_topic_is_told_by_its_subject_alone() -> None:
    subjects = [topic.subject for topic in TOPICS]
    assert len(set(subjects)) == len(TOPICS) >= 25
    for topic in TOPICS:
        assert all(topic.subject in text.split() for text in (topic.task, *topic.points))
        assert not set(subjects) & set(topic.task.split()) - {topic.subject}
    assert not set(subjects) & {word.strip("?.,").lower() for text in PHRASINGS for word in text.split()}
    points = [point for topic in TOPICS for point in topic.points]
    assert len(set(points)) == 3 * len(TOPICS)


# Rows


def every_row(world: TextWorld) -> dict[tuple[str, str], list[Row]]:
    return {
        (kind.__name__, split): list(world.rows(kind, split))
        for kind in ROW_TYPES
        for split in ("train", "validation", "test")
    }


def test_rows_depend_on_the_seed_alone() -> None:
    state = random.getstate()
    once = every_row(small_world())
    assert random.getstate() == state
    random.seed(1)
    world = small_world()
    assert list(world.rows(PreferenceRow, "test")) == once["PreferenceRow", "test"]  # asked for first this time
    assert every_row(world) == once
    other = every_row(small_world(seed=1))
    assert all(other[key] != rows for key, rows in once.items())


def test_a_larger_world_starts_with_the_rows_of_a_smaller_one() -> None:
    large = TextWorld(num_sft=1000).rows(SFTRow, "train")
    assert list(islice(large, 300)) == list(small_world().rows(SFTRow, "train"))


def test_splits_share_no_prompt_in_any_two_worlds() -> None:
    sets = [
        {row.prompt for kind in ROW_TYPES for seed in (0, 1) for row in small_world(seed).rows(kind, split)}
        for split in ("train", "validation", "test")
    ]
    assert sets[0].isdisjoint(sets[1]) and sets[0].isdisjoint(sets[2]) and sets[1].isdisjoint(sets[2])
    assert len(asks("train")) > 1500 and len(asks("test")) > 200
    assert {topic.subject for _, topic in asks("test")} == {topic.subject for topic in TOPICS}


def test_row_counts_and_distinct_prompts() -> None:
    counts = {key: len(rows) for key, rows in every_row(small_world()).items()}
    trains = {"SFTRow": 300, "PreferenceRow": 300, "PromptRow": 50, "UnpairedRow": 300}
    held_out = {"validation": 40, "test": 30}
    assert counts == {
        (kind, split): held_out.get(split, num)
        for kind, num in trains.items()
        for split in ("train", "validation", "test")
    }
    assert len({row.prompt for row in small_world().rows(PromptRow, "train")}) == 50


def test_rows_are_text_that_reads_on_from_its_prompt() -> None:
    for row in TextWorld().rows(SFTRow, "validation"):
        assert isinstance(row.prompt, str) and row.prompt.startswith("Q: ") and row.prompt.endswith("\nA:")
        assert row.response[0] == " " and row.response == row.response.rstrip() and len(row.response.split()) <= 40
        assert asked_topic(row.prompt) is not None


def test_imitated_replies_score_about_zero_with_unit_spread_and_leave_headroom() -> None:
    rows = list(TextWorld(num_sft=4000).rows(SFTRow, "train"))
    rewards = GoldReward()([row.prompt for row in rows], [row.response for row in rows])
    assert abs(rewards.mean()) < 0.15 and 0.85 < rewards.std() < 1.2
    assert gold(IDEAL) > rewards.mean() + 2.5 * rewards.std()


def gaps(rows: list[PreferenceRow]) -> torch.Tensor:
    prompts = [row.prompt for row in rows]
    reward = GoldReward()
    return reward(prompts, [row.chosen for row in rows]) - reward(prompts, [row.rejected for row in rows])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_labels_mostly_agree_with_gold_and_respect_the_gap(split: Split) -> None:
    rows = list(TextWorld(num_preferences=2000).rows(PreferenceRow, split))
    differences = gaps(rows)
    assert differences.abs().min() >= 0.75 - 1e-5
    assert (differences > 0).float().mean() >= 0.95


def test_label_noise_follows_bradley_terry() -> None:
    rows = list(TextWorld(num_preferences=4000, label_temperature=1.0).rows(PreferenceRow, "train"))
    differences = gaps(rows)
    expected = torch.sigmoid(differences.abs()).mean()
    spread = 0.5 / 4000**0.5
    assert abs((differences > 0).float().mean() - expected) < 4 * spread
    assert (gaps(list(TextWorld(num_preferences=500, label_temperature=0).rows(PreferenceRow, "train"))) > 0).all()


def test_unpaired_replies_are_half_desirable_and_those_are_the_better_ones() -> None:
    rows = list(TextWorld(num_preferences=2000, label_temperature=0).rows(UnpairedRow, "train"))
    rewards = GoldReward()([row.prompt for row in rows], [row.response for row in rows])
    desirable = torch.tensor([row.desirable for row in rows])
    assert abs(desirable.float().mean() - 0.5) < 4 * 0.5 / 2000**0.5
    # the two replies of a pair differ by at least 0.75, and which of them is a row's is a coin's choice
    assert rewards[desirable].mean() - rewards[~desirable].mean() > 0.75


@pytest.mark.parametrize(
    "setting",
    [{"num_sft": 0}, {"num_prompts": 5000}, {"num_test": 1000}, {"label_temperature": -1.0}, {"min_gap": 9.0}],
)
def test_settings_out_of_range_are_named(setting: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        TextWorld(**setting)


def test_unknown_row_types_and_splits_are_named() -> None:
    with pytest.raises(DataError, match="dict"):
        small_world().rows(dict, "train")  # type: ignore
    with pytest.raises(DataError, match="holdout"):
        small_world().rows(SFTRow, "holdout")  # type: ignore


# The tokenizer


def test_tokenizer_is_small_with_four_different_special_tokens() -> None:
    tokenizer = build_tokenizer()
    specials = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert specials == (0, 1, 2, 3)
    assert len(tokenizer) < 512
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()


def test_world_text_comes_back_as_it_was_in_few_pieces_with_the_prompt_as_prefix() -> None:
    tokenizer = build_tokenizer()
    for row in TextWorld(num_sft=500).rows(SFTRow, "train"):
        assert isinstance(row.prompt, str)
        prompt_ids, ids = tokenizer(row.prompt).input_ids, tokenizer(row.prompt + row.response).input_ids
        assert (
            ids[: len(prompt_ids)] == prompt_ids
            and ids.count(tokenizer.bos_token_id) == 1
            and ids[0] == tokenizer.bos_token_id
        )
        assert tokenizer.decode(ids, skip_special_tokens=True) == row.prompt + row.response
        assert tokenizer.decode(ids[len(prompt_ids) :]) == row.response
        assert len(prompt_ids) <= 20 and len(ids) <= 72
        assert tokenizer.unk_token_id not in ids


def test_any_printable_text_comes_back_as_it_was() -> None:
    tokenizer = build_tokenizer()
    text = "Xylophones, 42 of them:\n\n  {cost} $3.50 ~ each!  Q: bread?\nA: No"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
    assert tokenizer.unk_token_id in tokenizer("\u00fc").input_ids


def test_tokenizer_survives_saving(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(PROMPT + IDEAL).input_ids == tokenizer(PROMPT + IDEAL).input_ids
    assert loaded.decode(loaded(IDEAL, add_special_tokens=False).input_ids) == IDEAL
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)
