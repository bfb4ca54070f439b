"""The LM head at one position per row: a product of a few rows with the largest matrix of the network."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from alignlab.kernels.precision import autocast_off, upcast
from alignlab.models.backbone import Head

_FEW_ROWS = 8
# Up to here, weight @ hidden.T is the faster order for the CPU's GEMM (MKL, 1 thread, 151936 x 512 in float32: 25 ms
# against 55 at 2 rows, 30 against 61 at 4, 54 against 82 at 8, but 108 against 89 at 12).
_HALF_CHUNK = 8192  # rows of a half-precision head that are in float32 at once


def next_logits(hidden: Float[Tensor, "B D"], head: Head) -> Float[Tensor, "B V"]:
    """The head's logits in at least float32, also under autocast (as in training).

    A half-precision head is upcast piece by piece: whole, it would be the largest tensor of the rollout.
    """
    with autocast_off(hidden):
        if upcast(head.weight) is head.weight:
            return head.logits_of(_product(hidden.to(head.weight.dtype), head.weight, head.bias))
        logits = torch.empty(len(hidden), len(head.weight), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(head.weight), _HALF_CHUNK):
            part = slice(start, start + _HALF_CHUNK)
            bias = None if head.bias is None else head.bias[part].float()
            logits[:, part] = _product(hidden.float(), head.weight[part].float(), bias)
        return head.logits_of(logits)


def _product(x: Float[Tensor, "B D"], weight: Float[Tensor, "V D"], bias: Tensor | None) -> Float[Tensor, "B V"]:
    """`linear`, in whichever order is fast."""
    if x.device.type != "cpu" or len(x) > _FEW_ROWS:
        return linear(x, weight, bias)
    logits = (weight @ x.t()).t().contiguous()
    return logits if bias is None else logits.add_(bias)
