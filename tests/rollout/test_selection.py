"""From scored replies to rows, by hand; and the formats read them."""

from collections.abc import Sequence
from typing import Any

import pytest

from alignlab.data.formats import chat, plain
from alignlab.errors import ConfigError, DataError
from alignlab.rollout.selection import Selection, by_prompt


def replies(scores: Sequence[tuple[str, float]], *, row: int = 0, prompt: Any = "p", cut: str = "") -> list[dict]:
    """Scored replies to one prompt; those whose text is `cut` never ended."""
    return [
        {"row": row, "prompt": prompt, "index": i, "response": text, "complete": text != cut, "score": score}
        for i, (text, score) in enumerate(scores)
    ]


THREE = replies([("b", 1.0), ("c", 3.0), ("a", 2.0)])


def pairs(found: dict) -> list[tuple[str, str]]:
    return [(row["chosen"], row["rejected"]) for row in found["preference"]]


def test_the_best_reply_the_best_and_the_worst_and_those_above_the_mean():
    found = Selection().rows(THREE)
    assert found["sft"] == [{"prompt": "p", "response": "c", "score": 3.0}]
    assert found["preference"] == [
        {"prompt": "p", "chosen": "c", "rejected": "b", "chosen_score": 3.0, "rejected_score": 1.0}
    ]
    assert [(row["response"], row["desirable"]) for row in found["unpaired"]] == [("b", False), ("c", True)]


def test_all_pairs_and_a_margin():
    assert pairs(Selection(pairs="all").rows(THREE)) == [("c", "a"), ("c", "b"), ("a", "b")]
    assert pairs(Selection(pairs="all", margin=1.5).rows(THREE)) == [("c", "b")]
    assert pairs(Selection(margin=2.0).rows(THREE)) == [("c", "b")]
    assert pairs(Selection(margin=2.1).rows(THREE)) == []


def test_equal_scores_make_no_pair_and_the_first_of_them_is_the_best():
    found = Selection(pairs="all").rows(replies([("x", 1.0), ("y", 1.0)]))
    assert pairs(found) == [] and found["unpaired"] == [] and found["sft"][0]["response"] == "x"


def test_replies_of_one_score_are_neither_good_nor_bad_whatever_the_score():
    """0.1 + 0.1 + 0.1 divided by 3 is 0.10000000000000002: all three would be below their own mean."""
    for score in (0.1, 0.7, 1 / 3):
        for n in (3, 6, 7):
            assert Selection().rows(replies([(str(i), score) for i in range(n)]))["unpaired"] == []


def test_a_reply_without_text_or_said_before_makes_no_row():
    found = Selection(pairs="all").rows(replies([(" ", 9.0), ("x", 1.0), ("x", 1.0), ("y", 0.0)]))
    assert pairs(found) == [("x", "y")] and found["sft"][0]["response"] == "x"
    assert [row["desirable"] for row in found["unpaired"]] == [True, False]
    assert Selection().rows(replies([("", 1.0)])) == {"sft": [], "preference": [], "unpaired": []}


def test_replies_that_were_cut_can_be_left_out():
    scored = replies([("x", 3.0), ("y", 2.0), ("z", 1.0)], cut="x")
    assert pairs(Selection().rows(scored)) == [("x", "z")]
    assert pairs(Selection(complete_only=True).rows(scored)) == [("y", "z")]


def test_thresholds():
    assert Selection(min_score=3.0).rows(THREE)["sft"] and not Selection(min_score=3.1).rows(THREE)["sft"]
    found = Selection(threshold=2.0).rows(THREE)["unpaired"]
    assert [(row["response"], row["desirable"]) for row in found] == [("b", False), ("c", True)]


def test_prompts_keep_their_order_and_do_not_mix():
    scored = [*replies([("x", 1.0), ("y", 2.0)], row=5, prompt="q"), *THREE]
    assert [row["prompt"] for row in Selection().rows(scored)["sft"]] == ["q", "p"]
    assert [len(group) for group in by_prompt(scored)] == [2, 3]
    with pytest.raises(DataError, match="no replies"):
        by_prompt([])


@pytest.mark.parametrize("prompt", ["p", [{"role": "user", "content": "p"}]])
def test_the_formats_read_what_is_written(prompt: Any):
    found = Selection().rows(replies([("x", 1.0), ("y", 2.0)], prompt=prompt))
    format = plain if isinstance(prompt, str) else chat
    told = prompt if isinstance(prompt, str) else tuple(prompt)
    demonstration = format.demonstration(found["sft"][0])
    pair = format.preference(found["preference"][0])
    good = [format.unpaired(row) for row in found["unpaired"]]
    assert (demonstration.prompt, demonstration.response) == (told, "y")
    assert (pair.prompt, pair.chosen, pair.rejected) == (told, "y", "x")
    assert [(row.prompt, row.response, row.desirable) for row in good] == [(told, "x", False), (told, "y", True)]


@pytest.mark.parametrize("wrong", [{"pairs": "some"}, {"margin": -1.0}, {"margin": float("inf")}])
def test_settings_that_cannot_be_are_refused(wrong: dict):
    with pytest.raises(ConfigError, match=r"task\.select"):
        Selection(**wrong)
