"""How cost grows: one axis of a small workload is stretched at a time, everything else held."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sweep:
    """One axis: a field of the workload, its values, and what is run on them."""

    name: str
    field: str
    values: Sequence[float]
    case: str
    has_peer: bool = True
    also: tuple[str, ...] = ()  # further changes of the workload


SWEEPS = (
    Sweep("length of prompts and replies, times 20-200 and about 100", "length", (0.5, 1, 2, 4), "dpo"),
    Sweep("vocabulary", "vocabulary", (2048, 8192, 32768, 131072), "dpo", also=("pairs=2",)),
    Sweep("pairs in a batch", "pairs", (1, 2, 4, 8, 16), "dpo"),
    Sweep("LoRA rank", "rank", (4, 16, 64), "dpo_lora"),
    Sweep("replies to a prompt", "group", (2, 4, 8, 16), "rloo", has_peer=False),
)
