"""A loss under test with rows to feed it: what the contracts that hold for every kind of loss need to know of it.

Rows are a dict of tensors whose first axis is the row (a pair, a reply, a sequence), drawn in float64 from a generator
of their own: the global random state is left alone.
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from alignlab.losses.base import LossOutput, Normalizer

Rows = dict[str, Tensor]

EXTREME = 1e4
"""The size of a log-ratio or a score at which losses and gradients must still be finite."""


class Evaluated(NamedTuple):
    """A loss with the gradient of each differentiable input; metrics as they came."""

    loss: Tensor
    gradients: Rows
    metrics: dict[str, Tensor]


class Subject(ABC):
    """One loss and its kind: how rows for it are drawn, and how it is called on them."""

    differentiable: ClassVar[tuple[str, ...]]
    """Names of the rows' tensors that a gradient flows to."""

    def __init__(self, loss: nn.Module) -> None:
        self.loss: Any = loss

    @property
    def is_coupled(self) -> bool:
        """Whether the loss says that a row's loss depends on the other rows of its batch."""
        return bool(getattr(self.loss, "batch_coupled", False))

    def fresh(self) -> Any:
        """A copy as training starts with it: running state in buffers moves, and the loss itself is never touched."""
        return copy.deepcopy(self.loss).train()

    def still(self, rows: Rows) -> Any:
        """A copy in eval mode, whose running state stands still: a function of `rows` and nothing else."""
        return copy.deepcopy(self.loss).eval()

    @abstractmethod
    def draw(self, num_rows: int, *, seed: int = 0) -> Rows:
        """Ordinary rows, float64."""

    @abstractmethod
    def call(self, loss: Any, rows: Rows, *, normalizer: Normalizer = None) -> LossOutput:
        """`loss` on `rows`; only losses over tokens take a normalizer."""

    @abstractmethod
    def extremes(self) -> Iterable[tuple[str, Rows]]:
        """Rows far out, with a word for each: margins of +-EXTREME and what a collapsed policy gives."""

    def unusual(self) -> Iterable[Rows]:
        """Batches that a careless loss treats specially: one row, all right, all wrong."""
        return [self.draw(1, seed=5)]

    def is_said(self, name: str) -> bool:
        """Whether the loss or a class of its own sets the attribute, rather than one of alignlab's abstract parents."""
        classes = [cls for cls in type(self.loss).__mro__ if not inspect.isabstract(cls) and cls is not nn.Module]
        return name in vars(self.loss) or any(name in vars(cls) for cls in classes)

    def count(self, rows: Rows) -> float:
        """What the loss is a mean over: rows, or counted tokens."""
        return float(num_rows(rows))

    def evaluate(self, rows: Rows, *, loss: Any = None, normalizer: Normalizer = None) -> Evaluated:
        """Value, gradients and metrics on `rows`, by a fresh copy unless a loss is given."""
        leaves = {
            name: x.detach().clone().requires_grad_() if name in self.differentiable else x for name, x in rows.items()
        }
        value, metrics = self.call(self.fresh() if loss is None else loss, leaves, normalizer=normalizer)
        wanted = [leaves[name] for name in self.differentiable if name in leaves]
        found = torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad else [None] * len(wanted)
        gradients = {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for name, leaf, gradient in zip([n for n in self.differentiable if n in leaves], wanted, found, strict=True)
        }
        return Evaluated(value.detach(), gradients, {name: torch.as_tensor(x) for name, x in metrics.items()})


def num_rows(rows: Rows) -> int:
    """The length of the first axis."""
    return len(next(iter(rows.values())))


def take(rows: Rows, index: Tensor | slice) -> Rows:
    """Some of the rows."""
    return {name: x[index] for name, x in rows.items()}


def joined(parts: Iterable[Rows]) -> Rows:
    """The rows of all parts, in order."""
    parts = list(parts)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def split(rows: Rows, sizes: Iterable[int]) -> Iterator[Rows]:
    """Consecutive parts of these sizes."""
    start = 0
    for size in sizes:
        yield take(rows, slice(start, start + size))
        start += size


def as_dtype(rows: Rows, dtype: torch.dtype) -> Rows:
    """Floating tensors in `dtype`, the others as they are."""
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in rows.items()}


def uniform(generator: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Float64 numbers between `low` and `high`."""
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)
