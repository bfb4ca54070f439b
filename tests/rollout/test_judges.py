"""Judges of pairs: by score, and by a chat model that a little server plays."""

import json
import threading
import time

import pytest
import torch

from alignlab.errors import ConfigError, EndpointError, NonFiniteError
from alignlab.rollout.judges.endpoint import EndpointJudge, as_text
from alignlab.rollout.judges.score import ScoreJudge
from alignlab.rollout.judges.verdict import Verdict
from tests.rollout.chat_server import chat_server

QUESTION = "P={prompt} {json} A={first} B={second}"
WORDS = {"first": "[[A]]", "second": "[[B]]", "tie": "[[C]]"}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def judge(url="http://127.0.0.1:9/v1", **changes):
    settings = {
        "base_url": url,
        "model": "tiny",
        "question": QUESTION,
        "verdicts": WORDS,
        "request": {"temperature": 0},
    }
    return EndpointJudge(**settings | {"backoff": 0.0, "retries": 2, "timeout": 20.0} | changes)


def parts(asked):
    """(prompt, first, second) of a question."""
    prompt, _, rest = asked.removeprefix("P=").partition(" {json} A=")
    first, _, second = rest.partition(" B=")
    return prompt, first, second


def prefers_longer(asked, _):
    _, first, second = parts(asked)
    return "[[A]]" if len(first) > len(second) else "[[B]]" if len(second) > len(first) else "[[C]]"


# -- by score ----------------------------------------------------------------------------------------------------------
def lengths(prompts, replies):
    return torch.tensor([float(len(reply)) for reply in replies])


def test_the_higher_score_wins_and_within_the_tolerance_nobody_does():
    found = ScoreJudge(lengths, tolerance=1).compare(["p"] * 4, ["aaaa", "aa", "aaa", "a"], ["aa", "aaa", "aaa", "aaa"])
    assert [verdict.value for verdict in found] == [1.0, 0.5, 0.5, 0.0]
    assert found[0].why == {"scores": [4.0, 2.0]}


def test_a_score_that_is_no_number_is_not_a_tie():
    with pytest.raises(NonFiniteError):
        ScoreJudge(lambda prompts, replies: torch.tensor([float("nan")])).compare(["p"], ["a"], ["b"])
    with pytest.raises(ConfigError, match="tolerance=-1"):
        ScoreJudge(lengths, tolerance=-1)


# -- by a chat model ---------------------------------------------------------------------------------------------------
def test_each_pair_is_asked_in_both_orders_and_the_verdict_is_of_the_first_reply():
    with chat_server(prefers_longer) as server:
        found = judge(server.url, system="be fair").compare(
            ["p", "q", "r"], ["long", "s", "even"], ["ab", "long", "odds"]
        )
    assert [verdict.value for verdict in found] == [1.0, 0.0, 0.5]
    asked = [parts(request["messages"][1]["content"]) for request in server.requests]
    assert sorted(asked) == sorted(
        [
            *(("p", "long", "ab"), ("p", "ab", "long"), ("q", "s", "long"), ("q", "long", "s")),
            *(("r", "even", "odds"), ("r", "odds", "even")),
        ]
    )
    request = server.requests[0]
    assert request["path"] == "/v1/chat/completions" and request["model"] == "tiny" and request["temperature"] == 0
    assert request["messages"][0] == {"role": "system", "content": "be fair"}
    assert "Authorization" not in server.headers[0]


def test_a_judge_of_places_gives_ties_and_its_bias_is_told():
    with chat_server(lambda asked, _: "I would say [[A]].") as server:
        one = judge(server.url)
        found = one.compare(["p", "q"], ["x", "y"], ["z", "w"])
    assert [verdict.value for verdict in found] == [0.5, 0.5]
    assert found[0].why["orders"] == [1.0, 0.0]
    figures = one.figures(found)
    assert figures["judge_consistency"] == 0.0 and figures["judge_first_share"] == 1.0
    assert figures["judge_unparsable"] == 0.0


