"""Many processes, one model each: Lightning's DDP without its wrapper.

The gradient of an optimizer step is summed by `Method.update`, once per step and after all micro-batches, because the
wrapper averages instead of summing and expects one backward pass per forward pass (PPO makes many). All processes
start from equal weights, since each loads or initialises them from the same seed.
"""

from lightning.pytorch.strategies import DDPStrategy, Strategy


class Replicated(DDPStrategy):
    """Process group, launcher and samplers of DDP; the module itself stays unwrapped."""

    def configure_ddp(self) -> None:
        """Nothing: gradients are summed by the method."""


def make_strategy(name: str) -> Strategy | str:
    """`auto` for one process, `ddp` for several."""
    return Replicated() if name == "ddp" else name
