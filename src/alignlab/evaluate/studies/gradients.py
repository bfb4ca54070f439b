"""The first update's gradient of real methods on a real network, against the exact gradient of the objective.

A tiny transformer that has left its reference answers the one prompt of an exact world. Each method samples, collects
and computes its loss with its own code; the gradient is taken where training would take it, at the first update after a
rollout with all replies in one minibatch, before clipping and Adam. The exact one is the gradient of
J = E[reward] - beta KL(pi || ref), all responses listed.

A method that divides by tokens is multiplied by tokens per reply, which undoes its normaliser; where the scale has no
meaning (whitened advantages, GRPO), the direction alone is compared.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.batches import PromptBatch, Rollout, Sequences
from alignlab.evaluate.findings import Cell, Curve, Findings, Table
from alignlab.evaluate.studies.cases import Case, make_cases
from alignlab.evaluate.studies.critics import ExactValues
from alignlab.evaluate.studies.vectors import cosine, flattened, gradient_of, misdirection, relative_error
from alignlab.methods.experience import Experience, split
from alignlab.methods.on_policy import OnPolicy
from alignlab.models.policy import Policy
from alignlab.models.source import ModelSource
from alignlab.worlds.exact import ExactWorld, Script, every_response, response_logprobs

_MICRO = 512  # replies in one forward pass: memory and time, not numbers


class Truth(NamedTuple):
    """Of a policy in a world, by listing all responses."""

    world: ExactWorld  # its reference is the policy's
    logprobs: Float[Tensor, "N"]
    gradient: Float[Tensor, "D"]  # of J with respect to the policy's weights


class Found(NamedTuple):
    """A gradient against the exact one."""

    error: float  # relative; after the best scaling where the scale has no meaning
    cosine: float


def gradients(
    runs: dict[str, list[Path]],
    *,
    world: ExactWorld,
    model: Callable[..., ModelSource],
    sizes: Sequence[int] = (256, 1024, 4096, 16384),
    repeats: int = 8,
    group_size: int = 4,
    distance: float = 0.1,
    seed: int = 0,
) -> Findings:
    """Errors by the number of replies (`sizes`, multiples of `group_size`), over up to `repeats` parts of one rollout.

    `model` makes the network (a partial `ModelSource`); normal noise of standard deviation `distance` on its weights
    takes it away from its reference. The world has one prompt.
    """
    world, policy = float32_rewards(world), model(seed=seed).load_policy()
    policy.double()
    cases = make_cases(policy, world, group_size)  # they copy the policy as their reference, then it moves
    for case in cases:
        case.method.plan(seed=seed, total_steps=1, micro_batch_size=_MICRO)
    move(policy, distance, seed)
    truth = exact_gradient(cases[0].method, world)
    trust_exact_values(cases, truth)
    rollout = sample(cases[0].method, world, max(sizes), seed=seed)
    found = {
        case.name: {
            size: [compare(case, each, truth) for each in parts(rollout, size, repeats)] for size in sorted(sizes)
        }
        for case in cases
    }
    limits = {case.name: expected(case, truth) for case in cases if case.is_linear}
    return _findings(cases, found, limits, truth)


# -- a policy and the truth about it ------------------------------------------------------------------------------
def float32_rewards(world: ExactWorld) -> ExactWorld:
    """The same world with rewards as methods see them, in float32."""
    return world.with_rewards(world.rewards.float().double(), world.beta)


def move(policy: Policy, distance: float, seed: int) -> None:
    """Adds normal noise to all weights, in place."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(distance * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))


def exact_gradient(method: OnPolicy, world: ExactWorld) -> Truth:
    """J's gradient for the method's policy against its own reference; see `ExactWorld.objective`."""
    world = world.with_reference(response_logprobs(method.reference, world).log_softmax(-1))
    logprobs = response_logprobs(lambda s: method.policy(s).logprobs, world)
    gradient = gradient_of(world.objective(logprobs), list(method.policy.parameters()))
    return Truth(world, logprobs.detach().log_softmax(-1), gradient)


def trust_exact_values(cases: Iterable[Case], truth: Truth) -> None:
    """Puts exact values in the place of the critics of the cases that ask for it."""
    for case in cases:
        if case.has_exact_values:
            case.method.critic = ExactValues(truth.world, truth.logprobs)


# -- replies ------------------------------------------------------------------------------------------------------
def sample(method: OnPolicy, world: ExactWorld, number: int, *, seed: int) -> Rollout:
    """Replies to the world's prompt, by the method's own sampler."""
    script = Script(world)
    ids = torch.tensor(script.prompt_tokens(0)).expand(number, -1)
    prompts = PromptBatch(
        ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(number), (script.prompts[0],) * number
    )
    return method.sample(prompts, torch.Generator().manual_seed(seed))


