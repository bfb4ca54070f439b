"""Pairs from labelled texts: who meets whom, which side is chosen, and what is refused."""

import functools
import json
from pathlib import Path

import pytest

from alignlab.data.formats.labelled import review
from alignlab.data.opposites import Opposites
from alignlab.data.sources import located_rows
from alignlab.errors import ConfigError, DataError
from alignlab.rows import PreferenceRow, UnpairedRow

TEXTS = [("a", 0), ("b", 0), ("C", 1), ("d", 0), ("E", 1), ("F", 1), ("G", 1)]


def source(folder: Path, records: list[dict], *, split: str = "train", **settings) -> Opposites:
    file = folder / "reviews.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    given = {"preferred": 0, "other": 1, "format": review, split: str(file)} | settings
    return Opposites("someone/reviews", revision="0" * 40, **given)


def records() -> list[dict]:
    return [{"text": text, "label": label} for text, label in TEXTS]


def test_the_nth_text_of_one_label_meets_the_nth_of_the_other(tmp_path: Path):
    assert list(source(tmp_path, records()).rows(PreferenceRow, "train")) == [
        PreferenceRow("", "a", "C"),
        PreferenceRow("", "b", "E"),
        PreferenceRow("", "d", "F"),  # G is left over
    ]


def test_the_other_label_may_be_the_preferred_one(tmp_path: Path):
    rows = source(tmp_path, records(), preferred=1, other=0).rows(PreferenceRow, "train")
    assert [(row.chosen, row.rejected) for row in rows] == [("C", "a"), ("E", "b"), ("F", "d")]


def test_labels_may_be_words_and_a_csv_spells_numbers(tmp_path: Path):
    words = [{"text": text, "label": "pos" if label else "neg"} for text, label in TEXTS]
    by_words = list(source(tmp_path, words, preferred="neg", other="pos").rows(PreferenceRow, "train"))
    spelled = [{"text": text, "label": str(label)} for text, label in TEXTS]
    assert by_words == list(source(tmp_path, spelled).rows(PreferenceRow, "train"))
    assert len(by_words) == 3


def test_pairs_serve_as_two_unpaired_rows_of_which_the_preferred_is_desirable(tmp_path: Path):
    rows = list(source(tmp_path, records()).rows(UnpairedRow, "train"))
    assert rows[:2] == [UnpairedRow("", "a", True), UnpairedRow("", "C", False)]


def test_a_bad_record_is_told_with_its_place_and_the_others_still_pair(tmp_path: Path):
    bad = [*records()[:2], {"text": "x", "label": -1}, {"text": " ", "label": 1}, {"label": 1}, *records()[2:]]
    made = source(tmp_path, bad, split="test")
    with pytest.raises(DataError, match=r"reviews.jsonl:3: field 'label': got number -1, expected 0 or 1"):
        list(made.rows(PreferenceRow, "test"))
    found = [located.value for located in located_rows(made, PreferenceRow, "test")]
    assert [type(value) for value in found] == [DataError] * 3 + [PreferenceRow] * 3
    assert "field 'text': missing" in str(found[2])


def test_texts_of_one_label_alone_are_refused(tmp_path: Path):
    only = [{"text": "a", "label": 0}, {"text": "b", "label": 0}]
    with pytest.raises(DataError, match="all 2 texts have 0, pairs need 0 and 1"):
        list(source(tmp_path, only).rows(PreferenceRow, "train"))


def test_a_pair_has_two_labels_and_no_prompt(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data.source.preferred=1: the same"):
        source(tmp_path, records(), preferred=1)
    longer = [{"text": f"{text} and more", "label": label} for text, label in TEXTS]
    with pytest.raises(DataError, match="set prompt_words to 0"):
        list(source(tmp_path, longer, format=functools.partial(review, prompt_words=1)).rows(PreferenceRow, "train"))


def test_the_fingerprint_is_of_the_content(tmp_path: Path):
    first = source(tmp_path, records()).fingerprint()
    assert source(tmp_path, records()).fingerprint() == first
    assert source(tmp_path, records()[:-1]).fingerprint() != first
