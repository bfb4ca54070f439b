"""A run in a chat: what it is asked, what it remembers, and what its replies are worth."""

import copy

import pytest
import torch

from alignlab.data.dialogue import as_messages
from alignlab.data.tokenize import TextEncoder
from alignlab.errors import ConfigError
from alignlab.evaluate.quality import QualityFilter
from alignlab.evaluate.speaker import Asking, Sampling, Speaker, same_tokens
from alignlab.models.policy import Policy
from alignlab.models.reference import FrozenCopy
from tests import tiny_models as tiny

SAMPLING = Sampling(temperature=0.7, top_k=0, top_p=1.0, max_new_tokens=12, greedy=False)
FIRST = "user: hi\nassistant: "


def asking(*, positions: int | None = 128, max_prompt_length: int | None = None) -> Asking:
    encoder = TextEncoder(tiny.tiny_tokenizer(chat=True), append_eos=False)
    return Asking(as_messages, encoder, positions, max_prompt_length)


def policy(seed: int = 0) -> Policy:
    return Policy(tiny.tiny_causal(seed=seed), tokenizer=tiny.tiny_tokenizer(chat=True), stop_token_ids=(2, 11))


def speaker(seed: int = 0, *, reference: Policy | None = None, **limits: int | None) -> Speaker:
    frozen = None if reference is None else FrozenCopy(reference)
    return Speaker(policy(), asking=asking(**limits), reference=frozen, seed=seed)


def told(who: Speaker, message: str, sampling: Sampling = SAMPLING, **more):
    pieces: list[str] = []
    reply = who.answer(message, sampling, write=pieces.append, **more)
    assert "".join(pieces) == reply.response
    return reply


def logprob(of: Policy, prompt: str, reply_ids: list[int], temperature: float) -> float:
    """The reply's log-prob from the network's own logits, token by token."""
    ids = of.tokenizer(prompt)["input_ids"]
    total = 0.0
    for token in reply_ids:
        logits = of.model(torch.tensor([ids])).logits[0, -1].double() / temperature
        total += float(logits.log_softmax(-1)[token])
        ids = [*ids, token]
    return total


@pytest.mark.parametrize(("greedy", "temperature"), [(False, 0.7), (True, 1.0)])
@torch.no_grad()
def test_kl_and_gap_are_differences_of_the_replys_logprobs(greedy: bool, temperature: float):
    start, other = policy(seed=1), speaker()
    other.policy = policy(seed=5)
    who = speaker(reference=start)
    sampling = Sampling(temperature=0.7, top_k=0, top_p=1.0, max_new_tokens=12, greedy=greedy)
    reply = told(who, "hi", sampling, other=other)
    ids = who.policy.tokenizer(reply.response)["input_ids"]
    found = [
        [logprob(of, FIRST, [*ids, *end], temperature) for of in (who.policy, start, other.policy)]
        for end in ([[2], [11]] if reply.complete else [[]])  # either stop token may have ended it
    ]
    expected = [(ours - theirs, ours - others) for ours, theirs, others in found]
    assert any(reply.kl == pytest.approx(kl, abs=1e-3) for kl, _ in expected)
    assert any(reply.gap == pytest.approx(gap, abs=1e-3) for _, gap in expected)
    assert abs(reply.kl) > 1 and abs(reply.gap) > 1
    assert reply.length == len(ids) + reply.complete


def test_a_run_is_nowhere_from_itself_and_nothing_is_measured_of_what_is_not_there():
    who = speaker(reference=policy())
    assert told(who, "hi", other=speaker())[5:7] == (pytest.approx(0.0, abs=1e-6), pytest.approx(0.0, abs=1e-6))
    assert told(speaker(), "hi")[4:8] == (None, None, None, None)