def parts(rollout: Rollout, size: int, most: int) -> list[Rollout]:
    """Rollouts of `size` replies each, none in two of them; as many as there are, up to `most`."""
    number = min(rollout.sequences.num_rows // size, most)
    return [_rows(rollout, slice(start * size, (start + 1) * size)) for start in range(number)]


def _rows(rollout: Rollout, at: slice) -> Rollout:
    sequences = Sequences(*(x[at] for x in rollout.sequences))
    return Rollout(
        sequences, rollout.sampler_logprobs[at], rollout.complete[at], rollout.prompts[at], rollout.responses[at]
    )


def all_replies(world: ExactWorld) -> Rollout:
    """Every response once."""
    sequences, script = every_response(world), Script(world)
    ends = torch.tensor([tokens[-1] == world.eos_id for tokens in world.responses])
    texts = tuple(script.response(tokens) for tokens in world.responses)
    return Rollout(sequences, torch.zeros(sequences.labels.shape), ends, (script.prompts[0],) * len(texts), texts)


# -- gradients ----------------------------------------------------------------------------------------------------
def compare(case: Case, rollout: Rollout, truth: Truth) -> Found:
    """What a method makes of a rollout."""
    experience, _ = case.method.collect(rollout, torch.arange(rollout.sequences.num_rows))
    found = -first_gradient(case.method, experience)
    if case.factor is None:
        return Found(misdirection(found, truth.gradient), cosine(found, truth.gradient))
    found = case.factor(experience) * found
    return Found(relative_error(found, truth.gradient), cosine(found, truth.gradient))


def expected(case: Case, truth: Truth) -> Found:
    """The same of the expected gradient: every response once, its advantages weighted by its probability."""
    assert case.factor is not None and case.is_linear
    rollout = all_replies(truth.world)
    number = rollout.sequences.num_rows
    experience, _ = case.method.collect(rollout, torch.arange(number))
    weights = number * truth.logprobs.exp().unsqueeze(-1)
    experience = experience._replace(advantages=weights * experience.advantages)
    found = -case.factor(experience) * first_gradient(case.method, experience)
    return Found(relative_error(found, truth.gradient), cosine(found, truth.gradient))


def first_gradient(method: OnPolicy, experience: Experience) -> Float[Tensor, "D"]:
    """Of the loss with respect to the policy's weights, all replies in one minibatch, as `Method.update` takes it."""
    experience = method.before_update(experience)
    weights, total = list(method.policy.parameters()), method.count(experience)
    summed = torch.zeros(sum(weight.numel() for weight in weights), dtype=torch.float64)
    for micro_batch in split(experience, _MICRO):
        loss = method.compute(micro_batch).loss * (method.count(micro_batch) / total)
        summed += flattened(torch.autograd.grad(loss, weights, allow_unused=True), weights)
    return summed


# -- what is said of it -------------------------------------------------------------------------------------------
def _findings(
    cases: Sequence[Case],
    found: dict[str, dict[int, list[Found]]],
    limits: dict[str, Found],
    truth: Truth,
) -> Findings:
    largest = max(found[cases[0].name])
    errors = {
        name: [(float(size), _root_mean_square(each.error for each in at)) for size, at in by_size.items()]
        for name, by_size in found.items()
    }
    cosines = {name: _mean(each.cosine for each in by_size[largest]) for name, by_size in found.items()}
    rows: list[dict[str, Cell]] = [
        {
            "method": case.name,
            **{f"{size:,.0f}": error for size, error in errors[case.name]},
            "endless": limits[case.name].error if case.name in limits else "",
            "cosine": cosines[case.name],
            "compared": "direction" if case.factor is None else "value",
        }
        for case in cases
    ]
    kl = float(truth.world.kl(truth.logprobs))
    note = (
        "Relative error of the first update's gradient (root mean square) by number of replies, in the limit of "
        f"endless replies, and cosine at {largest:,}. PPO(lambda) has a critic that says 0, or exact values. "
        f"{len(truth.world.responses)} responses; the policy is {kl:.3f} nats from its reference."
    )
    lines = {name: line for name, line in errors.items() if all(error > 0 for _, error in line)}
    return Findings(
        tables={"gradients": Table(rows, note)},
        curves={
            "gradient_errors": Curve(
                lines, x="replies", y="relative error of the gradient", log_x=True, log_y=True, note=note
            )
        },
        metrics={
            "kl": kl,
            **{f"error/{_slug(name)}": line[-1][1] for name, line in errors.items()},
            **{f"cosine/{_slug(name)}": value for name, value in cosines.items()},
            **{f"limit/{_slug(name)}": limit.error for name, limit in limits.items()},
        },
        notes=_notes(cases, errors, cosines, limits),
    )


def _notes(
    cases: Sequence[Case],
    errors: dict[str, list[tuple[float, float]]],
    cosines: dict[str, float],
    limits: dict[str, Found],
) -> list[str]:
    exact = [case.name for case in cases if case.is_unbiased]
    (fewest, _), (most, _) = errors[exact[0]][0], errors[exact[0]][-1]
    worst = min(exact, key=lambda name: cosines[name])
    factor = (most / fewest) ** 0.5
    shrunk = ", ".join(f"{name} {errors[name][0][1] / errors[name][-1][1]:.1f}" for name in exact)
    biased = ", ".join(f"{case.name} ({cosines[case.name]:.3f})" for case in cases if not case.is_unbiased)
    return [
        f"Unbiased gradients have a cosine of at least {cosines[worst]:.4f} with the exact one at {most:,.0f} replies "
        f"({worst}).",
        f"{most / fewest:.0f} times the replies should leave an unbiased gradient {factor:.0f} times less error: "
        f"{shrunk}.",
        f"Biased, with their cosine at {most:,.0f} replies: {biased}.",
        "In the limit of endless replies: "
        + ", ".join(f"{name} {limit.error:.1e}" for name, limit in limits.items())
        + ".",
    ]


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _root_mean_square(values: Iterable[float]) -> float:
    return _mean(value**2 for value in values) ** 0.5


def _slug(name: str) -> str:
    words = "".join(letter if letter.isalnum() or letter == "." else " " for letter in name.lower())
    return "_".join(words.split())
