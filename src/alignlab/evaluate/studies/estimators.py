"""Which estimates of the KL give the gradient of the KL: expectations over every response, against the exact gradient.

A reply y of the policy has d_t = log pi(y_t) - log pi_ref(y_t) at each token. An estimator (k1, k2, k3; see
`kernels/divergence.py`) makes a price of them, per token and summed or of the whole reply's d (`KLPenalty.of_replies`).
Its expected gradient is

    paid in the reward:   E[price * grad log pi(y)], the price a constant
    a term of the loss:   E[grad price]

and what it should be is grad KL(pi || ref), KL of whole replies. The policy has a free logit for every prefix and
token, so no gradient is special to a network; it stands some way from its reference, in replies of several tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignlab.evaluate.findings import Curve, Findings, Table
from alignlab.evaluate.studies.policies import PrefixPolicy, token_logprobs, token_mask
from alignlab.evaluate.studies.vectors import cosine, gradient_of, relative_error
from alignlab.kernels.advantages import gae
from alignlab.methods.experience import token_rewards
from alignlab.methods.kl_penalty import KLPenalty
from alignlab.worlds.exact import ExactWorld

_EXACT = 1e-9  # relative; what is exact comes out at about 1e-15


class Convention(NamedTuple):
    """A way to charge for the KL."""

    where: Literal["reward", "loss"]
    estimator: Literal["k1", "k2", "k3"]
    per: Literal["token", "sequence"]
    used_by: str = ""

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.estimator} per {self.per} in the {self.where}"


CONVENTIONS = (
    Convention("reward", "k1", "token", "PPO"),
    Convention("reward", "k1", "sequence", "RLOO"),
    Convention("reward", "k2", "token"),
    Convention("reward", "k2", "sequence"),
    Convention("reward", "k3", "token"),
    Convention("reward", "k3", "sequence"),
    Convention("loss", "k1", "sequence", "refused"),
    Convention("loss", "k2", "token"),
    Convention("loss", "k2", "sequence"),
    Convention("loss", "k3", "token", "GRPO"),
    Convention("loss", "k3", "sequence"),
)


class Estimate(NamedTuple):
    """Of one convention at one policy."""

    size: float  # expected price, as a share of the KL
    cosine: float  # of its expected gradient and the KL's
    error: float  # relative, of the gradient


class Replies(NamedTuple):
    """Every response with its tokens' log-probs (with their gradient) and its probability (without)."""

    logprobs: Float[Tensor, "R L"]
    ref_logprobs: Float[Tensor, "R L"]
    mask: Bool[Tensor, "R L"]
    probabilities: Float[Tensor, "R"]  # add up to 1 over all prompts together


def estimators(
    runs: dict[str, list[Path]],
    *,
    world: ExactWorld,
    distance: float = 1.0,
    distances: Sequence[float] = (0.03, 0.1, 0.3, 1.0),
    seed: int = 0,
) -> Findings:
    """The table of all conventions at one `distance` (see `PrefixPolicy`), and their errors over several."""
    found, kl = _estimates(world, distance, seed)
    rows = [_row(convention, estimate) for convention, estimate in found.items()]
    lines: dict[str, list[tuple[float, float]]] = {each.name: [] for each in CONVENTIONS}
    for each in sorted(distances):
        estimates, at = _estimates(world, each, seed)
        for convention, estimate in estimates.items():
            if estimate.error > _EXACT:
                lines[convention.name].append((at, estimate.error))
    longest, number = world.max_length, len(world.responses)
    return Findings(
        tables={
            "kl_gradients": Table(
                rows,
                f"Expected gradient of each estimate against that of KL(pi || ref) = {kl:.3f} nats, over all {number} "
                f"responses of up to {longest} tokens. size: expected price / KL. error: |g - g*| / |g*|.",
            )
        },
        curves={
            "kl_gradient_errors": Curve(
                {name: points for name, points in lines.items() if points},
                x="KL(pi || ref), nats per response",
                y="relative error of the gradient",
                log_x=True,
                log_y=True,
                note="Estimates whose expected gradient is not exact, as the policy leaves its reference.",
            )
        },
        metrics={f"error/{c.where}_{c.estimator}_{c.per}": estimate.error for c, estimate in found.items()}
        | {"kl": kl},
        notes=_notes(found),
    )


def estimate(convention: Convention, replies: Replies, policy: PrefixPolicy, kl: Tensor) -> Estimate:
    """Size and expected gradient of one convention, against those of `kl` (with its gradient)."""
    # the price is the same function wherever it is paid, and KLPenalty rightly refuses k1 in the loss
    penalty = KLPenalty(where="reward", estimator=convention.estimator, per=convention.per)
    prices = penalty.of_replies(replies.logprobs, replies.ref_logprobs, replies.mask)
    weights, parameters = replies.probabilities, list(policy.parameters())
    if convention.where == "loss":
        found = gradient_of((weights * prices).sum(), parameters)
    elif convention.estimator == "k1" and convention.per == "token":
        found = gradient_of(_as_ppo_pays(replies), parameters)
    else:
        found = gradient_of((weights * prices.detach() * replies.logprobs.sum(-1)).sum(), parameters)
    exact = gradient_of(kl, parameters)
    size = float((weights * prices).sum().detach() / kl.detach())
    return Estimate(size, cosine(found, exact), relative_error(found, exact))


def _as_ppo_pays(replies: Replies) -> Float[Tensor, ""]:
    """A number whose gradient is that of PPO's penalty: token rewards of no score, summed over what is to come."""
    logprobs, reference, mask, weights = replies
    nothing = torch.zeros(len(logprobs), dtype=logprobs.dtype)
    rewards = token_rewards(nothing, logprobs.detach(), reference, mask, 1.0)
    advantages, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, gae_lambda=1.0)
    return -(weights * (advantages * logprobs).sum(-1)).sum()


def _estimates(world: ExactWorld, distance: float, seed: int) -> tuple[dict[Convention, Estimate], float]:
    """All conventions at one policy, and its KL."""
    policy = PrefixPolicy(world, distance=distance, seed=seed)
    logprobs = policy()
    kl = world.kl(logprobs.sum(-1))
    replies = Replies(
        logprobs.flatten(0, -2),
        token_logprobs(world, world.ref_logprobs).flatten(0, -2),
        token_mask(world).flatten(0, -2),
        logprobs.detach().sum(-1).exp().flatten() / (world.num_prompts or 1),
    )
    return {each: estimate(each, replies, policy, kl) for each in CONVENTIONS}, float(kl.detach())


def _row(convention: Convention, found: Estimate) -> dict[str, str | float]:
    return {
        "paid in": convention.where,
        "estimator": convention.estimator,
        "per": convention.per,
        "used by": convention.used_by,
        "size": found.size,
        "cosine": found.cosine,
        "error": found.error,
    }


def _notes(found: dict[Convention, Estimate]) -> list[str]:
    exact = [convention.name for convention, estimate in found.items() if estimate.error < _EXACT]
    per_token = found[next(c for c in CONVENTIONS if c.name == "k2 per token in the loss")]
    return [
        f"Exact: {', '.join(exact)}.",
        "k2 per token in the loss drops what a token does to the KL of the tokens after it: its gradient is off by "
        f"{per_token.error:.0%}. So is the full KL over the vocabulary at each visited state, whose expected gradient "
        "is the same.",
        "k1 in the loss teaches nothing: grad log pi is 0 on average.",
    ]
