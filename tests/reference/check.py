"""How a function is held to its twin: values and gradients, and the tolerances of the whole suite."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TOLERANCE = {  # dtype of the result: (relative, absolute)
    torch.float64: (1e-9, 1e-10),
    torch.float32: (2e-4, 2e-5),
    torch.bfloat16: (2e-2, 1e-2),  # only gradients to bfloat16 inputs are ever rounded to bfloat16
}
DTYPES = tuple(TOLERANCE)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal within the tolerance of `actual`'s dtype."""
    rtol, atol = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=atol)


def assert_like_twin(
    function: Callable[..., Sequence[Tensor]],
    twin: Callable[..., Sequence[Tensor]],
    *inputs: Tensor,
    dtype: torch.dtype,
) -> None:
    """Same outputs, and same gradients of a random combination of them, from inputs rounded to `dtype`.

    The twin gets the rounded inputs in float64. Outputs must be at least float32: half precision is upcast.
    """
    ours = [x.detach().to(dtype).requires_grad_() for x in inputs]
    theirs = [x.detach().double().requires_grad_() for x in ours]
    outputs, expected = function(*ours), twin(*theirs)
    assert len(outputs) == len(expected)
    generator = torch.Generator().manual_seed(0)
    total, expected_total = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for output, reference in zip(outputs, expected, strict=True):
        assert output.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(output, reference)
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        total, expected_total = total + (output * weights).sum(), expected_total + (reference * weights).sum()
    gradients = torch.autograd.grad(total, ours, allow_unused=True)
    expected_gradients = torch.autograd.grad(expected_total, theirs, allow_unused=True)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        if gradient is None or reference is None:
            assert gradient is None or not gradient.any()
            assert reference is None or not reference.any()
        else:
            assert gradient.dtype == dtype
            assert_close(gradient, reference)
