"""Each idea that makes ours fast, and how it is turned off, so that it can be measured alone (`--ablate`).

A switch is an entry in SWITCHES: config overrides, or a patch put on in the measuring process.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import CASES

OFFLINE = ("sft", "reward", "dpo", "dpo_live", "dpo_lora")
SAMPLED = ("ppo", "ppo_shared")  # not ppo_lora: what it adds is a row of its own
Patch = Callable[[], None]


@dataclass(frozen=True)
class Switch:
    """One idea, what it matters to, and what its absence is."""

    name: str
    cases: Sequence[str]
    off: str  # what is done instead, in words
    overrides: tuple[str, ...] = ()
    patch: Patch | None = None
    is_there: Callable[[], bool] = lambda: True  # False: this version of alignlab has no such switch

    def turn_off(self) -> list[str]:
        """Put the patch on; the overrides to add."""
        if self.patch is not None:
            self.patch()
        return list(self.overrides)


# -- is it there? ----------------------------------------------------------------------------------------------------
def has_setting(path: str) -> Callable[[], bool]:
    """Whether the composed config has this key."""

    group, key = path.split(".")
    return lambda: key in _usual_config()[group]


@functools.cache
def _usual_config() -> Any:
    import alignlab

    return alignlab.compose(["method=sft"])


def _attribute(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return None


# -- patches ---------------------------------------------------------------------------------------------------------
def looped_gae() -> None:
    """One Python step per token."""
    from alignlab.methods import ppo

    ppo.gae = gae_by_loop  # pyright: ignore[reportPrivateImportUsage]


def gae_by_loop(rewards: Any, values: Any, mask: Any, *, gamma: float, gae_lambda: float) -> tuple[Any, Any]:
    """`kernels.advantages.gae` without bootstrap, from the last token to the first."""
    import torch

    advantages = torch.zeros_like(values)
    carried, following = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        counts = mask[:, t]
        now = rewards[:, t] + gamma * following - values[:, t] + gamma * gae_lambda * carried
        carried, following = torch.where(counts, now, carried), torch.where(counts, values[:, t], following)
        advantages[:, t] = torch.where(counts, now, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def plain_adamw() -> None:
    """torch's own choice of optimizer loop instead of the fused one."""
    import torch

    build = torch.optim.AdamW.__init__

    def without_fusion(self: Any, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **{**named, "fused": None})

    torch.optim.AdamW.__init__ = without_fusion


def has_fused_gelu() -> bool:
    """Whether networks are loaded with GELU in one operation."""
    return _attribute("alignlab.models.loading", "with_fused_gelu") is not None


def plain_gelu() -> None:
    """transformers' own `gelu_new`, in eight elementwise operations."""
    loading = importlib.import_module("alignlab.models.loading")
    setattr(loading, "with_fused_gelu", lambda model: model)  # noqa: B010 - it may not be there


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
        Switch(
            "fused_gelu",
            (*OFFLINE, *SAMPLED),
            "transformers' gelu_new",
            patch=plain_gelu,
            is_there=has_fused_gelu,
        ),
        Switch("fused_adamw", ("sft", "dpo", *SAMPLED), "torch's foreach loop", patch=plain_adamw),
        Switch("gae_scan", SAMPLED, "a Python loop over tokens", patch=looped_gae),
    )
}
assert all(case in CASES for switch in SWITCHES.values() for case in switch.cases)