def test_a_win_in_one_order_and_a_tie_in_the_other_is_a_tie():
    """Zheng et al. 2023: a win is one in both places; nothing between a win and a tie."""
    with chat_server(lambda asked, _: "[[A]]" if parts(asked)[1] == "x" else "[[C]]") as server:
        [found] = judge(server.url).compare(["p"], ["x"], ["z"])
    assert found.value == 0.5 and found.why["orders"] == [1.0, 0.5]


def test_figures_of_the_judge_by_hand():
    orders = [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.5, 0.5], [1.0, 0.5], [None, 1.0]]
    figures = judge().figures([Verdict(0.5, {"orders": pair}) for pair in orders] + [Verdict(0.5, {"identical": True})])
    assert figures["judge_unparsable"] == pytest.approx(1 / 12)
    assert figures["judge_consistency"] == pytest.approx(3 / 5)
    # a winner in both orders: three pairs; the first shown won 1 of 2, 1 of 2, 2 of 2 times
    assert figures["judge_first_share"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert judge().figures([Verdict(0.5, {"identical": True})]) == {}


def test_replies_of_the_same_text_are_a_tie_that_nobody_is_asked_about():
    with chat_server(prefers_longer) as server:
        found = judge(server.url).compare(["p", "q"], ["same", "longer"], ["same ", "less"])
    assert [verdict.value for verdict in found] == [0.5, 1.0] and len(server.requests) == 2


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("[[A]]", 1.0),
        ("[[b]]", 0.0),
        ("[[A]] is polite, but: [[C]]", 0.5),
        ("A", None),
        ("", None),
        ("neither [[D]]", None),
    ],
)
def test_the_last_verdict_of_an_answer_counts(answer, value):
    assert judge().parse(answer) == value


def test_words_are_whole_words_and_the_longer_one_is_looked_for_first():
    one = judge(verdicts={"first": "A", "second": "A!", "tie": "tie"})
    assert [one.parse(text) for text in ("A", "A!", "Tie", "necktie", "BAT")] == [1.0, 0.0, 0.5, None, None]


def test_an_answer_that_says_nothing_leaves_the_pair_without_a_verdict():
    with chat_server(lambda asked, _: "Hm." if parts(asked)[1] == "x" else "[[A]]") as server:
        found = judge(server.url).compare(["p", "q"], ["x", "y"], ["z", "w"])
    assert found[0].value is None and found[0].why == {"answers": ["Hm.", "[[A]]"], "orders": [None, 0.0]}
    assert found[1].value == 0.5


def test_braces_in_replies_are_text():
    [message] = judge().conversation("p", "{second} {x}", "it")
    assert message["content"] == "P=p {json} A={second} {x} B=it"


def test_prompts_are_written_for_a_reader():
    turns = (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
        {"role": "user", "content": "?"},
    )
    assert as_text(turns) == "user: Hi\n\nassistant: Yo\n\nuser: ?"
    assert as_text(turns[:1]) == "Hi" and as_text("plain") == "plain"


def test_the_question_may_stand_in_a_file(tmp_path):
    (tmp_path / "q.txt").write_text("{second}|{first}|{prompt}")
    [message] = judge(question_path=str(tmp_path / "q.txt")).conversation("p", "a", "b")
    assert message["content"] == "b|a|p"


# -- the server's moods ------------------------------------------------------------------------------------------------
def test_a_busy_server_is_asked_again_and_its_wish_to_wait_is_kept():
    moods = {0: (429, {"Retry-After": "0.4"}, "slow down"), 1: (503, {}, "")}
    began = time.monotonic()
    with chat_server(lambda asked, number: moods.get(number, "[[C]]")) as server:
        found = judge(server.url, concurrency=1).compare(["p"], ["a"], ["b"])
    assert found[0].value == 0.5 and len(server.requests) == 4
    assert time.monotonic() - began >= 0.4


def test_a_server_that_stays_busy_is_given_up_after_the_tries():
    with (
        chat_server(lambda asked, _: (500, {}, "broken")) as server,
        pytest.raises(EndpointError, match=r"in 3 tries.*500"),
    ):
        judge(server.url, concurrency=1).compare(["p"], ["a"], ["b"])
    assert len(server.requests) == 3, "the second question was not begun"


