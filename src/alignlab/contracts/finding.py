"""What a contract says: a number that was measured, what it may be, and what usually makes it wrong."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SAME = 1e-9
"""Two float64 numbers that should be equal differ by less (relative to the larger, or absolute below 1)."""


@dataclass(frozen=True)
class Finding:
    """One measured property. NaN never holds."""

    what: str  # in words, so that "... : 3.2, at most 1e-09" reads as a sentence
    amount: float
    allowed: float
    usual_cause: str
    must_differ: bool = False  # a property that is declared absent: the amount must be *more* than `allowed`

    @property
    def holds(self) -> bool:
        """Whether the amount is what it may be."""
        return self.amount > self.allowed if self.must_differ else self.amount <= self.allowed

    @property
    def strain(self) -> float:
        """How near it comes to its limit: above 1 it does not hold."""
        tiny = 1e-300
        return self.allowed / max(self.amount, tiny) if self.must_differ else self.amount / max(self.allowed, tiny)

    @property
    def limit(self) -> str:
        """`at most 1e-09`"""
        return f"{'more than' if self.must_differ else 'at most'} {self.allowed:.2g}"


@dataclass(frozen=True)
class Violation:
    """A finding that does not hold, with the contract that it breaks."""

    contract: str
    what: str
    amount: float
    allowed: str  # `at most 1e-09`
    usual_cause: str

    def __str__(self) -> str:
        return f"{self.contract}: {self.what}: {self.amount:.3g}, {self.allowed}. Usual cause: {self.usual_cause}"


def difference(x: Tensor, other: Tensor) -> float:
    """Largest |x - other|, relative where `other` is larger than 1; infinite where one of them is not finite."""
    if x.shape != other.shape or not (torch.isfinite(x).all() and torch.isfinite(other).all()):
        return math.inf
    if x.numel() == 0:
        return 0.0
    x, other = x.detach().double(), other.detach().double()
    return ((x - other).abs().max() / other.abs().max().clamp(min=1.0)).item()


def declared(
    claim: bool, what: str, amount: float, *, holds_not: str, holds_though_denied: str, allowed: float = SAME
) -> Finding:
    """A finding for a property that a loss claims (then the amount must be nothing) or denies (then it must not be)."""
    cause = holds_not if claim else holds_though_denied
    return Finding(what, amount, allowed, cause, must_differ=not claim)


def remark(what: str) -> Finding:
    """Something to know that cannot be wrong."""
    return Finding(what, 0.0, 0.0, "")
