"""The gold reward of the text world: what a reply is really worth, computed from prompt and reply alone.

The reply is cut into sentences, and each sentence is read as exactly one of the things below. Case and
punctuation inside a sentence do not matter; `LEADS` before a key point do not either.

    points      different key points of the asked topic (0 to 3)
    opening     1 if the first sentence is a courteous opening
    closing     1 if the last sentence is a courteous closing
    stray       key points of other topics
    rude        rude sentences
    filler      filler sentences, and courtesies anywhere but first (openings) and last (closings)
    repeats     sentences that say what an earlier one said, whatever that was
    noise       words in sentences that are none of these: wrong advice, other talk, broken sentences
    excess      words of the reply beyond 40
    unfinished  1 if the reply does not end in a full stop, question mark or exclamation mark

    reward = max(FLOOR, INTERCEPT + sum of WEIGHTS[name] * feature[name])

The constants are such that replies as the world writes them score about 0 with a standard deviation of about 1.
Three points between an opening and a closing are the only best replies (3.0): every further sentence is filler, a
repeat, a stray point or noise, and all of these cost; so does every sentence that is taken away or broken. The floor
keeps garbage bad and not catastrophic.
"""

import re
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.errors import DataError
from alignlab.rows import Prompt
from alignlab.worlds.text.lexicon import CLOSINGS, FILLERS, LEADS, OPENINGS, RUDE, TOPICS

WEIGHTS = {
    "points": 1.0,
    "opening": 0.4,
    "closing": 0.4,
    "stray": -0.4,
    "rude": -0.7,
    "filler": -0.4,
    "repeats": -0.5,
    "noise": -0.1,
    "excess": -0.05,
    "unfinished": -0.6,
}
INTERCEPT = -0.8
FLOOR = -4.0
FREE_WORDS = 40

_SENTENCE = re.compile(r"[^.!?]*[.!?]|[^.!?]+")
_WORD = re.compile(r"[^\s.,!?]+")


def _normal(sentence: str) -> str:
    return " ".join(_WORD.findall(sentence.lower()))


def _readings() -> dict[str, tuple[str, str]]:
    """Normal form of every sentence with a meaning -> (kind, what it says); of a point: the topic's subject."""
    kinds = {"opening": OPENINGS, "closing": CLOSINGS, "rude": RUDE, "filler": FILLERS}
    readings = {_normal(text): (kind, text) for kind, texts in kinds.items() for text in texts}
    for topic in TOPICS:
        for point in topic.points:
            readings |= {_normal(lead + point): (topic.subject, point) for lead in LEADS}
    return readings


_READINGS = _readings()
_SUBJECTS = frozenset(topic.subject for topic in TOPICS)


def asked_topic(prompt: Prompt) -> str | None:
    """Subject of the topic that `prompt` (its last user turn, if it is a dialogue) names first; None without one."""
    if not isinstance(prompt, str):
        prompt = next((turn["content"] for turn in reversed(prompt) if turn["role"] == "user"), "")
    return next((word for word in _normal(prompt).split() if word in _SUBJECTS), None)


def _read(response: str) -> Iterator[tuple[str, str]]:
    """(kind, what it says) of each sentence; kind is a subject, opening, closing, rude, filler or noise."""
    for sentence in _SENTENCE.findall(response):
        normal = _normal(sentence)
        if normal:
            yield _READINGS.get(normal, ("noise", normal))


class GoldReward:
    """The formula above as a reward: prompts and responses in, one number each out."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, "batch"]:
        """Gold reward of each response to the prompt beside it. DataError if the two differ in number."""
        if len(prompts) != len(responses):
            raise DataError(
                f"gold reward: {len(prompts)} prompts came with {len(responses)} responses; one each is needed"
            )
        rewards = [self.score(self.features(prompt, response)) for prompt, response in zip(prompts, responses)]
        return torch.tensor(rewards, dtype=torch.float32)

    def score(self, features: dict[str, int]) -> float:
        """The reward that these features add up to."""
        return max(FLOOR, INTERCEPT + sum(weight * features[name] for name, weight in WEIGHTS.items()))

    def features(self, prompt: Prompt, response: str) -> dict[str, int]:
        """The counts of the module's docstring, by name; any text is allowed."""
        counts = dict.fromkeys(WEIGHTS, 0)
        topic = asked_topic(prompt)
        sentences = list(_read(response))
        said: set[str] = set()
        for position, (kind, meaning) in enumerate(sentences):
            name, amount = _place(kind, meaning, topic, is_first=position == 0, is_last=position == len(sentences) - 1)
            if meaning in said:
                name, amount = "repeats", 1
            said.add(meaning)
            counts[name] += amount
        counts["excess"] = max(len(_WORD.findall(response)) - FREE_WORDS, 0)
        counts["unfinished"] = int(not response.rstrip().endswith((".", "!", "?")))
        return counts


def _place(kind: str, meaning: str, topic: str | None, *, is_first: bool, is_last: bool) -> tuple[str, int]:
    """The feature that a sentence counts for, and how much."""
    if kind == "noise":
        return "noise", len(meaning.split())
    if (kind == "opening" and not is_first) or (kind == "closing" and not is_last):
        return "filler", 1
    if kind in _SUBJECTS:
        return ("points" if kind == topic else "stray"), 1
    return kind, 1
