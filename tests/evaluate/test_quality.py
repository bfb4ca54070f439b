# ruff: noqa: RUF001 - letters of other scripts are what is tested
"""Replies that nobody wants are named for what is wrong with them, and what people write passes."""

import gzip
import json
from pathlib import Path

import pytest

from alignlab.errors import ConfigError, DataError
from alignlab.evaluate.quality import PROBLEMS, QualityFilter

DATA = Path(__file__).parents[3] / "shared" / "data"
QUALITY = QualityFilter()
GOOD = (
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "Yes.",
    "4",
    "No, no, no! That is very, very far.",
    "- milk\n- bread\n- eggs\n- butter\n- jam",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
    "def double(x):\n    return 2 * x\n\nprint(double(21))",
    "```python\nprint('hi')\n```",
    "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\nThe second column holds twice the first one and a half.",
    "Größe, déjà vu, señor, Łódź: “quoted” – naïve… 5 € ¿qué?",
    "Привет, как у тебя сегодня дела? Всё хорошо, спасибо.",
    "当然，我可以给你一些建议。保持自信和真诚，多关心她的兴趣。",
    "The property owner's strengths: rhythm, an HTTPS website and an SQL database.",
    "Ask a human: they know. The assistant: me.",
)
BAD = {
    "repetition": (
        "I like it. I like it. I like it. I like it. I like it.",
        "The film starts well. " + "and then the and then the " * 6,
        "Good morning!\n" * 5,
        "1. Wash your hands\n2. Wash your hands\n3. Wash your hands\n4. Wash your hands",
        "ha" * 30,
        "Well" + "!" * 40,
        "我喜欢苹果" * 8,
        # never the same twice in a row, but of 4-grams most were said before
        "a b c d e a b c d e f a b c d e a b c d e f a b c d e a b c d e",
    ),
    "gibberish": (
        "%$#@ &*() ^%$ #@! ~~ {}[] ::",
        "?",
        "asdfgh jklhgf qwerqwe sdfjkl",
        "xkcdvb qzxwvt bcdfgh jklmnp",
        "\ufffd\ufffd\ufffd\ufffd a",
        "the big the red the old the new the the the the the the the sun the",
    ),
    "broken": (
        "Sure.<|im_end|>",
        "Sure.</s>",
        "Fine [INST] and now? [/INST]",
        "Glad to help.\n\nHuman: and then?",
        "### Instruction:\nGo on",
        "Paris<pad><pad>",
        "\u0120the\u0120cat",
        "It\u00e2\u20ac\u2122s late, caf\u00c3\u00a9",  # UTF-8 read as Windows-1252
        "caf\u00e9".encode().decode("latin-1"),
        "Привет".encode().decode("latin-1"),
        "half a \ufffd character",
        "bell \x07 and \x1b[0m",
        "```python\nprint('hi')",
    ),
    "empty": ("", " \n\t", "\u200b\u200b", "\x00"),
}


@pytest.mark.parametrize("reply", GOOD)
def test_ordinary_replies_pass(reply: str):
    assert QUALITY.problems(reply) == ()


@pytest.mark.parametrize(("problem", "reply"), [(name, reply) for name, found in BAD.items() for reply in found])
def test_bad_replies_are_named(problem: str, reply: str):
    assert problem in QUALITY.problems(reply)


def test_an_empty_reply_has_no_other_fault():
    assert QUALITY.problems("") == ("empty",)
    assert QUALITY.problems("\x00", complete=False) == ("empty", "cut_off")


def test_what_was_cut_off_is_told_and_not_blamed_for_its_torn_end():
    assert QUALITY.problems("It is half a \ufffd", complete=False) == ("cut_off",)
    assert QUALITY.problems("```python\nprint(", complete=False) == ("cut_off",)
    assert QUALITY.problems("It is half a \ufffd") == ("broken",)