def test_a_lost_connection_is_given_up_after_the_tries():
    with pytest.raises(EndpointError, match=r"127.0.0.1:9/v1/chat/completions: no answer in 3 tries.*refused"):
        judge().compare(["p"], ["a"], ["b"])


def test_a_refusal_ends_it_at_once_and_the_key_is_never_told(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    answer = (401, {}, json.dumps({"error": "bad key sk-secret"}))
    with chat_server(lambda asked, _: answer) as server, pytest.raises(EndpointError) as caught:
        judge(server.url, api_key_env="MY_KEY", concurrency=1).compare(["p", "q"], ["a", "c"], ["b", "d"])
    assert len(server.requests) == 1 and server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "401" in str(caught.value) and "MY_KEY" in str(caught.value) and "sk-secret" not in str(caught.value)


def test_a_redirect_is_not_followed_with_the_key():
    with chat_server(prefers_longer) as other:
        moved = (307, {"Location": f"{other.url}/chat/completions"}, "")
        with chat_server(lambda asked, _: moved) as server, pytest.raises(EndpointError, match="refuses: 307"):
            judge(server.url, concurrency=1).compare(["p"], ["a"], ["b"])
    assert not other.requests


@pytest.mark.parametrize("body", ["<html>", "[]", '{"choices": []}'])
def test_another_kind_of_server_is_told_from_a_chat_server(body):
    with (
        chat_server(lambda asked, _: (200, {}, body)) as server,
        pytest.raises(EndpointError, match="OpenAI-compatible"),
    ):
        judge(server.url).compare(["p"], ["a"], ["b"])


def test_as_many_questions_at_once_as_allowed():
    together = threading.Barrier(3)

    def waits_for_the_others(asked, _):
        together.wait(timeout=10)
        return "[[C]]"

    with chat_server(waits_for_the_others) as server:
        judge(server.url, concurrency=3).compare(list("pqrstu"), list("abcdef"), list("ABCDEF"))
    assert server.busiest == 3 and len(server.requests) == 12


# -- memory ------------------------------------------------------------------------------------------------------------
def test_what_was_answered_is_not_asked_again_after_a_failure(tmp_path):
    file = tmp_path / "eval" / "answers.jsonl"

    def fails_at_the_third(asked, number):
        return (400, {}, "no") if number == 2 else prefers_longer(asked, number)

    pairs = (["p", "q"], ["long", "s"], ["ab", "long"])
    with chat_server(fails_at_the_third) as server:
        for asked_so_far in (3, 5):
            one = judge(server.url, concurrency=1)
            one.remember(file)
            if asked_so_far == 3:
                with pytest.raises(EndpointError, match="400"):
                    one.compare(*pairs)
                assert len(file.read_text().splitlines()) == 2
                file.write_text(file.read_text() + '{"key": "half a li')  # killed while it wrote
            else:
                assert [verdict.value for verdict in one.compare(*pairs)] == [1.0, 0.0]
            assert len(server.requests) == asked_so_far
        one.compare(*pairs)
        assert len(server.requests) == 5 and len(file.read_text().splitlines()) == 4
        other = judge(server.url, request={"temperature": 1})
        other.remember(file)
        other.compare(*pairs)
        assert len(server.requests) == 9, "another question is another answer"


# -- settings ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"api_key_env": "NO_SUCH_KEY"}, "api_key_env=NO_SUCH_KEY: no such environment variable"),
        ({"base_url": "localhost:8000"}, "base_url=localhost:8000"),
        ({"question": "{prompt} {first}"}, r"\{second\} does not stand in it"),
        ({"question": None}, "nothing is asked"),
        ({"question_path": "nowhere.txt"}, "question_path=nowhere.txt: no such file"),
        ({"verdicts": {"first": "A", "second": "a", "tie": "C"}}, "a word each"),
        ({"verdicts": {"first": "A", "second": "B"}}, "a word each"),
        ({"timeout": 0}, "timeout=0"),
        ({"retries": -1}, "retries=-1"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"request": {"messages": []}}, "messages cannot be set"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_asked(changes, said, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match=said):
        judge(**{"base_url": "http://x/v1"} | changes) if "base_url" not in changes else judge(changes["base_url"])
