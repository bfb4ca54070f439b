"""Derivatives, precision and range: the gradient is the derivative, and numbers far out stay finite."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from alignlab.contracts.finding import Finding, difference
from alignlab.contracts.subjects import Evaluated, Rows, Subject, as_dtype

_STEP = 1e-5  # of a log-prob in nats; the error of a central difference is about its square
_GRADCHECK = 1e-6
_FLOAT32 = 1e-6


def gradcheck(subject: Subject) -> Iterator[Finding]:
    """The gradient is the slope, by central differences in float64.

    Running state stands still. What comes in float64 also comes out as float64.
    """
    rows = subject.draw(5, seed=3)
    loss = subject.still(rows)
    found = subject.evaluate(rows, loss=loss)
    scale = max([x.abs().max().item() for x in found.gradients.values()] + [1e-12])
    largest = 0.0
    for name, gradient in found.gradients.items():
        largest = max(largest, difference(gradient / scale, _slopes(subject, loss, rows, name) / scale))
    yield Finding(
        "the gradient differs from the slope measured in float64, relative to the largest, by",
        largest,
        _GRADCHECK,
        "a cast to float32 inside the loss (float(), .to(torch.float32)), detach() or item() on what the loss depends "
        "on (a baseline without gradient belongs into a buffer that eval mode leaves alone), or an operation in place",
    )
    yield Finding(
        "bits lost when log-probs come in float64",
        {torch.float64: 0.0, torch.float32: 32.0}.get(found.loss.dtype, 48.0),
        0.0,
        "a cast inside the loss; kernels.precision.upcast lifts half precision and leaves float64 alone",
    )


def precision(subject: Subject) -> Iterator[Finding]:
    """Half precision and autocast outside leave float32 inside."""
    rows = as_dtype(as_dtype(subject.draw(8, seed=4), torch.bfloat16), torch.float32)  # the same numbers in both types
    exact = subject.evaluate(rows)
    half = subject.evaluate(as_dtype(rows, torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = subject.evaluate(rows)
    for what, found in (("bfloat16 log-probs", half), ("bfloat16 autocast around it", autocast)):
        yield Finding(
            f"{what} change the loss by",
            difference(found.loss, exact.loss) if found.loss.dtype == torch.float32 else math.inf,
            _FLOAT32,
            "forward was overridden without autocast_off and upcast (kernels.precision): the loss is then computed in "
            "8 bits of precision",
        )


def finite(subject: Subject) -> Iterator[Finding]:
    """Finite at margins of +-1e4 and at probability 1, gradients too.

    In float32; a metric may be infinite, but not NaN.
    """
    for where, rows in subject.extremes():
        bad = _bad_numbers(subject.evaluate(as_dtype(rows, torch.float32)))
        yield Finding(
            f"numbers that are not finite at {where}{' (' + ', '.join(bad) + ')' if bad else ''}",
            float(len(bad)),
            0.0,
            "exp overflows above 88 in float32, log(sigmoid(x)) is log(0) below -104, log(1 - exp(x)) at x = 0: use "
            "logsigmoid, softplus, log1p and expm1, or clamp the exponent and state the bound",
        )


def _slopes(subject: Subject, loss: Any, rows: Rows, name: str) -> Tensor:
    """d loss / d rows[name] by central differences, one number at a time."""
    slopes = torch.zeros_like(rows[name])
    for place in range(slopes.numel()):
        values = []
        for sign in (1, -1):
            moved = rows[name].clone()
            moved.view(-1)[place] += sign * _STEP
            values.append(subject.call(loss, {**rows, name: moved}).loss.detach())
        slopes.view(-1)[place] = (values[0] - values[1]) / (2 * _STEP)
    return slopes


def _bad_numbers(found: Evaluated) -> list[str]:
    """What is not finite; a metric may be infinite (a KL is, where the policies have nothing in common)."""
    numbers = {"loss": found.loss, **{f"gradient of {name}": x for name, x in found.gradients.items()}}
    bad = [name for name, x in numbers.items() if not torch.isfinite(x).all()]
    return bad + [f"metric {name}" for name, x in found.metrics.items() if torch.isnan(x).any()]
