"""From the records of single processes to ratios: ours over a peer, with the check that both did the same work.

A record is the JSON that a worker prints, with `round` added. Ratios are of medians over the rounds; the range is that
of the rounds, whose two runs stood next to each other.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.cases import CASES, Case

Record = dict[str, Any]
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
LOGPROB_TOLERANCE = {"fp32": 1e-3, "bf16": 2.0}
"""Of a reply's summed log-prob at the first step (about -1000): float32 sums of a thousand numbers."""
GAP_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-1}
"""Of a sampled token's stored log-prob against a plain forward pass."""


@dataclass(frozen=True)
class Comparison:
    """One row: ours and one peer on one workload."""

    workload: str
    case: str
    peer: str
    ours_tokens_per_s: float
    peer_tokens_per_s: float
    speed: float  # how many times faster
    speed_low: float
    speed_high: float
    speed_bar: float | None
    ours_growth_mib: float
    peer_growth_mib: float
    growth: float  # share of the peer's
    growth_bar: float | None
    same: bool
    check: str
    ours_over_floor: float | None
    peer_over_floor: float | None
    rounds: int


def compare(case: Case, ours: Sequence[Record], peer: Sequence[Record], floor_s: float | None) -> Comparison:
    """Rounds of ours and of the peer, in the same order."""
    is_compact = peer[0]["system"] == "trl-compact"
    workload = ours[0]["workload"]
    ratios = [mine["tokens_per_s"] / theirs["tokens_per_s"] for mine, theirs in zip(ours, peer)]
    same, check = same_work(case, ours[0], peer[0])
    bars = case.compact_speed if is_compact else case.speed
    mine, theirs = median(ours, "tokens_per_s"), median(peer, "tokens_per_s")
    my_growth, their_growth = median(ours, "growth_mib"), median(peer, "growth_mib")
    return Comparison(
        workload=workload,
        case=case.name,
        peer=peer[0]["system"],
        ours_tokens_per_s=mine,
        peer_tokens_per_s=theirs,
        speed=mine / theirs,
        speed_low=min(ratios),
        speed_high=max(ratios),
        speed_bar=bars.get(workload),
        ours_growth_mib=my_growth,
        peer_growth_mib=their_growth,
        growth=my_growth / max(their_growth, 0.1),  # a process that has not grown at all still has rounding
        growth_bar=(case.compact_growth if is_compact else case.growth) if bars.get(workload) else None,
        same=same,
        check=check,
        ours_over_floor=None if floor_s is None else median(ours, "s_per_step") / floor_s,
        peer_over_floor=None if floor_s is None else median(peer, "s_per_step") / floor_s,
        rounds=len(ratios),
    )


def compare_all(records: Sequence[Record], floors: dict[tuple[str, str], float]) -> list[Comparison]:
    """Every case with every peer that was measured; `floors`: (workload, kind) -> seconds of a step."""
    rows = []
    good = [record for record in records if "error" not in record and record["kind"] == "table"]
    for workload in dict.fromkeys(record["workload"] for record in good):
        for name, case in CASES.items():
            here = [r for r in good if r["workload"] == workload]
            ours = {r["round"]: r for r in here if r["system"] == "alignlab" and r["case"] == name}
            here = [r for r in here if r["system"] != "alignlab" and r["case"] == case.peer_case]
            floor_s = floors.get((workload, case.floor or ""))
            for system in dict.fromkeys(r["system"] for r in here):
                peer = {r["round"]: r for r in here if r["system"] == system}
                if both := sorted(ours.keys() & peer.keys()):
                    rows.append(compare(case, [ours[i] for i in both], [peer[i] for i in both], floor_s))
    return rows


def same_work(case: Case, ours: Record, peer: Record) -> tuple[bool, str]:
    """Whether both computed the same, and in what sense."""
    precision = ours["precision"]
    if "greedy" in ours:
        equal = sum(a == b for a, b in zip(ours["greedy"], peer["greedy"], strict=True))
        gap = abs(ours["greedy_logprob"] - peer["greedy_logprob"])
        is_same = equal == len(peer["greedy"]) and gap < LOGPROB_TOLERANCE[precision]
        return is_same, f"greedy replies equal: {equal} of {len(peer['greedy'])}; their log-prob to {gap:.0e}"
    if case.is_sampled:
        gaps = ours["sampler_gap"][0], peer["sampler_gap"][0]
        lengths = statistics.fmean(ours["response_length"]), statistics.fmean(peer["response_length"])
        text = f"sampled: stored log-probs to {gaps[0]:.0e} and {gaps[1]:.0e}"
        return max(gaps) < GAP_TOLERANCE[precision], f"{text}; mean reply {lengths[0]:.0f} and {lengths[1]:.0f} tokens"
    apart = furthest(ours["loss"], peer["loss"])
    text, is_same = f"losses to {apart:.0e}", apart <= LOSS_TOLERANCE[precision]
    if "chosen_logprob" in ours and "chosen_logprob" in peer:
        sides = ("chosen_logprob", "rejected_logprob")
        gap = max(abs(ours[side][0] - peer[side][0]) for side in sides)
        text, is_same = f"{text}, log-probs to {gap:.0e}", is_same and gap <= LOGPROB_TOLERANCE[precision]
    return is_same, text


def furthest(ours: Sequence[float], peer: Sequence[float]) -> float:
    """The largest difference over all steps; both must have as many."""
    return max(abs(a - b) for a, b in zip(ours, peer, strict=True))


def median(records: Sequence[Record], name: str) -> float:
    """Over the rounds."""
    return float(statistics.median(record[name] for record in records))


def as_rows(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """For a CSV."""
    return [asdict(comparison) for comparison in comparisons]
