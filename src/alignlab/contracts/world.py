"""What a pairwise loss aims at: its minimum over all pairs of an exact world, held to the closed form it claims."""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.contracts.finding import SAME, Finding, declared, remark
from alignlab.contracts.pairs import Pairs
from alignlab.losses.preference import PreferenceLoss
from alignlab.worlds.exact.population import population_optimum
from alignlab.worlds.exact.rewards import Automaton
from alignlab.worlds.exact.world import ExactWorld, PopulationPairs

_WRONG = (
    "beta stands at another place than in DPO, a target margin or a regulariser moves the minimum, a sign is wrong; or "
    "the loss aims at something else: then optimum = None"
)


class ClosedForm(NamedTuple):
    """A policy that is known in closed form, and the pairs on which a loss must reach it."""

    formula: str
    pairs: PopulationPairs
    logprobs: Float[Tensor, "N"]


@functools.lru_cache(maxsize=8)
def small_world(beta: float) -> ExactWorld:
    """40 responses of up to 3 tokens, with rewards of size 1: preferences are neither even nor certain."""
    return ExactWorld(4, 3, Automaton(4), beta, peakedness=1.0)


def closed_forms(loss: PreferenceLoss) -> dict[str, ClosedForm]:
    """By the names of `alignlab.losses.preference.Optimum`; flips only where the loss says how many it assumes."""
    world = small_world(loss.beta)
    pairs, rate = world.pairs(), getattr(loss, "label_smoothing", None)
    forms = {
        "rlhf": ClosedForm("ref exp(r / beta) / Z", pairs, world.optimum()),
        "ipo": ClosedForm("ref exp(p(y > ref) / beta) / Z", pairs, world.ipo_optimum(loss.beta)),
    }
    if rate is not None:
        flipped = pairs._replace(preference=(1 - rate) * pairs.preference + rate * (1 - pairs.preference))
        formula = f"ref exp(r / beta) / Z with a share {rate:g} of the labels flipped"
        forms["rlhf_under_flips"] = ClosedForm(formula, flipped, world.optimum())
    return forms


def optimum(pairs: Pairs) -> Iterator[Finding]:
    """The minimum in an exact world is this closed form (None: is none)."""
    loss, claim = pairs.loss, pairs.loss.optimum
    if claim is None and pairs.is_coupled:
        yield remark("no optimum is claimed, and a batch-coupled loss has no value per pair to minimise")
        return
    forms = closed_forms(loss)
    if claim is not None and claim not in forms:
        known = ", ".join(forms) + ("" if "rlhf_under_flips" in forms else "; rlhf_under_flips needs label_smoothing")
        yield Finding(f"the closed forms are {known}; unknown ones", 1.0, 0.0, _WRONG)
        return
    away = {name: _away(pairs, form) for name, form in forms.items() if claim in (None, name)}
    if claim is not None:
        what = f"the minimum over all pairs of an exact world misses {forms[claim].formula} by"
        yield Finding(what, away[claim], SAME, _WRONG)
        return
    nearest = min(away, key=lambda name: away[name])
    if away[nearest] > SAME or pairs.is_said("optimum"):
        yield declared(
            False,
            f"the minimum over all pairs of an exact world misses the nearest closed form, {nearest}, by",
            away[nearest],
            holds_not="",
            holds_though_denied=f"the loss is better than it says: declare optimum = {nearest!r}",
        )
    else:
        yield remark(f"not declared; in an exact world it is {nearest!r}")


def _away(pairs: Pairs, form: ClosedForm) -> float:
    """How far the loss's minimum over all pairs is from the closed form; infinite where there is no way to one.

    KL in nats, or half the variance under the reference of the error in beta log pi/ref, if that is more: where beta is
    small the optimum says one thing only, and a KL to it sees no other.
    """
    world = small_world(pairs.loss.beta)
    most = 200 if pairs.loss.optimum is not None else 60  # without a minimum there is no end to it
    found = population_optimum(world, pairs.fresh().eval(), pairs=form.pairs, max_iterations=most)
    gap, ref = found - form.logprobs, world.ref_logprobs.exp()
    kl, error = (found.exp() * gap).sum(), pairs.loss.beta * gap
    variance = (ref * error.square()).sum() - (ref * error).sum().square()
    away = torch.maximum(kl.abs(), variance / 2)
    return away.item() if torch.isfinite(away) else math.inf
