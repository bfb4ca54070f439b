"""The text world as a source of rows: questions, replies of mixed quality, and noisy preferences between them.

Which prompts belong to which split never depends on the seed, so a policy trained in one world is not tested on
prompts it has seen when it is evaluated in another. Everything else is a pure function of (seed, kind of row, split,
row number): no global random state, no dependence on what was asked for before, and a world with more rows
starts with the rows of a smaller one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from random import Random
from typing import Any

from alignlab.errors import ConfigError, DataError
from alignlab.rows import Message, PreferenceRow, PromptRow, Row, RowT, SFTRow, Split, UnpairedRow
from alignlab.worlds.text.gold import GoldReward
from alignlab.worlds.text.lexicon import (
    CLOSINGS,
    FILLERS,
    LEADS,
    MODIFIERS,
    OPENINGS,
    PHRASINGS,
    RUDE,
    TOPICS,
    Topic,
    as_prompt,
    as_sentence,
    in_frame,
)

HELD_OUT_FRACTION = 0.125
ON_TOPIC = 0.9
MAX_REPLY_WORDS = 40
MAX_GAP = 2.0

FIRST_LEADS = tuple(lead for lead in LEADS if lead not in ("then ", "also, "))
LATER_LEADS = tuple(lead for lead in LEADS if lead != "first, ")

Ask = tuple[str, Topic]
Writer = Callable[[Random, str, Topic], Row]


@cache
def asks(split: Split) -> tuple[Ask, ...]:
    """(prompt, its topic) of one split: a fixed eighth each for validation and test, the rest for training."""
    every = [
        (as_prompt(phrasing, topic, modifier), topic)
        for topic in TOPICS
        for phrasing in PHRASINGS
        for modifier in MODIFIERS
    ]
    Random("the splits of the text world").shuffle(every)
    num_held_out = int(HELD_OUT_FRACTION * len(every))
    parts = {
        "validation": every[:num_held_out],
        "test": every[num_held_out : 2 * num_held_out],
        "train": every[2 * num_held_out :],
    }
    if split not in parts:
        raise DataError(f"text world: no split {split!r}; it has train, validation and test")
    return tuple(parts[split])


def write_reply(rng: Random, topic: Topic) -> str:
    """A reply to a question about `topic`, of random quality and at most `MAX_REPLY_WORDS` words, a space before it."""
    while True:
        reply = " ".join(_sentences(rng, topic))
        if len(reply.split()) <= MAX_REPLY_WORDS:
            break
    if rng.random() < 0.06:  # breaks off
        words = reply.split(" ")
        reply = " ".join(words[: -rng.randint(1, 3)] or words).rstrip(".,")
    return f" {reply}"


def _sentences(rng: Random, topic: Topic) -> list[str]:
    """The sentences of a reply, in order; at least one."""
    about = topic if rng.random() < ON_TOPIC else rng.choice(TOPICS)
    num_points = rng.choices((0, 1, 2, 3), (0.17, 0.48, 0.25, 0.1))[0]
    told = sorted(rng.sample(range(len(about.points)), num_points))
    points = [_muddled(rng, about) if rng.random() < 0.04 else about.points[point] for point in told]
    body = [rng.choice(LATER_LEADS if place else FIRST_LEADS) + point for place, point in enumerate(points)]
    for filler in rng.sample(FILLERS, rng.choices((0, 1, 2), (0.5, 0.32, 0.18))[0]):
        body.insert(rng.randint(0, len(body)), filler)
    if body and rng.random() < 0.12:
        body.append(rng.choice(body))
    manner = rng.random()
    if manner < 0.4:
        body.insert(0, rng.choice(OPENINGS if manner < 0.28 else RUDE))
    if rng.random() < 0.28 or not body:
        body.append(rng.choice(CLOSINGS))
    return [as_sentence(phrase) for phrase in body]


def _muddled(rng: Random, topic: Topic) -> str:
    """Bad advice: a key point of some topic, told of `topic` ("freeze the guitar you do not need")."""
    other = rng.choice(TOPICS)
    words = [topic.subject if word == other.subject else word for word in rng.choice(other.points).split()]
    return " ".join(words)


def prompt_of(turns: Sequence[Message]) -> str:
    """How a chat asks a policy of this world: the last message as a question, alone; its rows have one each."""
    return in_frame(turns[-1]["content"].strip())


class TextWorld:
    """`RowSource` of the text world. Validation and test have `num_validation` and `num_test` rows of any type.

    The two replies of a preference differ by at least `min_gap` in gold reward and are labelled by Bradley-Terry:
    P(the better one is chosen) = sigmoid(gap / label_temperature), in every split; 0 never errs. An unpaired row is one
    of the two replies of such a preference, picked by a coin (chosen: desirable); there are as many as preferences.
    ConfigError for a number out of range.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        num_sft: int = 20_000,
        num_preferences: int = 8_000,
        num_prompts: int = 1_024,
        num_validation: int = 256,
        num_test: int = 256,
        label_temperature: float = 0.25,
        min_gap: float = 0.75,
    ) -> None:
        self.seed = seed
        self.label_temperature = label_temperature
        self.min_gap = min_gap
        self._gold = GoldReward()
        self._num_train = {
            SFTRow: num_sft,
            PreferenceRow: num_preferences,
            UnpairedRow: num_preferences,
            PromptRow: num_prompts,
        }
        self._num_held_out = {"validation": num_validation, "test": num_test}
        _check("num_sft", num_sft, 1, math.inf)
        _check("num_preferences", num_preferences, 1, math.inf)
        _check("num_prompts", num_prompts, 1, len(asks("train")))
        _check("num_validation", num_validation, 0, len(asks("validation")))
        _check("num_test", num_test, 0, len(asks("test")))
        _check("label_temperature", label_temperature, 0, math.inf)
        _check("min_gap", min_gap, 0, MAX_GAP)

    def rows(self, row_type: type[RowT], split: Split) -> Iterator[RowT]:
        """The rows of `row_type` of one split; prompts repeat only where the split has fewer prompts than rows."""
        prompts = list(asks(split))
        Random(f"{self.seed}/{split}").shuffle(prompts)
        writers = {
            SFTRow: self._sft_row,
            PreferenceRow: self._preference_row,
            UnpairedRow: self._unpaired_row,
            PromptRow: self._prompt_row,
        }
        if row_type not in writers:
            allowed = ", ".join(known.__name__ for known in writers)
            raise DataError(f"text world: no rows of type {row_type.__name__}; it has {allowed}")
        num_rows = self._num_train[row_type] if split == "train" else self._num_held_out[split]
        return self._write(writers[row_type], row_type, split, prompts, num_rows)

    def _write(
        self, writer: Writer, row_type: type[RowT], split: Split, prompts: Sequence[Ask], num_rows: int
    ) -> Iterator[Any]:
        for index in range(num_rows):
            prompt, topic = prompts[index % len(prompts)]
            yield writer(Random(f"{self.seed}/{row_type.__name__}/{split}/{index}"), prompt, topic)

    def _prompt_row(self, rng: Random, prompt: str, topic: Topic) -> PromptRow:
        return PromptRow(prompt)

    def _sft_row(self, rng: Random, prompt: str, topic: Topic) -> SFTRow:
        return SFTRow(prompt, write_reply(rng, topic))

    def _preference_row(self, rng: Random, prompt: str, topic: Topic) -> PreferenceRow:
        while True:
            better, worse = write_reply(rng, topic), write_reply(rng, topic)
            better_gold, worse_gold = self._gold([prompt, prompt], [better, worse]).tolist()
            if better_gold < worse_gold:
                better, worse = worse, better
            gap = abs(better_gold - worse_gold)
            if better != worse and gap >= self.min_gap:
                break
        errs = self.label_temperature > 0 and rng.random() > 1 / (1 + math.exp(-gap / self.label_temperature))
        return PreferenceRow(prompt, worse, better) if errs else PreferenceRow(prompt, better, worse)

    def _unpaired_row(self, rng: Random, prompt: str, topic: Topic) -> UnpairedRow:
        pair, desirable = self._preference_row(rng, prompt, topic), rng.random() < 0.5
        return UnpairedRow(prompt, pair.chosen if desirable else pair.rejected, desirable)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        allowed = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ConfigError(f"text world: {name}={value}; allowed is {allowed}")
