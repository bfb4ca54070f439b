"""Each idea that makes ours fast, and how it is turned off, so that it can be measured alone (`--ablate`).

A switch is an entry in SWITCHES: the config overrides that take the idea away.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import CASES

OFFLINE = ("sft", "reward", "dpo", "dpo_live", "dpo_lora")
SAMPLED = ("ppo", "ppo_shared")  # not ppo_lora: what it adds is a row of its own


@dataclass(frozen=True)
class Switch:
    """One idea, what it matters to, and what its absence is."""

    name: str
    cases: Sequence[str]
    off: str  # what is done instead, in words
    overrides: tuple[str, ...]
    is_there: Callable[[], bool] = lambda: True  # False: this version of alignlab has no such switch


# -- is it there? ----------------------------------------------------------------------------------------------------
def has_setting(path: str) -> Callable[[], bool]:
    """Whether the composed config has this key."""

    group, key = path.split(".")
    return lambda: key in _usual_config()[group]


@functools.cache
def _usual_config() -> Any:
    import alignlab

    return alignlab.compose(["method=sft"])


def plain(name: str, form: str, cases: Sequence[str], off: str) -> Switch:
    """A switch that hardware.plain has."""
    return Switch(name, cases, off, (f"hardware.plain=[{form}]",), has_setting("hardware.plain"))


SWITCHES = {
    switch.name: switch
    for switch in (
        Switch(
            "shared_prompts",
            ("reward", "dpo", "dpo_live", "dpo_lora"),
            "packed rows, each with its own copy of the prompt",
            ("hardware.layout=packed",),
            is_there=has_setting("hardware.layout"),
        ),
        Switch(
            "packing",
            (*OFFLINE, *SAMPLED),
            "padded rectangles",
            ("hardware.layout=padded",),
            is_there=has_setting("hardware.layout"),
        ),
        Switch(
            "loss_in_chunks",
            (*OFFLINE[:1], *OFFLINE[2:], *SAMPLED),
            "log-probs first, then the loss; logits made again in the backward pass",
            ("hardware.loss_in_chunks=false",),
            is_there=has_setting("hardware.loss_in_chunks"),
        ),
        Switch("reference_cache", ("dpo",), "a frozen copy is run at each step", ("method.reference=copy",)),
        Switch(
            "reference_cache_lora", ("dpo_lora",), "the adapter is turned off, at each step", ("method.reference=auto",)
        ),
        Switch(
            "decoder",
            (*SAMPLED, "rollout"),
            "the decode loop that works for every network: transformers' body and its growing cache",
            ("hardware.decoder=general",),
            is_there=has_setting("hardware.decoder"),
        ),
        plain("fused_gelu", "gelu", (*OFFLINE, *SAMPLED), "transformers' gelu_new"),
        plain("fused_adamw", "adamw", ("sft", "dpo", *SAMPLED), "torch's foreach loop"),
        plain(
            "tied_gradient", "tied_embedding", ("sft", "dpo", *SAMPLED), "two gradients of the embedding matrix, added"
        ),
        plain(
            "gradient_room",
            "room_for_gradient",
            ("reward", "ppo"),
            "freed memory stays with the process",
        ),
        plain("gae_scan", "gae", SAMPLED, "a Python loop over tokens"),
    )
}
assert all(case in CASES for switch in SWITCHES.values() for case in switch.cases)
