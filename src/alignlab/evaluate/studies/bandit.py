"""What preference losses aim at when data are no limit, and what becomes of them when labels never err.

Everything is float64 and without sampling. First, a tabular policy sees all pairs with their true Bradley-Terry
probabilities; what each loss ends at is held against the closed form that it declares (`PreferenceLoss.optimum`).

Then labels that never err: the better response always wins. DPO's loss has no finite optimum there. It moves all
probability to the best response whatever its beta, which is its over-optimisation: the true objective rises and then
falls while the loss falls all the way. IPO and conservative DPO rest at a finite distance, which their beta sets. The
bandit of Azar et al. 2023, sec. 5, shows it on three arms with a total order and a uniform reference.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.evaluate.findings import Cell, Curve, Findings, Table
from alignlab.losses.preference import DPOLoss, IPOLoss, PreferenceLoss
from alignlab.worlds.exact import Bandit, ExactWorld, TabularPolicy, population_optimum
from alignlab.worlds.exact.world import PopulationPairs

_CERTAIN = 1e3  # times this, different rewards are so far apart that Bradley-Terry labels never err in float64
_ARMS = ("a", "b", "c")

Lines = dict[str, list[tuple[float, float]]]


def bandit(
    runs: dict[str, list[Path]],
    *,
    world: ExactWorld,
    losses: Mapping[str, PreferenceLoss],
    betas: Sequence[float] = (0.1, 0.5, 1.0),
    label_smoothing: float = 0.1,
    num_steps: int = 1000,
    lr: float = 0.05,
    max_iterations: int = 500,
) -> Findings:
    """The optimum of each of `losses` in `world` (`max_iterations` of L-BFGS), and labels that never err.

    There policies take `num_steps` full-batch steps of Adam with this `lr`: in `world` with its own beta, in the bandit
    with each of `betas`. `label_smoothing` is conservative DPO's.
    """
    optima = {name: optimum_row(world, name, loss, max_iterations) for name, loss in losses.items()}
    rows, best_arm = _on_arms(betas, label_smoothing, _moments(num_steps), lr, max_iterations)
    shares = _on_world(world, label_smoothing, _moments(num_steps), lr)
    size, wrong = len(world.responses), "Labels never err: the better response always wins."
    return Findings(
        tables={
            "population": Table(
                list(optima.values()),
                f"All pairs of {size} responses with their true probabilities: the policy that minimises the loss, "
                "against the closed form that the loss declares. regret, share: of the reward under a KL penalty.",
            ),
            "bandit": Table(
                rows,
                f"Three arms, a before b before c in every label, uniform reference: probabilities after {num_steps:,} "
                "steps of Adam, their KL to the reference in nats, and what the best arm has at the loss's optimum.",
            ),
        },
        curves={
            "share_of_optimum": Curve(
                shares,
                x="steps",
                y="share of the achievable improvement",
                log_x=True,
                note=f"{wrong} {size} responses.",
            ),
            "best_arm": Curve(best_arm, x="steps", y="probability of the best arm", log_x=True, note=wrong),
        },
        metrics={
            **{f"kl_to_optimum/{n}": float(row["KL to it"]) for n, row in optima.items() if row["optimum"] != "none"},
            **{f"best_arm/{row['loss']}/{row['beta']}": float(row["a"]) for row in rows},
            **{f"share/{name}": line[-1][1] for name, line in shares.items()},
        },
        notes=_notes(optima, rows, shares),
    )


# -- all pairs, true probabilities --------------------------------------------------------------------------------
def optimum_row(world: ExactWorld, name: str, loss: PreferenceLoss, max_iterations: int) -> dict[str, Cell]:
    """What `loss` ends at, at its own beta: its KL in nats to the closed form it declares; regret and share of J.

    Under `rlhf_under_flips` labels are flipped as often as the loss assumes. Where nothing is declared, the KL is to
    the optimum of the reward under a KL penalty, which is then another policy.
    """
    aimed_at = world.with_rewards(world.rewards, loss.beta)
    pairs = world.pairs()
    if loss.optimum == "rlhf_under_flips":
        pairs = flipped(pairs, float(getattr(loss, "label_smoothing")))  # noqa: B009 - what the declaration speaks of
    found = population_optimum(aimed_at, loss, pairs=pairs, max_iterations=max_iterations)
    closed = aimed_at.ipo_optimum(loss.beta) if loss.optimum == "ipo" else aimed_at.optimum()
    return {
        "loss": name,
        "optimum": loss.optimum or "none",
        "beta": loss.beta,
        "KL to it": abs(float(world.with_reference(closed).kl(found))),  # rounding may leave -1e-16
        "regret": float(aimed_at.regret(found)),
        "share": float(aimed_at.share_of_optimum(found)),
        "KL to ref": float(world.kl(found)),
    }


def flipped(pairs: PopulationPairs, rate: float) -> PopulationPairs:
    """The same pairs with a share `rate` of the labels turned round."""
    return pairs._replace(preference=(1 - rate) * pairs.preference + rate * (1 - pairs.preference))


# -- labels that never err ----------------------------------------------------------------------------------------
def certain(world: ExactWorld) -> ExactWorld:
    """The same world with labels that never err: the greater reward always wins, a tie is even."""
    return world.with_rewards(_CERTAIN * world.rewards, world.beta)


def three_arms() -> ExactWorld:
    """Responses a, b and c in the order of preference, under a uniform reference."""
    return ExactWorld(len(_ARMS), 1, Bandit([2.0, 1.0, 0.0]), 1.0, reference=lambda prefix: [0.0] * len(_ARMS))


def descend(world: ExactWorld, loss: PreferenceLoss, *, steps: Sequence[int], lr: float) -> list[Float[Tensor, "*K N"]]:
    """log pi after each number of Adam steps on the population loss, from the reference; `steps` in rising order."""
    policy, pairs, reached = TabularPolicy(world.ref_logprobs), world.pairs(), []
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    for step in range(steps[-1] + 1):
        if step in steps:
            reached.append(policy().detach())
        optimizer.zero_grad()
        world.population_loss(loss, policy(), pairs=pairs).backward()
        optimizer.step()
    return reached


def _contenders(beta: float, label_smoothing: float) -> dict[str, PreferenceLoss]:
    return {"dpo": DPOLoss(beta), "cdpo": DPOLoss(beta, label_smoothing), "ipo": IPOLoss(beta)}


def _on_world(world: ExactWorld, label_smoothing: float, steps: Sequence[int], lr: float) -> Lines:
    """How good policies really are, while they learn from labels that never err."""
    lines: Lines = {}
    for name, loss in _contenders(world.beta, label_smoothing).items():
        reached = descend(certain(world), loss, steps=steps, lr=lr)
        lines[name] = [(at, float(world.share_of_optimum(found))) for at, found in zip(steps, reached, strict=True)]
    return lines


def _on_arms(
    betas: Sequence[float], label_smoothing: float, steps: Sequence[int], lr: float, max_iterations: int
) -> tuple[list[dict[str, Cell]], Lines]:
    """The table of the bandit, and the best arm's probability by steps."""
    arms, rows, lines = certain(three_arms()), [], {}
    for beta in betas:
        for name, loss in _contenders(beta, label_smoothing).items():
            reached = descend(arms, loss, steps=steps, lr=lr)
            lines[f"{name}, beta {beta:g}"] = [(at, _best(found)) for at, found in zip(steps, reached, strict=True)]
            final = dict(zip(_ARMS, reached[-1].exp().tolist(), strict=True))
            resting = _resting(arms, loss, max_iterations)
            rows.append(
                {"loss": name, "beta": beta, **final, "KL": float(arms.kl(reached[-1])), "a at the optimum": resting}
            )
    return rows, lines


