"""Several replies to each prompt of a batch, scored: what best-of-n, rejection sampling and on-policy data start from.

Batch `index` of a set of samples draws from a generator of its own, seeded by (seed, index) alone: batches may be made
in any order, in any process, and one that is there already need not be made again.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from alignlab.batches import PromptBatch
from alignlab.errors import ConfigError, ModelError
from alignlab.models.policy import Policy
from alignlab.rollout.generate import generate
from alignlab.rollout.sampling import check_sampling
from alignlab.rollout.scoring import Reward, checked_scores
from alignlab.rows import Prompt

Scorer = Callable[[Sequence[Prompt], Sequence[Sequence[str]]], Sequence[Sequence[float]]]
"""(prompts, the replies to each) -> a score for each reply, larger is better; comparable among one prompt's replies.

A judge that compares replies with one another is one of these as it is; a reward becomes one by `each_by_itself`.
"""

ScoredReply = dict[str, Any]
"""One line of samples/scored.jsonl: row (of the prompt in its split), prompt, index (0 to n - 1), response, length
(tokens, stop token included), complete (it ended with a stop token), and a score under each scorer's name."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How replies are drawn; see `rollout.generate`.

    Raises:
        ConfigError: settings that make no distribution, or not one reply.
    """

    n: int  # replies to each prompt
    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        for name, value, least in (
            ("n", self.n, 1),
            ("max_new_tokens", self.max_new_tokens, 1),
            ("seed", self.seed, 0),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"task.{name}={value}: expected a whole number from {least}")


def batch_seed(seed: int, index: int) -> int:
    """The seed of batch `index`: 62 bits, a pure function of the two; neighbouring batches share nothing."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:8], "big") >> 2


def each_by_itself(reward: Reward) -> Scorer:
    """A scorer that asks `reward` about every reply of the batch at once."""

    def scores(prompts: Sequence[Prompt], replies: Sequence[Sequence[str]]) -> list[list[float]]:
        asked = [prompt for prompt, own in zip(prompts, replies, strict=True) for _ in own]
        found = iter(checked_scores(reward, asked, [reply for own in replies for reply in own]).tolist())
        return [[next(found) for _ in own] for own in replies]

    return scores


def draw_batch(
    policy: Policy, batch: PromptBatch, drawing: Drawing, scorers: Mapping[str, Scorer], *, index: int
) -> list[ScoredReply]:
    """`drawing.n` replies to each prompt of batch number `index`, scored: prompt by prompt, in the order drawn.

    ModelError for a scorer whose answer is not one finite number per reply.
    """
    n = drawing.n
    repeated = PromptBatch(
        batch.input_ids.repeat_interleave(n, 0),
        batch.attention_mask.repeat_interleave(n, 0),
        batch.rows.repeat_interleave(n),
        tuple(prompt for prompt in batch.prompts for _ in range(n)),
    )
    rollout = generate(
        policy,
        repeated,
        max_new_tokens=drawing.max_new_tokens,
        temperature=drawing.temperature,
        top_k=drawing.top_k,
        top_p=drawing.top_p,
        generator=torch.Generator(device=policy.device).manual_seed(batch_seed(drawing.seed, index)),
    )
    groups = [rollout.responses[start : start + n] for start in range(0, len(rollout.responses), n)]
    columns = {name: _flat(name, scorer(batch.prompts, groups), n=n) for name, scorer in scorers.items()}
    lengths = (rollout.sequences.labels >= 0).sum(1).tolist()  # (replies,) tokens of each
    return [
        {
            "row": int(repeated.rows[at]),
            "prompt": prompt if isinstance(prompt, str) else [dict(message) for message in prompt],
            "index": at % n,
            "response": rollout.responses[at],
            "length": lengths[at],
            "complete": bool(rollout.complete[at]),
            **{name: column[at] for name, column in columns.items()},
        }
        for at, prompt in enumerate(rollout.prompts)
    ]


def _flat(name: str, scores: Sequence[Sequence[float]], *, n: int) -> list[float]:
    """One list; a score that is missing or not finite is refused where it came from."""
    if any(len(own) != n for own in scores):
        raise ModelError(f"scorer {name}: {[len(own) for own in scores]} scores for {n} replies to each prompt")
    flat = [float(score) for own in scores for score in own]
    if not bool(torch.tensor(flat).isfinite().all()):
        raise ModelError(f"scorer {name}: gave a score that is not a finite number")
    return flat