def test_a_loop_counts_from_four_times_and_from_a_quarter_of_the_reply():
    words = [f"word{chr(97 + index)}" for index in range(26)]
    assert QUALITY.problems(" ".join(words) + " so it is" * 3) == ()  # three times
    assert QUALITY.problems(" ".join(words) + " so it is" * 4) == ("repetition",)  # 12 of 38 words
    assert QUALITY.problems(" ".join(words + [word + "s" for word in words]) + " so it is" * 4) == ()  # 12 of 64
    assert QualityFilter(loop_repeats=3).problems(" ".join(words) + " so it is" * 3) == ("repetition",)
    assert QualityFilter(longest_piece=2, repeated_share=0.9).problems(" ".join(words) + " so it is" * 4) == ()


def test_thresholds_decide():
    signs = "ab cd ++ ?? :: --"  # 4 of 12
    assert QUALITY.problems(signs) == ("gibberish",)
    assert QualityFilter(letter_share=0.3).problems(signs) == ()
    mash = "good words and then a sdfghjkl in it all"  # 8 of 32 letters
    assert QUALITY.problems(mash) == ()
    assert QualityFilter(odd_share=0.25).problems(mash) == ("gibberish",)
    assert QualityFilter(odd_share=0.26).problems(mash) == ()


def test_faults_decide_what_is_accepted_and_the_fallback_stands_in():
    quality = QualityFilter(faults=("broken", "cut_off"), fallback="Pardon?")
    assert quality.served("Fine.") == "Fine."
    assert quality.served("Fine.", complete=False) == "Pardon?"
    assert quality.served("Fine.</s>") == "Pardon?"
    assert quality.served("") == ""  # not among its faults
    assert QUALITY.accepts("Fine.", complete=False) and not QUALITY.accepts("")
    assert QUALITY.problems(QUALITY.fallback) == ()


def test_counts_are_of_replies_and_a_reply_may_have_several_problems():
    replies = ["Fine.", "", "good " * 20 + "</s>", "Also fine."]
    found = QUALITY.counts(replies, complete=[True, True, True, False])
    assert found == {"empty": 1, "repetition": 1, "gibberish": 1, "broken": 1, "cut_off": 1, "accepted": 2}
    assert list(found) == [*PROBLEMS, "accepted"]
    assert QUALITY.counts([])["accepted"] == 0
    with pytest.raises(DataError, match="1 replies, but 2 marks"):
        QUALITY.counts(["a"], complete=[True, False])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"letter_share": 1.5}, r"quality\.letter_share=1\.5"),
        ({"loop_share": 0.0}, r"quality\.loop_share=0\.0"),
        ({"loop_repeats": 1}, r"quality\.loop_repeats=1 must be at least 2"),
        ({"faults": ["emty"]}, "no problem 'emty'; they are empty, repetition"),
        ({"fallback": " "}, r"quality\.fallback is empty"),
    ],
)
def test_impossible_settings_are_named(settings: dict, told: str):
    with pytest.raises(ConfigError, match=told):
        QualityFilter(**settings)


def texts(name: str) -> list[str]:
    files = {"alpaca": "sft-alpaca-5k/test.jsonl", "hh": "pref-hh-rlhf/test.jsonl", "imdb": "imdb/test.jsonl.gz"}
    path = DATA / files[name]
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line) for line in content.decode().rstrip("\n").split("\n")[:800]]
    if name == "hh":
        return [row["chosen"].rsplit("\n\nAssistant:", 1)[-1].strip() for row in rows]
    return [row["output" if name == "alpaca" else "text"] for row in rows]


@pytest.mark.parametrize("name", ["alpaca", "hh", "imdb"])
def test_below_one_percent_of_what_people_wrote_is_flagged(name: str):
    replies = texts(name)
    flagged = len(replies) - QUALITY.counts(replies)["accepted"]
    assert flagged < 0.01 * len(replies), f"{flagged} of {len(replies)}"


def test_the_rate_of_repeated_4_grams_is_over_4_grams():
    """16 words have 13 of them. Of six words in turn 7 were said before (0.54), of seven words 6 (0.46)."""
    counted = ("one", "two", "three", "four", "five", "six", "seven")
    found = [QualityFilter().problems(" ".join(counted[i % period] for i in range(16))) for period in (6, 7)]
    assert found == [("repetition",), ()]
