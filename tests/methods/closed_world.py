"""A world of seven replies, so that an expectation is a sum: a tiny network in float64 over three tokens.

The end token is 2 and a reply has at most two tokens, so one reply has length 1 and six have length 2. Rewards are
exact in float32. The policy has moved away from its reference: there is a KL to pay for.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from alignlab.batches import IGNORE, Rollout, Sequences
from alignlab.methods.on_policy import OnPolicy
from alignlab.models.policy import Policy
from tests.tiny_models import tiny_causal, tiny_tokenizer

REPLIES = [(2,), *((a, b) for a in (0, 1) for b in (0, 1, 2))]
NAMES = ["".join(map(str, reply)) for reply in REPLIES]
REWARDS = [0.5, -1.0, 0.25, 2.0, -0.5, 1.5, -2.0]
LONGEST = 2
PROMPT = (1, 0, 1)


def world_policy() -> Policy:
    """Peaky: the seven replies have very different probabilities."""
    return Policy(tiny_causal("gpt2", vocab_size=3).double(), tokenizer=tiny_tokenizer(), stop_token_ids=(2,))


def move(method: OnPolicy, size: float = 0.05, seed: int = 1) -> None:
    """Take the policy away from where it is."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in method.policy.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))


def world_reward(prompts: Any, responses: Sequence[str]) -> Tensor:
    """The reward of each reply, which is named by its tokens."""
    return torch.tensor([REWARDS[NAMES.index(name)] for name in responses])


def rollout_of(replies: Sequence[int]) -> Rollout:
    """These replies (by number), as a sampler would hand them over."""
    ids = torch.zeros(len(replies), len(PROMPT) + LONGEST, dtype=torch.long)
    labels, attention = torch.full_like(ids, IGNORE), torch.zeros_like(ids, dtype=torch.bool)
    for row, reply in enumerate(replies):
        tokens = torch.tensor(PROMPT + REPLIES[reply])
        ids[row, : len(tokens)], attention[row, : len(tokens)] = tokens, True
        labels[row, len(PROMPT) : len(tokens)] = tokens[len(PROMPT) :]
    names = tuple(NAMES[reply] for reply in replies)
    complete = torch.tensor([name.endswith("2") for name in names])
    return Rollout(Sequences(ids, attention, labels), torch.zeros(ids.shape), complete, ("p",) * len(names), names)


def all_logprobs(method: OnPolicy) -> tuple[Tensor, Tensor]:
    """log pi and log pi_ref of the seven replies; the first with its gradient."""
    sequences = rollout_of(range(len(REPLIES))).sequences
    reference = method.reference(sequences, temperature=method.temperature).sum(-1)
    return method.policy(sequences, temperature=method.temperature).logprobs.sum(-1), reference


def gradient(method: OnPolicy, value: Tensor) -> Tensor:
    """Of `value`, with respect to all of the policy's weights, as one vector."""
    weights = list(method.policy.parameters())
    parts = torch.autograd.grad(value, weights, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(w).flatten() if g is None else g.flatten() for w, g in zip(weights, parts, strict=True)]
    )


def objective_gradient(method: OnPolicy, beta: float) -> Tensor:
    """Of J = E[reward] - beta KL(pi || pi_ref), all replies listed."""
    logprobs, reference = all_logprobs(method)
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    return gradient(method, (logprobs.exp() * (rewards - beta * (logprobs - reference))).sum())


def expected_gradient(method: OnPolicy, num_replies: int, before: Callable[[], None] = lambda: None) -> Tensor:
    """Of the loss of a step of `num_replies` replies, averaged over all steps that there could be.

    `before` is called before each step (to set what a method remembers).
    """
    probabilities = all_logprobs(method)[0].detach().exp()
    total = torch.zeros(())
    for replies in itertools.product(range(len(REPLIES)), repeat=num_replies):
        before()
        experience, _ = method.collect(rollout_of(replies), torch.zeros(num_replies, dtype=torch.long))
        loss = method.compute(method.before_update(experience)).loss
        total = total + probabilities[list(replies)].prod() * gradient(method, loss)
    return total


def distance(actual: Tensor, expected: Tensor) -> float:
    """Relative to the size of `expected`."""
    return float((actual - expected).norm() / expected.norm())


def misdirection(actual: Tensor, expected: Tensor) -> float:
    """Relative distance after the best scaling: the sine of the angle between the two."""
    cosine = float((actual @ expected) / (actual.norm() * expected.norm()))
    return max(1 - cosine**2, 0.0) ** 0.5
