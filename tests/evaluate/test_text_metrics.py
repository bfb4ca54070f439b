"""Text figures of a few sentences, counted by hand."""

import math

import pytest

from alignlab.errors import DataError
from alignlab.evaluate.text_metrics import distinct_n, ngrams, repetition_rate, rouge, self_bleu, variety, words


def test_words_are_lower_case_and_punctuation_stands_alone():
    assert words("Don't stop, Lily!") == ["don", "'", "t", "stop", ",", "lily", "!"]


def test_ngrams_of_a_text_shorter_than_n_are_none():
    assert ngrams("a b", 3) == []
    assert ngrams("a b c", 2) == [("a", "b"), ("b", "c")]


def test_distinct_n_counts_over_all_texts_together():
    texts = ["a b a", "a b"]
    assert distinct_n(texts, 1) == 2 / 5  # a, b of a b a a b
    assert distinct_n(texts, 2) == 2 / 3  # (a b), (b a) of (a b), (b a), (a b)


def test_distinct_n_of_no_words_is_zero():
    assert distinct_n(["", " "], 1) == 0.0
    assert distinct_n([], 2) == 0.0


def test_repetition_rate_is_zero_without_repeats_and_high_in_a_loop():
    assert repetition_rate(["one two three four five six"]) == 0.0
    # 8 words "ha": five 4-grams, all the same one
    assert repetition_rate(["ha ha ha ha ha ha ha ha"]) == pytest.approx(1 - 1 / 5)
    assert repetition_rate(["ha ha ha ha ha ha ha ha", "short"]) == pytest.approx(0.4)  # averaged over texts


def test_self_bleu_holds_each_text_to_the_others():
    # two are each other's copy: 1; the third shares no word with them: 0
    assert self_bleu(["a b c d e", "a b c d e", "v w x y z"]) == pytest.approx(2 / 3)
    assert self_bleu(["a b", "a b"]) == pytest.approx(1.0)  # shorter than four words: up to its own length
    # against a b c d e: all of its n-grams are there, the brevity penalty is exp(1 - 5 / 4);
    # the other way 4/5, 3/4, 2/3 and 1/2 of the n-grams: the fourth root of 1/5
    expected = (math.exp(-1 / 4) + (1 / 5) ** 0.25) / 2
    assert self_bleu(["a b c d", "a b c d e"]) == pytest.approx(expected)
    assert math.isnan(self_bleu(["alone"])) and "self_bleu" not in variety(["alone"])


def test_of_many_texts_self_bleu_takes_some_evenly_spaced():
    texts = ["a b c d", "e f g h", "a b c d", "i j k l"]
    assert self_bleu(texts, most=2) == pytest.approx(1.0)  # the first and the third


def test_rouge_of_a_known_pair():
    # "mat the cat" against "the cat on mat": 3 of 3 words are among the 4 -> F1 = 2 * 1 * 0.75 / 1.75;
    # of the pairs "mat the", "the cat" one of the other's three -> 2 * 1/2 * 1/3 / (5/6);
    # longest common subsequence "the cat": 2 of 3 and 2 of 4 words -> 2 * 2/3 * 1/2 / (7/6)
    scores = rouge(["mat the cat"], ["the cat on mat"])
    assert scores == {
        "rouge_1": [pytest.approx(6 / 7)],
        "rouge_2": [pytest.approx(2 / 5)],
        "rouge_l": [pytest.approx(4 / 7)],
    }
    assert rouge(["cats"], ["cat"])["rouge_1"] == [1.0]  # stemmed
    with pytest.raises(DataError, match="1 responses, 2 targets"):
        rouge(["a"], ["a", "b"])
