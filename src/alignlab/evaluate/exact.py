"""Exact figures of real networks in an exact world: every response is scored, nothing is sampled.

The network is asked through its ordinary forward pass, with the masks, labels and end tokens of training, so that an
error in any of them shows as probabilities that do not add up to 1 or as a regret that does not fall.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.batches import Sequences
from alignlab.models.backbone import evaluating
from alignlab.rows import Prompt
from alignlab.worlds.exact import ExactWorld, Script, every_response, response_logprobs
from alignlab.worlds.exact.network import Score
from alignlab.worlds.exact.text import EOS


def exact_figures(
    world: ExactWorld, logprobs: Float[Tensor, "*K N"], ref_logprobs: Float[Tensor, "*K N"]
) -> dict[str, float]:
    """How good a policy is, `ref_logprobs` being of the policy it started from.

    share: of the achievable improvement, (J(pi) - J(ref)) / (J* - J(ref)). regret, objective (J), reward (E[r]) in
    units of the reward, kl in nats per response; the same of the optimum as optimal_objective, optimal_reward and
    optimal_kl. Float32 log-probs are made to add up to 1 first (they miss it by about 1e-6).
    """
    world = world.with_reference(_normalised(world, ref_logprobs))
    policy, best = _normalised(world, logprobs), world.optimum()
    figures = {
        "share": world.share_of_optimum(policy),
        "regret": world.regret(policy),
        "reward": world.expected_reward(policy),
        "kl": world.kl(policy),
        "objective": world.objective(policy),
        "optimal_objective": world.objective(best),
        "optimal_reward": world.expected_reward(best),
        "optimal_kl": world.kl(best),
    }
    return {name: float(value) for name, value in figures.items()}


def ipo_figures(
    world: ExactWorld, logprobs: Float[Tensor, "*K N"], ref_logprobs: Float[Tensor, "*K N"], *, tau: float
) -> dict[str, float]:
    """ipo_share and ipo_regret: the same for what IPO maximises, E[p(y > mu)] - tau KL, mu the policy that wrote pairs.

    `world.ref_logprobs` is taken as mu. Azar et al. 2023, eq. 8 with the identity for Psi.
    """
    aimed_at = world.with_rewards(world.win_rates(world.ref_logprobs.exp()), beta=tau)
    figures = exact_figures(aimed_at, logprobs, ref_logprobs)
    return {f"ipo_{name}": figures[name] for name in ("share", "regret")}


@torch.no_grad()
def response_scores(
    reward: Callable[[Sequence[Prompt], Sequence[str]], Tensor], world: ExactWorld
) -> Float[Tensor, "*K N"]:
    """What a reward (a reward model, say) makes of every response, float64; of its text as a sampler writes it, which
    is empty where the response ends at once."""
    script = Script(world)
    texts = [script.response(tokens).removesuffix(EOS) for tokens in world.responses]
    scores = [reward([prompt] * len(texts), texts).double().cpu() for prompt in script.prompts]
    return torch.stack(scores).reshape(world.rewards.shape)


class PolicyMonitor:
    """Exact figures of a policy in training. The reference is read once, at the first call: it does not move.

    `reference` gives log-probs of sequences; None: the world's own. With `ipo_tau` IPO's own figures are added.
    """

    def __init__(self, world: ExactWorld, policy: Any, reference: Score | None, *, ipo_tau: float | None = None):
        self._world, self._policy, self._reference, self._ipo_tau = world, policy, reference, ipo_tau
        self._ref_logprobs: Tensor | None = None

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """The figures of `exact_figures` (and `ipo_figures`) as the policy is now."""
        device = self._policy.device
        with evaluating(self._policy):
            logprobs = response_logprobs(lambda s: self._policy(s).logprobs, self._world, device=device)
        if self._ref_logprobs is None:
            self._ref_logprobs = self._world.ref_logprobs
            if self._reference is not None:
                self._ref_logprobs = response_logprobs(self._reference, self._world, device=device)
        figures = exact_figures(self._world, logprobs, self._ref_logprobs)
        if self._ipo_tau is not None:
            figures |= ipo_figures(self._world, logprobs, self._ref_logprobs, tau=self._ipo_tau)
        return figures


class RewardMonitor:
    """Exact figures of a reward model in training: its likelihood, and the policy that is optimal for it."""

    def __init__(self, world: ExactWorld, reward_model: Any):
        self._world, self._reward_model = world, reward_model

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """likelihood_gap (nats a pair), and `exact_figures` of ref exp(score / beta) / Z under the true reward."""
        with evaluating(self._reward_model):
            scores = network_scores(self._reward_model, self._world, device=self._reward_model.device)
        aimed_at = self._world.with_rewards(scores, self._world.beta).optimum()
        gap = float(self._world.likelihood_gap(scores))
        return {"likelihood_gap": gap, **exact_figures(self._world, aimed_at, self._world.ref_logprobs)}


@torch.no_grad()
def network_scores(
    reward_model: Callable[[Sequences], Tensor],
    world: ExactWorld,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 1024,
) -> Float[Tensor, "*K N"]:
    """A reward model's raw score of every response, float64 on the CPU."""
    everything = every_response(world)
    parts = [everything.take(slice(at, at + batch_size)) for at in range(0, everything.num_rows, batch_size)]
    scores = [reward_model(Sequences(*(x.to(device) for x in part))).double().cpu() for part in parts]
    return torch.cat(scores).reshape(world.rewards.shape)


def _normalised(world: ExactWorld, logprobs: Float[Tensor, "*K N"]) -> Float[Tensor, "*K N"]:
    world.kl(logprobs)  # refuses what is no distribution
    return logprobs.double().log_softmax(-1)
