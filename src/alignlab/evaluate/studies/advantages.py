"""GAE's bias and variance against the exact advantage: expectations over every response, nothing is sampled.

For a prefix s and the token a that follows it, GAE(lambda) is a random number: it depends on what the policy says
after a, and on the values that it trusts along the way. Against the exact advantage A = Q - V of the penalised reward
(score on the last token, k1 on each):

    offset(s)   = sum over a of pi(a | s) E[GAE | s, a]       a baseline: it changes no expected gradient
    bias(s, a)  = E[GAE | s, a] - offset(s) - A(s, a)         what it gets wrong between the tokens of one place
    std(s, a)   = standard deviation of GAE given s and a

Figures are root mean squares over the tokens of the policy's responses, in units of the reward. With lambda 1 the
values cancel along the way: no bias whatever they are, and the variance of everything that may still come. With lambda
0 one step is seen, and the values are believed for the rest. Schulman et al. 2016, sec. 3.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignlab.evaluate.findings import Curve, Findings, Table
from alignlab.evaluate.studies.policies import PrefixPolicy, token_logprobs, token_mask
from alignlab.kernels.advantages import gae
from alignlab.methods.experience import token_rewards
from alignlab.worlds.exact import ExactWorld


class Quality(NamedTuple):
    """Of advantages as they are estimated; root mean squares, in units of the reward."""

    bias: float
    offset: float
    std: float

    @property
    def error(self) -> float:
        """Bias and noise together, of one sampled advantage; the offset left out."""
        return (self.bias**2 + self.std**2) ** 0.5


class Truth(NamedTuple):
    """Every response with what GAE reads, and what it should find; R responses (of all prompts), L tokens."""

    rewards: Float[Tensor, "R L"]
    values: Float[Tensor, "R L"]  # V of the prefix before each token
    advantages: Float[Tensor, "R L"]
    mask: Bool[Tensor, "R L"]
    states: Int[Tensor, "R L"]  # a number for each prefix
    actions: Int[Tensor, "R L"]  # a number for each prefix and next token
    probabilities: Float[Tensor, "R"]


def advantages(
    runs: dict[str, list[Path]],
    *,
    world: ExactWorld,
    distance: float = 1.0,
    lambdas: Sequence[float] = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0),
    value_noise: float = 0.5,
    seed: int = 0,
) -> Findings:
    """By lambda, with exact values, exact ones with normal noise of `value_noise` (in units of the reward), and none.

    The policy is the world's reference, `distance` away (see `PrefixPolicy`).
    """
    policy = PrefixPolicy(world, distance=distance, seed=seed)
    truth = exact_truth(world, policy().detach().sum(-1))
    generator = torch.Generator().manual_seed(seed + 1)  # not the policy's own draws
    noise = torch.randn(int(truth.states.max()) + 1, generator=generator, dtype=torch.float64)
    critics = {
        "exact": truth.values,
        f"noise {value_noise:g}": truth.values + value_noise * noise[truth.states],
        "none (zero)": torch.zeros_like(truth.values),
    }
    found = {
        (name, gae_lambda): quality(truth, values, gae_lambda)
        for name, values in critics.items()
        for gae_lambda in lambdas
    }
    size = _mean_square(truth, truth.advantages) ** 0.5
    lines = {
        figure: {name: [(x, getattr(found[name, x], figure)) for x in sorted(lambdas)] for name in critics}
        for figure in ("bias", "std", "error")
    }
    label = {
        "bias": "bias, units of the reward",
        "std": "standard deviation",
        "error": "bias and noise, root mean square",
    }
    return Findings(
        tables={
            "advantages": Table(
                [{"values": name, "lambda": x, **q._asdict(), "error": q.error} for (name, x), q in found.items()],
                f"GAE against exact advantages (root mean square {size:.3f}), over the tokens of all "
                f"{len(world.responses)} responses. offset is a harmless baseline; error: bias and std of one sample "
                "together (a mean over many samples keeps the bias alone).",
            )
        },
        curves={f"gae_{figure}": Curve(lines[figure], x="lambda", y=label[figure]) for figure in lines},
        metrics={
            f"{figure}/{name.split()[0]}_{x:g}": getattr(q, figure)
            for (name, x), q in found.items()
            for figure in ("bias", "std")
        },
        notes=_notes(found, lambdas),
    )


def quality(truth: Truth, values: Float[Tensor, "R L"], gae_lambda: float) -> Quality:
    """Bias, offset and spread of GAE with these values."""
    estimated, _ = gae(truth.rewards, values, truth.mask, gamma=1.0, gae_lambda=gae_lambda)
    given_action = _mean_by(truth, truth.actions, estimated)
    offset = _mean_by(truth, truth.states, estimated)
    return Quality(
        bias=_mean_square(truth, given_action - offset - truth.advantages) ** 0.5,
        offset=_mean_square(truth, offset) ** 0.5,
        std=_mean_square(truth, estimated - given_action) ** 0.5,
    )


def exact_truth(world: ExactWorld, logprobs: Float[Tensor, "*K N"]) -> Truth:
    """What a policy's responses are worth at every token, and how likely they are."""
    own, reference = token_logprobs(world, logprobs), token_logprobs(world, world.ref_logprobs)
    mask, exact = token_mask(world), world.values(logprobs)
    rewards = token_rewards(
        world.rewards.flatten(), own.flatten(0, -2), reference.flatten(0, -2), mask.flatten(0, -2), world.beta
    )
    states, actions = _numbers(world)
    on_tokens = world.tree.on_responses
    values = on_tokens([v.unsqueeze(-1).expand_as(q) for v, q in zip(exact.values, exact.action_values, strict=True)])
    return Truth(
        rewards,
        *(x.flatten(0, -2) for x in (values, on_tokens(exact.advantages), mask, states, actions)),
        probabilities=logprobs.exp().flatten() / (world.num_prompts or 1),
    )