def _resting(arms: ExactWorld, loss: PreferenceLoss, max_iterations: int) -> Cell:
    """The best arm's probability where the loss has its minimum."""
    if loss.optimum == "ipo":
        return _best(arms.ipo_optimum(loss.beta))
    if loss.optimum == "rlhf":
        return "goes to 1"  # the margins that would satisfy labels that never err are infinite
    return _best(population_optimum(arms, loss, max_iterations=max_iterations))


def _best(logprobs: Float[Tensor, "N"]) -> float:
    return float(logprobs[0].exp())


def _moments(num_steps: int) -> list[int]:
    """About a dozen numbers of steps, evenly spaced on a logarithmic axis, the last included."""
    return sorted({round(num_steps ** (part / 12)) for part in range(13)} | {num_steps})


def _notes(optima: Mapping[str, dict[str, Cell]], rows: Sequence[dict[str, Cell]], shares: Lines) -> list[str]:
    notes = []
    declared = {name: float(row["KL to it"]) for name, row in optima.items() if row["optimum"] != "none"}
    if declared:
        worst = max(declared, key=lambda name: declared[name])
        notes.append(
            f"Losses that declare an optimum reach it: the largest KL is {declared[worst]:.1e} nats ({worst})."
        )
    for name, line in shares.items():
        top = max(line, key=lambda point: point[1])
        notes.append(
            f"{name}, labels that never err: a share of {top[1]:.1%} after {top[0]:,.0f} steps, {line[-1][1]:.1%} "
            f"after {line[-1][0]:,.0f}."
        )
    for name in shares:
        found = ", ".join(f"{float(row['a']):.3f} (beta {row['beta']})" for row in rows if row["loss"] == name)
        notes.append(f"The best of three arms under {name}: {found}.")
    return notes
