"""Statistics over the places that count (mask True). What stands elsewhere, NaN included, changes nothing.

Nothing counted is not an error: a sum, a mean and a variance of nothing are 0.0. All are differentiable.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignlab.kernels.precision import autocast_off, upcast


def masked_sum(x: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"], *, dim: int | None = None) -> Tensor:
    """Sum over the counted places, of everything or along `dim`; 0.0 where nothing counts."""
    with autocast_off(x):
        kept = torch.where(mask, upcast(x), 0.0)
        return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"], *, dim: int | None = None) -> Tensor:
    """Mean over the counted places, of everything or along `dim`; 0.0 where nothing counts."""
    counted = mask.expand_as(x)
    count = counted.sum() if dim is None else counted.sum(dim)
    return masked_sum(x, counted, dim=dim) / count.clamp(min=1)


def masked_var(x: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"]) -> Float[Tensor, ""]:
    """Unbiased variance (n - 1) of the counted places; 0.0 where fewer than two count."""
    counted = mask.expand_as(x)
    centered = torch.where(counted, upcast(x) - masked_mean(x, counted), 0.0)
    with autocast_off(x):
        return centered.square().sum() / (counted.sum() - 1).clamp(min=1)


def masked_whiten(
    x: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"], *, shift_mean: bool = True
) -> Float[Tensor, "*axes"]:
    """(x - mean) / std over the counted places, 0.0 elsewhere; `shift_mean=False`: (x - mean) / std + mean.

    std is the unbiased one. A single value, or values that are equal up to rounding, have no spread to divide by: they
    come out as 0.0 (or as their mean). Rewards are whitened with `shift_mean=False`, so that their sign survives.
    """
    counted = mask.expand_as(x)
    mean, var = masked_mean(x, counted), masked_var(x, counted)
    kept = torch.where(counted, upcast(x), mean)
    # below this the spread is what rounding made of a constant, and dividing by it would blow noise up to size 1
    rounding = 8 * torch.finfo(kept.dtype).eps * kept.detach().abs().amax() if kept.numel() else var.detach()
    flat = var.detach() <= rounding.square()
    scale = torch.where(flat, 0.0, torch.where(flat, 1.0, var).rsqrt())
    whitened = (kept - mean) * scale + (0.0 if shift_mean else mean)
    return torch.where(counted, whitened, 0.0)
