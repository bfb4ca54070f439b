"""Policies without a network, and what a preference loss aims at when it sees every pair."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignlab.losses.preference import PreferenceLoss
from alignlab.worlds.exact.world import ExactWorld, PopulationPairs


class TabularPolicy(nn.Module):
    """One free logit per response: the policy that can represent every optimum: its regret is the method's."""

    def __init__(self, logprobs: Float[Tensor, "*K N"]):
        """Starts as the given distribution, usually `world.ref_logprobs`."""
        super().__init__()
        self.logits = nn.Parameter(logprobs.detach().clone().double())

    def forward(self) -> Float[Tensor, "*K N"]:
        """log pi of every response."""
        return self.logits.log_softmax(-1)


def population_optimum(
    world: ExactWorld,
    loss: PreferenceLoss,
    *,
    pairs: PopulationPairs | None = None,
    max_iterations: int = 200,
    start: Float[Tensor, "*K N"] | None = None,
) -> Float[Tensor, "*K N"]:
    """log pi of the policy that minimises `world.population_loss(loss, ...)`: what the loss aims at, without noise.

    L-BFGS on log-ratios to the reference, scaled by mu^(-1/2): a response's curvature is about proportional to its
    weight mu, so rare ones would otherwise take thousands of steps. A loss that has no minimum is followed for
    `max_iterations` from `start` (the reference if None).
    """
    pairs = world.pairs() if pairs is None else pairs
    scale = (-0.5 * world.ref_logprobs).exp()
    origin = world.ref_logprobs if start is None else start
    scaled = torch.zeros_like(scale, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [scaled],
        max_iter=max_iterations,
        max_eval=10 * max_iterations,
        tolerance_grad=1e-16,
        tolerance_change=0.0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = world.population_loss(loss, (origin + scale * scaled).log_softmax(-1), pairs=pairs)
        value.backward()
        return value

    optimizer.step(closure)
    return (origin + scale * scaled.detach()).log_softmax(-1)