def _numbers(world: ExactWorld) -> tuple[Int[Tensor, "*K N L"], Int[Tensor, "*K N L"]]:
    """A number for each prefix, and one for each prefix and next token, on the tokens of every response."""
    prompts, vocab_size = world.num_prompts or 1, world.vocab_size
    states, start = [], 0
    for size in world.tree.block_sizes[: world.max_length]:
        numbers = torch.arange(start, start + prompts * size).reshape(*world.rewards.shape[:-1], size, 1)
        states.append(numbers.expand(*numbers.shape[:-1], vocab_size))
        start += prompts * size
    actions = [numbers * vocab_size + torch.arange(vocab_size) for numbers in states]
    return world.tree.on_responses(states), world.tree.on_responses(actions)


def _mean_by(truth: Truth, numbers: Int[Tensor, "R L"], x: Float[Tensor, "R L"]) -> Float[Tensor, "R L"]:
    """The expectation of `x` at each token, given what `numbers` says of it; 0 where nothing counts."""
    weights = (truth.probabilities.unsqueeze(-1) * truth.mask).flatten()
    at, size = numbers.flatten(), int(numbers.max()) + 1
    total = torch.zeros(size, dtype=x.dtype).index_add(0, at, weights * x.flatten())
    mass = torch.zeros(size, dtype=x.dtype).index_add(0, at, weights)
    return torch.where(truth.mask, (total / mass)[numbers], 0.0)


def _mean_square(truth: Truth, x: Float[Tensor, "R L"]) -> float:
    """Over the tokens of the policy's responses."""
    weights = truth.probabilities.unsqueeze(-1) * truth.mask
    return float((weights * x.square()).sum() / weights.sum())


def _notes(found: dict[tuple[str, float], Quality], lambdas: Sequence[float]) -> list[str]:
    names = list(dict.fromkeys(name for name, _ in found))
    best = {name: min(lambdas, key=lambda x: found[name, x].error) for name in names}
    said = "; ".join(f"values {name}: lambda {best[name]:g} ({found[name, best[name]].error:.3f})" for name in names)
    notes = [f"Least error of one sampled advantage, bias and noise together: {said}."]
    if 1.0 in lambdas:
        worst = max(found[name, 1.0].bias for name in names)
        notes.insert(0, f"With lambda 1 no values are wrong enough to matter: the largest bias is {worst:.1e}.")
    return notes
