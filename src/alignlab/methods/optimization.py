"""The optimizer and the learning-rate schedule, as values.

The learning rate is a pure function of the step, so a resumed run needs no scheduler state: `lr_factor` gives
the factor by which the peak rate is multiplied at each step (linear warm-up, then constant, linear or cosine).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from alignlab.errors import ConfigError
from alignlab.kernels.plain import is_plain


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2019) with clipping by the global norm and a schedule by step."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0  # decoupled; not applied to biases, norms and other vectors
    max_grad_norm: float | None = 1.0  # L2 norm over all trained parameters; None = no clipping
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = 0.0  # share of all steps (below 1) or a number of steps (1 and above)

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ConfigError(f"optimizer.schedule={self.schedule}: allowed are constant, linear and cosine")
        if self.warmup < 0:
            raise ConfigError(
                f"optimizer.warmup={self.warmup}: give a share of all steps (0 to 1) or a number of steps"
            )
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ConfigError(
                f"optimizer.max_grad_norm={self.max_grad_norm}: must be positive, or null for no clipping"
            )

    def build(self, parameters: Iterable[nn.Parameter], lr: float, *, loss_scaling: bool = False) -> torch.optim.AdamW:
        """The torch optimizer over `parameters`, matrices decayed and vectors not; float32 master weights only.

        `loss_scaling`: a GradScaler is in use. Fused AdamW would unscale inside its own step, after clipping.
        """
        trained = list(parameters)
        assert trained, "nothing to train"
        assert all(p.dtype in (torch.float32, torch.float64) for p in trained), "trained weights must be float32 (P23)"
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        # on a CPU the fused form is 5-7 times faster than the loop; on CUDA torch's own choice (foreach) is as fast
        fused = not loss_scaling and not is_plain("adamw") and all(p.device.type == "cpu" for p in trained)
        return torch.optim.AdamW(groups, lr=lr, betas=(self.betas[0], self.betas[1]), eps=self.eps, fused=fused or None)

    def lr_factor(self, step: int, total_steps: int) -> float:
        """The factor for the `step`-th update (0-based) of `total_steps`; the last linear or cosine step is above 0."""
        warmup_steps = self.warmup * total_steps if self.warmup < 1 else self.warmup
        if step < warmup_steps:
            return (step + 1) / (math.ceil(warmup_steps) + 1)
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        if self.schedule == "linear":
            return max(1.0 - progress, 0.0)
        if self.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
        return 1.0
