"""What a reward model's margins say of kinds of pairs: parts of a benchmark, longer and shorter replies, styles.

Symbols: margin = r(chosen) - r(rejected), right where it is above 0, half right where it is 0. Length difference =
characters of chosen - characters of rejected. Styles (i, j): how elaborate the chosen and the rejected reply are,
from 0, the plainest; a reward model that likes elaborate ones finds i > j easy, i < j hard (Liu et al. 2024, RM-Bench).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from alignlab.errors import NonFiniteError
from alignlab.rows import PairFacts
from alignlab.statistics import Interval, clustered_interval, clustered_share_interval

Matrix = list[list[float | None]]
"""Entry [i][j]: share of right pairs among those of style i (chosen) and style j (rejected); None: no such pair."""


@dataclass(frozen=True, slots=True)
class SubsetFigures:
    """One part of the pairs: its name, its figures (of `pair_figures`), its style matrix where pairs have styles."""

    name: str
    metrics: dict[str, float]
    styles: Matrix = field(default_factory=list)


def right(margin: float) -> float:
    """1 where the chosen reply scores higher, 0.5 at a tie, else 0. NonFiniteError where neither can be said."""
    if math.isnan(margin):
        raise NonFiniteError("a pair's margin is not a number: the model's outputs are not finite (did it diverge?)")
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


def pair_figures(margins: Sequence[float], facts: Sequence[PairFacts]) -> dict[str, float]:
    """Accuracy and margin with their intervals, num_pairs, and the figures of `length_figures` and `style_figures`."""
    metrics = {"num_pairs": float(len(margins))}
    _add(metrics, "accuracy", accuracy_of(margins, facts))
    _add(metrics, "margin", margin_of(margins, facts))
    return metrics | length_figures(margins, facts) | style_figures(margins, facts)


def accuracy_of(margins: Sequence[float], facts: Sequence[PairFacts]) -> Interval:
    """Share of right pairs, ties half; Wilson's interval, over what `_independent` says."""
    rights = [right(margin) for margin in margins]
    return clustered_share_interval(rights, _independent(facts, len(rights)))


def margin_of(margins: Sequence[float], facts: Sequence[PairFacts]) -> Interval:
    """Mean margin, raw scores; a t interval, over what `_independent` says."""
    return clustered_interval(margins, _independent(facts, len(margins)))


def _independent(facts: Sequence[PairFacts], count: int) -> Sequence[int]:
    """Of each pair, the number of its cluster: its prompt's, where pairs share one; its own, where nothing is known.

    Its own, too, where all are of one prompt, as in an exact world: they tell of that prompt, and of it they are
    independent draws, unless they have styles (then they share replies).
    """
    prompts = [fact.prompt for fact in facts]
    of_one = len(set(prompts)) < 2 and all(fact.styles is None for fact in facts)
    return range(count) if of_one else prompts


def length_figures(margins: Sequence[float], facts: Sequence[PairFacts]) -> dict[str, float]:
    """How much length explains, of the labels and of the model.

    longer_accuracy: how often "the longer reply wins" is right, equal lengths half; accuracy_chosen_longer and
    accuracy_chosen_shorter: the model's on those pairs, with num_chosen_longer and num_chosen_shorter;
    margin_length_correlation: Pearson's, of margin and length difference. A figure without pairs, and a correlation
    where one of the two does not vary, is absent.
    """
    differences = [fact.chosen_length - fact.rejected_length for fact in facts]
    metrics = {"longer_accuracy": math.fsum(map(right, differences)) / len(differences)}
    for name, sign in (("longer", 1), ("shorter", -1)):
        rights = [
            right(margin) for margin, difference in zip(margins, differences, strict=True) if sign * difference > 0
        ]
        metrics[f"num_chosen_{name}"] = float(len(rights))
        if rights:
            metrics[f"accuracy_chosen_{name}"] = math.fsum(rights) / len(rights)
    correlation = _correlation(margins, [float(each) for each in differences])
    return metrics | ({} if correlation is None else {"margin_length_correlation": correlation})


def style_figures(margins: Sequence[float], facts: Sequence[PairFacts]) -> dict[str, float]:
    """easy_accuracy (chosen more elaborate), normal_accuracy (alike), hard_accuracy (rejected more elaborate).

    Each with its interval over prompts, ties half (Liu et al. 2024, where a tie is wrong). They are the means of the
    matrix's lower triangle, diagonal and upper triangle where every cell has as many pairs.
    """
    metrics: dict[str, float] = {}
    for name, sign in (("easy", 1), ("normal", 0), ("hard", -1)):
        members = [
            (right(margin), fact.prompt)
            for margin, fact in zip(margins, facts, strict=True)
            if fact.styles is not None and _sign(fact.styles[0] - fact.styles[1]) == sign
        ]
        if members:
            rights, prompts = zip(*members)
            _add(metrics, f"{name}_accuracy", clustered_share_interval(rights, prompts))
    return metrics


def style_matrix(margins: Sequence[float], facts: Sequence[PairFacts]) -> Matrix:
    """Share of right pairs by (style of chosen, style of rejected); empty where no pair has styles."""
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for margin, fact in zip(margins, facts, strict=True):
        if fact.styles is not None:
            cells[fact.styles].append(right(margin))
    size = 1 + max((max(styles) for styles in cells), default=-1)
    return [[_mean(cells.get((i, j))) for j in range(size)] for i in range(size)]


def by_subset(margins: Sequence[float], facts: Sequence[PairFacts]) -> list[SubsetFigures]:
    """Figures of each part, in the order of its first pair; pairs without a subset are in none."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, fact in enumerate(facts):
        if fact.subset is not None:
            members[fact.subset].append(index)
    found = []
    for name, index in members.items():
        own, known = [margins[i] for i in index], [facts[i] for i in index]
        found.append(SubsetFigures(name, pair_figures(own, known), style_matrix(own, known)))
    return found


def _add(metrics: dict[str, float], name: str, interval: Interval) -> None:
    metrics[name] = interval.mean
    if math.isfinite(interval.low):
        metrics |= {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _mean(values: Sequence[float] | None) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def _correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    x_mean, y_mean = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    both = math.fsum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    scale = math.fsum((x - x_mean) ** 2 for x in xs) * math.fsum((y - y_mean) ** 2 for y in ys)
    return both / math.sqrt(scale) if scale > 0 and math.isfinite(scale) else None
