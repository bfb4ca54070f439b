"""A run in a chat: its policy, its dialogue so far, and what each reply of it is worth.

Per reply y to the prompt x, in nats, summed over the reply's tokens and at the temperature it was drawn at:
kl = log pi(y | x) - log pi_ref(y | x), pi_ref what the run was trained from: the k1 estimate from this one reply, as in
`evaluate.policy`; gap = log pi(y | x) - log pi_other(y | x), pi_other the other run of the chat. A greedy reply, or one
under top_k or top_p, is not drawn from pi, and its number only says how much likelier pi finds it (greedy: at 1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from alignlab.batches import IGNORE, PromptBatch, Rollout
from alignlab.data.dialogue import PromptOf
from alignlab.data.tokenize import TextEncoder
from alignlab.errors import ConfigError
from alignlab.evaluate.policy import Reference, RewardFunction
from alignlab.models.backbone import evaluating
from alignlab.rollout.generate import generate
from alignlab.rollout.streaming import TextStream
from alignlab.rows import Message, Prompt

if TYPE_CHECKING:
    from alignlab.evaluate.quality import QualityFilter
    from alignlab.models.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How replies are drawn: see `rollout.generate`."""

    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int
    greedy: bool


class Reply(NamedTuple):
    """What a run said, and what was measured of it; None where nothing could."""

    response: str
    length: int  # tokens, the stop token included
    complete: bool  # it ended with a stop token
    forgotten: int  # turns at the beginning of the dialogue that the prompt had no room for
    reward: float | None
    kl: float | None  # nats
    gap: float | None  # nats
    problems: tuple[str, ...] | None  # what the quality filter found; None without one
    shown: str  # the response, or the filter's fallback in its place


@dataclass(frozen=True)
class Asking:
    """How a run is asked: from turns to the token ids of a prompt that leaves room for the reply."""

    prompt_of: PromptOf
    encoder: TextEncoder  # cuts nothing
    positions: int | None  # longest sequence of the network, in tokens; None: no limit
    max_prompt_length: int | None  # longest prompt it was trained on, in tokens

    def prompt(self, turns: list[Message], max_new_tokens: int) -> tuple[Prompt, list[int], int]:
        """The prompt, its ids, and how many of the first turns were left out so that it fits.

        A dialogue loses its beginning, in whole exchanges, where it has outgrown the network or the longest prompt of
        the training. ConfigError where the last message alone is too long for the network.
        """
        limits = [limit for limit in (self._room(max_new_tokens), self.max_prompt_length) if limit is not None]
        first = 0
        prompt, ids = self._encoded(turns)
        while first + 1 < len(turns) and any(len(ids) > limit for limit in limits):
            first += 2
            prompt, ids = self._encoded(turns[first:])
        room = self._room(max_new_tokens)
        if room is not None and len(ids) > room:
            raise ConfigError(
                f"chat: a message of {len(ids)} tokens and max_new_tokens={max_new_tokens} pass the network's "
                f"{self.positions} positions; shorten the message or lower max_new_tokens"
            )
        return prompt, ids, first

    def _encoded(self, turns: list[Message]) -> tuple[Prompt, list[int]]:
        prompt = self.prompt_of(turns)
        return prompt, self.encoder.prompts([prompt])[0]

    def _room(self, max_new_tokens: int) -> int | None:
        return None if self.positions is None else self.positions - max_new_tokens


class Speaker:
    """A policy that remembers its dialogue."""

    def __init__(self, policy: "Policy", *, asking: Asking, reference: Reference | None, seed: int) -> None:
        self.policy = policy
        self.turns: list[Message] = []
        self._asking = asking
        self._reference = reference
        self._generator = torch.Generator(device=policy.device).manual_seed(seed)

    def reset(self) -> None:
        """Forget the dialogue; the random numbers go on."""
        self.turns = []

    @torch.no_grad()
    def answer(
        self,
        message: str,
        sampling: Sampling,
        *,
        write: Callable[[str], object],
        reward: RewardFunction | None = None,
        other: "Speaker | None" = None,
        quality: "QualityFilter | None" = None,
    ) -> Reply:
        """The reply to one more message, handed to `write` piece by piece; both then belong to the dialogue.

        With `quality` it is handed on whole, once it is known not to be spoilt; else its fallback is, and that is what
        the dialogue remembers.

        `other` is whom the gap is to: None where it reads other tokens. What `write` raises leaves the dialogue as it
        was. ConfigError for a message that is too long.
        """
        turns: list[Message] = [*self.turns, {"role": "user", "content": message}]
        prompt, ids, forgotten = self._asking.prompt(turns, sampling.max_new_tokens)
        watched = write if quality is None else _unseen
        stream = TextStream(self.policy.tokenizer, ids, stop_token_ids=self.policy.stop_token_ids, write=watched)
        rollout = generate(
            self.policy,
            _one(prompt, ids),
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            greedy=sampling.greedy,
            generator=self._generator,
            on_tokens=stream,
        )
        stream.close()
        [response] = rollout.responses
        kl, gap = self._differences(rollout, 1.0 if sampling.greedy else sampling.temperature, other)
        scored = None if reward is None else float(reward([prompt], [response])[0])
        length, complete = int((rollout.sequences.labels != IGNORE).sum()), bool(rollout.complete[0])
        problems, shown = None, response
        if quality is not None:
            problems = quality.problems(response, complete=complete)
            shown = quality.served(response, complete=complete)
            write(shown)
        self.turns = [*turns, {"role": "assistant", "content": shown}]
        return Reply(response, length, complete, forgotten, scored, kl, gap, problems, shown)

    def _differences(
        self, rollout: Rollout, temperature: float, other: "Speaker | None"
    ) -> tuple[float | None, float | None]:
        """kl and gap."""
        if self._reference is None and other is None:
            return None, None
        ours = _logprobs(self.policy, rollout, temperature)
        kl = None if self._reference is None else ours - self._reference(rollout.sequences, temperature=temperature)
        gap = None if other is None else ours - _logprobs(other.policy, rollout, temperature)
        return _summed(kl), _summed(gap)


def same_tokens(one: "Policy", other: "Policy") -> bool:
    """Whether two policies read the same ids as the same text, so that log-probs of one reply can be compared."""
    ours: Any = one.tokenizer
    return ours.get_vocab() == other.tokenizer.get_vocab()


def _logprobs(policy: "Policy", rollout: Rollout, temperature: float) -> Tensor:
    with evaluating(policy):
        return policy(rollout.sequences, temperature=temperature).logprobs


def _summed(difference: Tensor | None) -> float | None:
    return None if difference is None else float(difference.double().sum())


def _unseen(_text: str) -> None:
    """Where a reply is written that must be judged first."""


def _one(prompt: Prompt, ids: list[int]) -> PromptBatch:
    row = torch.tensor([ids])
    return PromptBatch(row, torch.ones_like(row, dtype=torch.bool), torch.arange(1), (prompt,))
