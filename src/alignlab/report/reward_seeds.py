"""The evaluations of one reward model's seeds as one: what tables and figures of several seeds show."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from alignlab.report.summary import over_seeds

Content = Mapping[str, Any]  # of eval/reward.json; {} where a run has none
Matrix = list[list[float | None]]


def content_over_seeds(contents: Sequence[Content]) -> Content:
    """Means over seeds of figures, of parts (matched by name) and of styles, with t intervals over seeds.

    Margins are those of all seeds together, and so are the pairs in each bin of the calibration. What a seed lacks is
    left out; a single content is given back as it is.
    """
    if len(contents) == 1 or not all(contents):
        return contents[0]
    return {
        **contents[0],
        "metrics": over_seeds([each["metrics"] for each in contents]),
        "margins": [margin for each in contents for margin in each.get("margins", [])],
        "calibration": _pooled([each.get("calibration", []) for each in contents]),
        "subsets": _parts([{part["name"]: part for part in each["subsets"]} for each in contents]),
        "styles": _mean_matrix([each["styles"] for each in contents]),
    }


def _parts(of_seeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The parts that every seed has."""
    shared = [name for name in of_seeds[0] if all(name in parts for parts in of_seeds)]
    return [
        {
            "name": name,
            "metrics": over_seeds([parts[name]["metrics"] for parts in of_seeds]),
            "styles": _mean_matrix([parts[name]["styles"] for parts in of_seeds]),
        }
        for name in shared
    ]


def _mean_matrix(matrices: Sequence[Matrix]) -> Matrix:
    """Cell by cell; None where a seed has none. Of matrices of different sizes (other pairs) nothing."""
    if any(len(matrix) != len(matrices[0]) for matrix in matrices):
        return []
    return [[_mean(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def _mean(cells: Sequence[float | None]) -> float | None:
    known = [cell for cell in cells if cell is not None]
    return math.fsum(known) / len(known) if len(known) == len(cells) else None


def _pooled(of_seeds: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The bins of all seeds' pairs together; those of the first seed where others have other bins."""
    if any([_edges(each) for each in bins] != [_edges(each) for each in of_seeds[0]] for bins in of_seeds):
        return of_seeds[0]
    return [_pooled_bin(bins) for bins in zip(*of_seeds, strict=True)]


def _pooled_bin(bins: Sequence[dict[str, Any]]) -> dict[str, Any]:
    filled = [each for each in bins if each["count"]]
    count = sum(each["count"] for each in filled)

    def mean(name: str) -> float | None:
        return math.fsum(each["count"] * each[name] for each in filled) / count if count else None

    return {**bins[0], "count": count, "confidence": mean("confidence"), "accuracy": mean("accuracy")}


def _edges(of: Mapping[str, Any]) -> tuple[Any, Any]:
    return of["low"], of["high"]
