"""What a policy makes of held-out pairs, without sampling: how likely it finds each reply of them.

Symbols: c and r the chosen and the rejected reply to x; log pi(y | x) is summed over the reply's tokens, its end token
included, in nats. Margin = log pi(c | x) - log pi(r | x). It contains what the lengths of the two replies do to it, so
compare it between policies on the same pairs and tokens, not with zero. Implicit margin = that margin less the
reference's: the reward margin that DPO trains, over beta (Rafailov et al. 2023, section 4). It is zero for the
reference itself, which is why a base model is told by its margin.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignlab.batches import PreferenceBatch, Sequences
from alignlab.errors import DataError
from alignlab.evaluate.pairs import accuracy_of, margin_of
from alignlab.evaluate.policy import Reference
from alignlab.models.backbone import evaluating
from alignlab.rows import PairFacts
from alignlab.statistics import Interval

if TYPE_CHECKING:
    from alignlab.models.policy import Policy


def evaluate_pairs(
    policy: "Policy",
    *,
    reference: Reference | None,
    batches: Iterable[PreferenceBatch],
    facts: Sequence[PairFacts] | None = None,
) -> dict[str, float]:
    """Figures of a policy (in eval mode, no gradients) over pairs, each of which counts once, whatever its weight.

    Chosen is the reply that the label says is likelier the better one; a pair of preference 1/2 is left out.

    pair_margin (nats; t interval) and pair_accuracy (share of margins above 0, ties half; Wilson), both over pairs, or
    over prompts where `facts` (of each pair, by its number in `batch.rows`) say that pairs share one;
    with `reference` implicit_margin and implicit_accuracy, likewise; chosen_perplexity and rejected_perplexity: exp of
    minus the mean log-prob of a token; num_pairs.

    Raises:
        DataError: there are no pairs.
        NonFiniteError: a log-prob is not a number.
    """
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    lengths: list[Tensor] = []
    rows: list[int] = []
    with torch.no_grad(), evaluating(policy):
        for batch in (each.likelier() for each in batches):
            if not len(batch.rows):
                continue
            sequences = Sequences(*(part.to(policy.device) for part in batch.sequences))
            output = policy(sequences)
            ours.append(_by_pair(output.logprobs))
            lengths.append(_by_pair(output.mask))
            rows += batch.rows.tolist()
            if reference is not None:
                theirs.append(_by_pair(reference(sequences)))
    if not ours:
        raise DataError("evaluation.num_pairs: the test split has no pairs; set it to 0, or give data with pairs")
    sums, counts = torch.cat(ours, 1), torch.cat(lengths, 1)  # (2, pairs): chosen, rejected
    metrics = {"num_pairs": float(sums.shape[1])}
    known = [] if facts is None else [facts[row] for row in rows]
    _add(metrics, "pair", (sums[0] - sums[1]).tolist(), known)
    if theirs:
        gains = sums - torch.cat(theirs, 1)
        _add(metrics, "implicit", (gains[0] - gains[1]).tolist(), known)
    for name, total, count in zip(("chosen", "rejected"), sums.sum(1).tolist(), counts.sum(1).tolist(), strict=True):
        metrics[f"{name}_perplexity"] = math.exp(-total / count)
    return metrics


def _by_pair(values: Tensor) -> Tensor:
    """[2P, T] with the chosen replies first -> (2, P): each reply's sum, float64 on the CPU."""
    return torch.stack(values.double().sum(1).cpu().chunk(2))


def _add(metrics: dict[str, float], name: str, margins: Sequence[float], facts: Sequence[PairFacts]) -> None:
    intervals: dict[str, Interval] = {
        f"{name}_margin": margin_of(margins, facts),
        f"{name}_accuracy": accuracy_of(margins, facts),
    }
    for key, interval in intervals.items():
        metrics[key] = interval.mean
        if math.isfinite(interval.low):  # a single pair has no interval
            metrics |= {f"{key}_low": interval.low, f"{key}_high": interval.high}
