"""The one rule about precision: a log-prob, a statistic or a loss is computed in at least float32.

Half precision is upcast on the way in, float64 stays float64, and autocast is off inside, whatever trains around it.
A bfloat16 log-softmax over a 512-token reply is wrong by up to a nat, which is more than most preference margins.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def upcast(x: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """`x` in at least float32: half precision (and integers) become float32, float32 and float64 stay as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def autocast_off(x: Tensor) -> torch.autocast:
    """Context in which autocast does not touch the operations on `x`'s device."""
    return torch.autocast(device_type=x.device.type, enabled=False)
