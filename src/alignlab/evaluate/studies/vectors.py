"""Gradients as vectors, and how far one is from another."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_NOTHING = 1e-12  # a gradient this much smaller than the one it is compared with is rounding of 0


def gradient_of(value: Float[Tensor, ""], parameters: Sequence[Tensor]) -> Float[Tensor, "D"]:
    """d value / d parameters, all in one vector; 0 where `value` does not depend on one."""
    parts = torch.autograd.grad(value, list(parameters), allow_unused=True, retain_graph=True)
    return flattened(parts, parameters)


def flattened(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Float[Tensor, "D"]:
    """Gradients of `parameters` in one vector; None is 0."""
    return torch.cat(
        [
            torch.zeros_like(parameter).flatten() if part is None else part.flatten()
            for part, parameter in zip(gradients, parameters, strict=True)
        ]
    )


def relative_error(actual: Float[Tensor, "D"], expected: Float[Tensor, "D"]) -> float:
    """|actual - expected| / |expected|."""
    return float((actual - expected).norm() / expected.norm())


def cosine(actual: Float[Tensor, "D"], expected: Float[Tensor, "D"]) -> float:
    """Of the angle between the two; 0 where `actual` is nothing but rounding."""
    if actual.norm() < _NOTHING * expected.norm():
        return 0.0
    return float((actual @ expected) / (actual.norm() * expected.norm()))


def misdirection(actual: Float[Tensor, "D"], expected: Float[Tensor, "D"]) -> float:
    """The relative error after the best scaling by a positive number: the sine of the angle, 1 beyond a right one."""
    along = max(cosine(actual, expected), 0.0)
    return max(1 - along**2, 0.0) ** 0.5