def test_the_next_message_is_asked_with_all_that_was_said():
    who = speaker()
    first = told(who, "hi")
    turns = [*who.turns, {"role": "user", "content": "and"}]
    prompt, ids, forgotten = asking().prompt(turns, 12)
    text = f"user: hi\nassistant: {first.response.strip()}<eos>\nuser: and\nassistant: "
    assert ids == who.policy.tokenizer(text)["input_ids"] and forgotten == 0 and len(prompt) == 3
    second = told(who, "and")
    assert [turn["content"] for turn in who.turns] == ["hi", first.response, "and", second.response]
    who.reset()
    assert who.turns == []


def test_the_same_seed_gives_the_same_dialogue():
    dialogues = [[told(who, text).response for text in ("hi", "and")] for who in map(speaker, (3, 3, 4))]
    assert dialogues[0] == dialogues[1] != dialogues[2]


def test_the_reward_is_of_the_prompt_as_it_was_asked_and_the_reply():
    seen = []

    def reward(prompts, responses):
        seen.append((prompts, responses))
        return torch.tensor([0.25])

    reply = told(speaker(), "hi", reward=reward)
    assert reply.reward == 0.25
    assert seen == [([({"role": "user", "content": "hi"},)], [reply.response])]


def test_an_outgrown_dialogue_loses_whole_exchanges():
    turns = [
        *({"role": "user", "content": "a" * 20}, {"role": "assistant", "content": "b" * 20}),
        *({"role": "user", "content": "c" * 5}, {"role": "assistant", "content": "d" * 5}),
        {"role": "user", "content": "e"},
    ]
    whole = len(asking().prompt(turns, 1)[1])
    tail = len(asking().prompt(turns[2:], 1)[1])
    for limits in ({"positions": whole + 8}, {"max_prompt_length": whole}):
        assert asking(**limits).prompt(turns, 8)[2] == 0
    for limits in ({"positions": whole + 7}, {"max_prompt_length": whole - 1}, {"max_prompt_length": tail}):
        prompt, ids, forgotten = asking(**limits).prompt(turns, 8)
        assert forgotten == 2 and len(ids) == tail and prompt[0]["content"] == "c" * 5
    assert asking(max_prompt_length=1).prompt(turns, 8)[2] == 4  # the last message is never cut
    with pytest.raises(ConfigError, match="19 tokens and max_new_tokens=8 pass the network's 26 positions"):
        asking(positions=26).prompt(turns[4:], 8)


def test_who_stops_a_reply_leaves_the_dialogue_as_it_was():
    who = speaker()

    def stop(_text: str) -> None:
        raise KeyboardInterrupt

    told(who, "hi")
    before = copy.deepcopy(who.turns)
    with pytest.raises(KeyboardInterrupt):
        who.answer("and", SAMPLING, write=stop)
    assert who.turns == before


def test_a_spoilt_reply_is_replaced_in_the_dialogue_too_and_a_good_one_is_not():
    strict, lenient = QualityFilter(letter_share=1.0, fallback="Sorry."), QualityFilter(faults=())
    plain, replaced, kept = (told_all(speaker(), quality) for quality in (None, strict, lenient))
    assert {reply.response for reply, _, _ in (plain, replaced, kept)} == {plain[0].response}
    assert "gibberish" in strict.problems(plain[0].response, complete=plain[0].complete)
    assert replaced[0].problems and "gibberish" in replaced[0].problems
    assert replaced[1:] == (["Sorry."], "Sorry.") and replaced[0].shown == "Sorry."
    assert kept[1:] == ([plain[0].response], plain[0].response) and kept[0].shown == plain[0].response
    assert len(plain[1]) > 1 and plain[0].problems is None


def told_all(who: Speaker, quality: QualityFilter | None):
    """The reply, the pieces that were handed on, and what the dialogue remembers."""
    pieces: list[str] = []
    reply = who.answer("hi", SAMPLING, write=pieces.append, quality=quality)
    return reply, pieces, who.turns[1]["content"]


def test_policies_of_other_tokens_are_not_compared():
    ours, other = policy(), policy()
    assert same_tokens(ours, other)
    other.tokenizer.add_tokens(["more"])
    assert not same_tokens(ours, other)
