"""What a pairwise loss says of itself, tested both ways: what it claims holds, and what it denies fails somewhere.

The attributes of the class (or of the instance, where a setting changes one) are the declaration; where a class says
nothing, the defaults of `PreferenceLoss` speak for it. Only `value_at_reference` and `optimum` may be left unsaid.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from alignlab.contracts.finding import SAME, Finding, declared, difference, remark
from alignlab.contracts.pairs import Pairs, at_reference, policy_of, reference_of, swapped
from alignlab.contracts.subjects import Rows, num_rows, take
from alignlab.contracts.world import small_world

_NUM_PAIRS = 48


def per_pair_is_forward(pairs: Pairs) -> Iterator[Finding]:
    """forward on a single pair is what per_pair says of it.

    Methods call the one, the exact world the other.
    """
    if pairs.is_coupled:
        yield remark("a batch-coupled loss has no value per pair")
        return
    rows = pairs.draw(12, seed=7)
    singles = [pairs.call(pairs.still(rows), take(rows, slice(i, i + 1))).loss for i in range(num_rows(rows))]
    yield Finding(
        "forward on a single pair and per_pair differ by",
        difference(torch.stack(singles), pairs.values(rows)),
        SAME,
        "forward was overridden and does something else than the mean of per_pair",
    )


def needs_reference(pairs: Pairs) -> Iterator[Finding]:
    """Another reference changes the loss (False: it is never read)."""
    rows = pairs.draw(_NUM_PAIRS)
    if not pairs.loss.needs_reference:
        loss = pairs.still(rows)
        yield Finding(
            "a reference that is given all the same changes the loss by",
            difference(loss(policy_of(rows), reference_of(rows)).loss, loss(policy_of(rows)).loss),
            SAME,
            "the loss reads reference: set needs_reference = True, for methods do not hand it over otherwise",
        )
        return
    other = pairs.draw(_NUM_PAIRS, seed=1)
    moved = {name: other[name] for name in ("reference_chosen", "reference_rejected")}
    yield declared(
        False,
        "another reference model changes the loss of a pair by",
        difference(pairs.values(rows | moved), pairs.values(rows)),
        holds_not="",
        holds_though_denied="per_pair never reads reference: subtract it, or declare needs_reference = False and save "
        "its forward pass",
    )


def shift_invariant(pairs: Pairs) -> Iterator[Finding]:
    """One number added to both log-probs is not seen (False: it is)."""
    rows = pairs.draw(_NUM_PAIRS)
    lowered = {name: rows[name] - 3.0 for name in ("policy_chosen", "policy_rejected")}
    yield declared(
        pairs.loss.shift_invariant,
        "3 nats less on both log-probs of a pair change the loss by",
        difference(pairs.values(rows | lowered), pairs.values(rows)),
        holds_not="a length divides the log-probs, or a term reads one reply alone (an SFT term); if that is meant, "
        "set shift_invariant = False",
        holds_though_denied="the loss is better than it says: leave shift_invariant = True",
    )


def antisymmetric(pairs: Pairs) -> Iterator[Finding]:
    """Only the margin is seen, and a swap negates it (False: not so)."""
    claim, rows = pairs.loss.antisymmetric, pairs.draw(_NUM_PAIRS)
    negated = difference(-pairs.margins(swapped(rows)), pairs.margins(rows))
    some, alike = _same_margin(pairs, rows)
    apart = difference(pairs.values(alike), pairs.values(some)) if num_rows(some) else 0.0
    if not claim:
        yield declared(
            False,
            "the most by which a swap fails to negate a margin, or pairs of one margin differ in loss",
            max(negated, apart),
            holds_not="",
            holds_though_denied="the loss is better than it says: leave antisymmetric = True",
        )
        return
    yield Finding(
        "swapping the replies fails to negate the margin by",
        negated,
        SAME,
        "implied_rewards treats the two replies differently; if that is meant, set antisymmetric = False",
    )
    yield Finding(
        "two pairs of one margin, at other log-probs and lengths, differ in loss by",
        apart,
        SAME,
        "a term reads one reply alone, or implied_rewards was not overridden along with per_pair (a loss per token "
        "needs rewards per token); if it is meant, set antisymmetric = False",
    )


def monotone(pairs: Pairs) -> Iterator[Finding]:
    """Chosen up or rejected down never costs (False: somewhere it does)."""
    furthest = max(500.0, 20 / pairs.loss.beta)
    rise = max(_largest_rise(pairs, rows) for rows in _sweeps(40 if pairs.is_coupled else 400, furthest))
    yield declared(
        pairs.loss.monotone,
        "while the chosen log-prob rises, or the rejected one falls, the loss rises at most by",
        rise,
        holds_not="a target margin (then a bigger margin costs: set monotone = False), or chosen and rejected are "
        "mixed up",
        holds_though_denied="the loss is better than it says: it pulls at every margin; leave monotone = True",
    )


def value_at_reference(pairs: Pairs) -> Iterator[Finding]:
    """What a pair costs where policy and reference agree (None: varies)."""
    claim, rows = pairs.loss.value_at_reference, at_reference(pairs.draw(_NUM_PAIRS))
    values = pairs.values(rows, among=at_reference(pairs.draw(3, seed=99)))
    if claim is not None:
        cause = (
            "the number belongs to another beta or to another setting (then set it in __init__), or the sign of the "
            "margin is wrong"
        )
        stated = torch.full_like(values, float(claim))
        what = "where policy and reference agree a pair costs "
        yield Finding(f"{what}{values[0]:.6g}, off by", difference(values, stated), SAME, cause)
        if not pairs.is_coupled:
            world = small_world(pairs.loss.beta)
            mean = world.population_loss(pairs.fresh(), world.ref_logprobs)
            yield Finding(
                f"and the reference itself, in the exact world, {mean.item():.6g}, off by",
                difference(mean, stated[0]),
                SAME,
                cause,
            )
        return
    spread = (values.max() - values.min()).item()
    if spread > SAME or pairs.is_said("value_at_reference"):
        yield declared(
            False,
            "where policy and reference agree the costs of pairs differ by",
            spread,
            holds_not="",
            holds_though_denied=f"every pair costs {values[0]:.6g} there: declare value_at_reference",
        )
    else:
        yield remark(f"not declared; where policy and reference agree every pair costs {values[0]:.6g}")


def _same_margin(pairs: Pairs, rows: Rows) -> tuple[Rows, Rows]:
    """Pairs of `rows` beside other pairs, of other log-probs and lengths, with the very same margins.

    Found by bisection: of the others, the log-prob that has to fall is lowered until the margins agree. Pairs where
    they never do (a margin that is bounded) are left out.
    """
    others, wanted = pairs.draw(num_rows(rows), seed=11), pairs.margins(rows)
    too_high = pairs.margins(others) > wanted

    def lowered(by: Tensor) -> Rows:
        chosen = others["policy_chosen"] - torch.where(too_high, by, 0.0)
        rejected = others["policy_rejected"] - torch.where(too_high, 0.0, by)
        return others | {"policy_chosen": chosen, "policy_rejected": rejected}

    low, high = torch.zeros_like(wanted), torch.full_like(wanted, 1e4)
    for _ in range(80):  # halvings: from 1e4 nats to the last bit
        middle = (low + high) / 2
        is_short = (pairs.margins(lowered(middle)) > wanted) == too_high
        low, high = torch.where(is_short, middle, low), torch.where(is_short, high, middle)
    found = lowered(low)
    met = (pairs.margins(found) - wanted).abs() <= 1e-11 * wanted.abs().clamp(min=1.0)
    return take(rows, met), take(found, met)


def _sweeps(num_steps: int, furthest: float) -> Iterator[Rows]:
    """Pairs in which the chosen log-prob climbs, then such in which the rejected one falls, to margins of +-20."""
    near = torch.linspace(-1, 1, num_steps, dtype=torch.float64)
    for length, centre, reach in ((10, -furthest, furthest - 0.1), (10, -30.0, 29.9), (2, -4.0, 3.999)):
        away = reach * torch.sinh(8 * near) / torch.sinh(torch.tensor(8.0))  # fine steps near the reference
        for offset in (0.0, 0.3 * centre):
            still = torch.full_like(away, centre)
            base = {
                "policy_rejected": still + offset,
                "reference_chosen": still,
                "reference_rejected": still,
                "chosen_length": torch.full_like(away, length, dtype=torch.int64),
                "rejected_length": torch.full_like(away, length, dtype=torch.int64),
            }
            rising = {"policy_chosen": still + away, **base}
            yield rising
            falling = swapped(rising)
            yield {name: x.flip(0) for name, x in falling.items()}


def _largest_rise(pairs: Pairs, rows: Rows) -> float:
    values = pairs.values(rows)
    if not torch.isfinite(values).all():
        return float("nan")
    return (values.diff() / values[1:].abs().clamp(min=1.0)).max().clamp(min=0.0).item()
