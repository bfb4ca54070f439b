"""How far a reward model can be trusted: it is optimised against, and the true reward is watched. Nothing is sampled.

A reward model fitted to N labelled pairs gives each response a score s. The policy that is best for it under a price
beta on the KL is listed in full, pi_beta = ref exp(s / beta) / Z, and so are its KL to the reference, its proxy reward
E[s] and its gold reward E[r]. As beta falls the proxy can only rise; the gold reward rises, and then falls where the
scores are wrong about replies that the pairs hardly showed (Gao et al. 2023, who had to sample, and fitted curves).

Bradley-Terry scores are in units of the true reward, so both can be drawn on one axis; the number by which they may be
shifted is fixed by giving both the same mean under the reference.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.errors import ConfigError, DataError
from alignlab.evaluate.exact import network_scores
from alignlab.evaluate.findings import Cell, Curve, Findings, Table
from alignlab.models.backbone import evaluating
from alignlab.models.saving import load_policy, load_reward_model
from alignlab.statistics import mean_interval
from alignlab.worlds.exact import ExactWorld, response_logprobs

Points = list[tuple[float, float]]


class Step(NamedTuple):
    """A policy on the way from the reference to the proxy's maximum; rewards as gains over the reference's."""

    beta: float
    kl: float  # nats per response
    proxy: float
    gold: float


class Fitted(NamedTuple):
    """One reward model, and where optimising it leads."""

    num_pairs: int
    accuracy: float  # on held-out pairs, with Bradley-Terry labels
    share: float  # of the achievable improvement, optimised at the world's beta
    path: list[Step]

    @property
    def best(self) -> Step:
        """Where the gold reward is greatest."""
        return max(self.path, key=lambda step: step.gold)


def overoptimisation(runs: dict[str, list[Path]], *, world: ExactWorld, betas: Sequence[float]) -> Findings:
    """Gold and proxy reward over `betas` for the reward models `runs["rm"]`, by the pairs they were fitted to.

    `runs["base"]` is the policy that wrote the pairs, which is the reference; without it, it is the world's own.
    Several models of as many pairs (seeds) are averaged, beta by beta.
    """
    if not runs.get("rm"):
        raise ConfigError("overoptimisation: no reward models; name them as the need `rm` (needs.rm)")
    if runs.get("base"):
        world = world.with_reference(_reference(runs["base"][0], world))
    fitted: dict[int, list[Fitted]] = {}
    for folder in runs["rm"]:
        model = fit_of(folder, world, betas)
        fitted.setdefault(model.num_pairs, []).append(model)
    fitted = dict(sorted(fitted.items()))
    true = path(world, world.rewards, betas)
    rows = [_row(number, models) for number, models in fitted.items()]
    last = true[-1]
    return Findings(
        tables={
            "overoptimisation": Table(
                rows,
                f"Gains over the reference in units of the reward, means over seeds; best of {len(betas)} values of "
                f"beta, last at beta {last.beta:g}: the true reward gives {last.gold:.3f} there at {last.kl:.2f} nats. "
                f"share: of the achievable improvement, at beta {world.beta:g}. accuracy: on held-out pairs.",
            )
        },
        curves=_curves(fitted, true),
        metrics={
            f"{column.replace(' ', '_')}/{row['pairs']}": float(row[column])
            for row in rows
            for column in ("share", "best gold", "last gold", "last proxy")
        },
        notes=_notes(rows),
    )


def path(world: ExactWorld, scores: Float[Tensor, "*K N"], betas: Sequence[float]) -> list[Step]:
    """The best policies for `scores`, from the largest beta to the smallest."""
    proxy = world.with_rewards(scores, world.beta)
    start_proxy, start_gold = (w.expected_reward(world.ref_logprobs) for w in (proxy, world))
    steps = []
    for beta in sorted(betas, reverse=True):
        policy = world.with_rewards(scores, beta).optimum()
        gains = (proxy.expected_reward(policy) - start_proxy, world.expected_reward(policy) - start_gold)
        steps.append(Step(beta, float(world.kl(policy)), *(float(gain) for gain in gains)))
    return steps


def fit_of(folder: Path, world: ExactWorld, betas: Sequence[float]) -> Fitted:
    """What a finished reward-model run scores every response, and where that leads."""
    settings, metrics, model = _settings(folder), _metrics(folder), load_reward_model(folder)
    with evaluating(model):
        scores = network_scores(model, world)
    optimum = world.with_rewards(scores, world.beta).optimum()
    return Fitted(
        int(settings["data"]["source"]["num_pairs"]),
        float(metrics.get("test/accuracy", math.nan)),
        float(world.share_of_optimum(optimum)),
        path(world, scores, betas),
    )


@torch.no_grad()
def _reference(folder: Path, world: ExactWorld) -> Float[Tensor, "*K N"]:
    policy = load_policy(folder)
    with evaluating(policy):
        return response_logprobs(lambda s: policy(s).logprobs, world).log_softmax(-1)


def _settings(folder: Path) -> dict[str, Any]:
    import yaml

    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    if not settings["data"].get("source", {}).get("num_pairs"):
        raise DataError(
            f"{folder}: data.source.num_pairs is not set; reward models are compared by the number of their pairs, so "
            "each must be fitted to a fixed one (data.source.pairs=sampled)"
        )
    return settings


def _metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))["metrics"]


# -- what is said of it -------------------------------------------------------------------------------------------
def _row(num_pairs: int, models: Sequence[Fitted]) -> dict[str, Cell]:
    best, last = mean_interval([m.best.gold for m in models]), [m.path[-1] for m in models]
    return {
        "pairs": num_pairs,
        "share": _mean([m.share for m in models]),
        "best gold": best.mean,
        "+-": "" if len(models) == 1 else best.high - best.mean,
        "at KL": _mean([m.best.kl for m in models]),
        "last gold": _mean([step.gold for step in last]),
        "last proxy": _mean([step.proxy for step in last]),
        "accuracy": _mean([m.accuracy for m in models]),
        "last KL": _mean([step.kl for step in last]),
        "seeds": len(models),
    }


def _curves(fitted: Mapping[int, Sequence[Fitted]], true: Sequence[Step]) -> dict[str, Curve]:
    """Gold reward for every number of pairs; and gold beside proxy for the fewest and the most."""
    axis = "square root of KL(pi || ref), nats"
    gold = {f"{number:,} pairs": _line(models, "gold") for number, models in fitted.items()}
    both = {
        f"{which}, {number:,} pairs": _line(fitted[number], which)
        for number in (min(fitted), max(fitted))
        for which in ("gold", "proxy")
    }
    optimum = {"the true reward itself": [(step.kl**0.5, step.gold) for step in true]}
    units = "Gains over the reference, in units of the reward, as beta falls."
    return {
        "gold": Curve(gold | optimum, x=axis, y="gain in gold reward", note=units),
        "gold_and_proxy": Curve(
            both | optimum, x=axis, y="gain in reward", note=f"{units} Promised, and what it is worth."
        ),
    }


def _line(models: Sequence[Fitted], which: str) -> Points:
    """Means over models, beta by beta."""
    steps = zip(*(model.path for model in models), strict=True)
    return [(_mean([s.kl**0.5 for s in at]), _mean([getattr(s, which) for s in at])) for at in steps]


def _notes(rows: Sequence[dict[str, Cell]]) -> list[str]:
    notes = []
    for row in rows:
        best, last = float(row["best gold"]), float(row["last gold"])
        said = f"falls to {last:.3f}" if last < best else "does not fall"
        notes.append(
            f"{row['pairs']:,} pairs: the gold reward peaks at {best:.3f} ({float(row['at KL']):.2f} nats) and {said} "
            f"where the proxy has risen to {float(row['last proxy']):.3f}."
        )
    return notes


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
