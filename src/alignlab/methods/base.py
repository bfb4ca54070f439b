"""What all methods share: one exact optimizer step, however the batch is cut.

A training batch is everything that one optimizer step sees on this process. `update` cuts it into micro-batches,
weighs each by its share of the *global* count (tokens for SFT and PPO, pairs for DPO and reward models), sums the
gradients over micro-batches and processes, checks that they are finite, clips, and steps. So 1x8, 8x1 and two
processes give the same gradient up to rounding: the mean over the step's tokens is the mean over all of them.
Lightning's own accumulation averages micro-batch means, which is another number (PITFALLS P18-P20); that is why
optimization is manual here.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from alignlab.errors import ConfigError, NonFiniteError
from alignlab.losses.base import LossOutput
from alignlab.methods.optimization import AdamW
from alignlab.methods.parts import Divisible, in_parts
from alignlab.models.policy import Policy, PolicyOutput

MOST_SKIPPED = 20
"""Steps in a row that a float16 loss scaler may skip before the run is given up."""


class Method(L.LightningModule):
    """A way to train: subclass, say what is trained and how one micro-batch is scored.

    `completed_steps` counts training batches, which is also the data position: batch k of a run is a pure
    function of (seed, k).
    """

    row_type: ClassVar[type]  # what the data room must yield
    produces: ClassVar[Literal["policy", "reward_model"]]
    best_metric: ClassVar[tuple[str, Literal["min", "max"]]]  # which checkpoint is `best`, unless told otherwise

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        definer = {name: next(each for each in cls.__mro__ if name in vars(each)) for name in ("compute", "terms")}
        if cls.__mro__.index(definer["compute"]) < cls.__mro__.index(definer["terms"]):
            cls.terms = Method.terms  # whoever says what its loss is has said all of it; a parent's terms are not it

    def __init__(self, *, lr: float, optimizer: AdamW, epochs: float, max_steps: int | None) -> None:
        super().__init__()
        if lr < 0:
            raise ConfigError(f"method.lr={lr}: must not be negative")
        if epochs < 0 or (max_steps is not None and max_steps < 0):
            raise ConfigError(f"method.epochs={epochs}, method.max_steps={max_steps}: must not be negative")
        self.automatic_optimization = False
        self.lr = lr
        self.optimizer = optimizer
        self.epochs = epochs
        self.max_steps = max_steps
        self.seed = 0  # set by `plan`
        self.total_steps = 0
        self.completed_steps = 0
        self.micro_batch_size: int | None = None
        self.loss_in_chunks = True
        self.log_every = 1
        self.seen_tokens = 0  # real tokens of this process's training batches, for throughput
        self.validation_metrics: dict[str, float] = {}
        self._totals: dict[str, Tensor] = {}
        self._skipped = 0  # steps in a row whose gradient was not finite

    # -- what a subclass says ------------------------------------------------------------------------------------
    def trained_modules(self) -> Iterable[nn.Module]:
        """The modules whose parameters (those that require gradients) are trained and saved."""
        raise TypeError(f"{type(self).__name__} must say which modules it trains")

    def count(self, batch: Any) -> Tensor:
        """The denominator of `compute`'s mean: scored tokens, or the weight of the pairs."""
        raise TypeError(f"{type(self).__name__} must say what its loss is a mean over")

    def compute(self, batch: Any) -> LossOutput:
        """Loss and metrics of one micro-batch, each a mean over `count(batch)`."""
        raise TypeError(f"{type(self).__name__} must say what its loss is")

    def terms(self, batch: Any) -> Iterable[LossOutput]:
        """What `compute` is the sum of. Each is differentiated before the next is asked for, so that networks with no
        weight in common need not hold their activations at the same time. Who overrides it overrides `compute` too."""
        yield self.compute(batch)

    def before_training(self, data: Any) -> None:
        """Called once, before the first step and before a checkpoint is restored (weights are the starting ones)."""

    def live_reference(self) -> Any:
        """The model that training started from, as a callable that scores any sequences; None where there is none."""
        return None

    def after_training(self, data: Any) -> None:
        """Called once, after the last step."""

    def method_state(self) -> dict[str, Any]:
        """State beyond weights and optimizer that a resumed run needs (controllers); plain types."""
        return {}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Undo of `method_state`."""

    # -- plan and optimizer --------------------------------------------------------------------------------------
    def num_steps(self, steps_per_epoch: int | None) -> int:
        """Training batches of the whole run; `steps_per_epoch` is None where there are no epochs."""
        if steps_per_epoch is None:
            if self.max_steps is None:
                raise ConfigError("the source makes fresh rows at each step: set method.max_steps")
            return self.max_steps
        by_epochs = round(self.epochs * steps_per_epoch)
        if self.max_steps is None and self.epochs > 0 and by_epochs == 0:
            raise ConfigError(
                f"method.epochs={self.epochs} of {steps_per_epoch} steps is less than one step; "
                "raise it, or set method.max_steps"
            )
        return by_epochs if self.max_steps is None else self.max_steps

    def plan(
        self,
        *,
        seed: int,
        total_steps: int,
        micro_batch_size: int | None = None,
        loss_in_chunks: bool = True,
        log_every: int = 1,
    ) -> None:
        """Fix what the constructor could not know."""
        self.seed, self.total_steps = seed, total_steps
        self.micro_batch_size, self.loss_in_chunks, self.log_every = micro_batch_size, loss_in_chunks, log_every

    def trained_parameters(self) -> list[nn.Parameter]:
        """All parameters that are optimized, in a fixed order, each once."""
        unique = {id(p): p for module in self.trained_modules() for p in module.parameters() if p.requires_grad}
        return list(unique.values())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer.build(self.trained_parameters(), self.lr, loss_scaling=self._uses_loss_scaling)

    def on_fit_start(self) -> None:
        self.before_training(getattr(self.trainer, "datamodule"))  # noqa: B009 - Lightning sets it undeclared

    def on_train_start(self) -> None:
        # Lightning leaves a loaded model in eval mode; dropout is meant to be on where the config sets it (P25)
        for module in self.trained_modules():
            module.train()

    # -- one optimizer step --------------------------------------------------------------------------------------
    def training_step(self, batch: Any, batch_idx: int) -> None:
        micro_batches = list(batch.split(self.micro_batch_size or max(len(batch.rows), 1)))
        metrics = self.update(micro_batches, self.terms, self.count, lr_step=self.completed_steps)
        self.seen_tokens += int(batch.sequences.attention_mask.sum())
        self.finish_step(metrics)

    def update(
        self,
        micro_batches: Sequence[Any],
        terms: Callable[[Any], Iterable[LossOutput]],
        count: Callable[[Any], Tensor],
        *,
        lr_step: int,
        lr_scale: float = 1.0,
    ) -> dict[str, Tensor]:
        """One optimizer step on the exact mean over all micro-batches of all processes; returns mean metrics.

        `terms` and `count` are those of this method, or take their place.
        """
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        lr = self.lr * lr_scale * self.optimizer.lr_factor(lr_step, self.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        counts = [count(micro).to(self.device, torch.float64) for micro in micro_batches]
        local = torch.stack(counts).sum() if counts else torch.zeros((), device=self.device, dtype=torch.float64)
        total = self.sum_over_processes(local)
        total = torch.where(total > 0, total, 1.0)  # a sum of weights may lie below 1; nothing to count is no 0 / 0
        metrics: dict[str, Tensor] = {}
        suspects: list[Any] = []
        for micro, own in zip(micro_batches, counts, strict=True):
            share, is_finite = own / total, True
            for output in terms(micro):
                is_finite &= bool(torch.isfinite(output.loss))
                self.manual_backward(output.loss * share.to(output.loss.dtype))
                for name, value in {"loss": output.loss.detach(), **output.metrics}.items():
                    metrics[name] = metrics.get(name, 0.0) + value.double() * share
            suspects += [] if is_finite else [micro]
        self._refuse_non_finite(suspects)
        self._sum_gradients()
        optimizer.step()  # unscales under 16-mixed, then calls on_before_optimizer_step
        optimizer.zero_grad(set_to_none=True)
        assert metrics, "every process has at least one micro-batch"
        names = sorted(metrics)
        summed = self.sum_over_processes(torch.stack([metrics[name] for name in names]))
        return {**dict(zip(names, summed, strict=True)), "lr": torch.tensor(lr), "grad_norm": self._grad_norm}

    def scored(
        self,
        policy: Policy,
        batch: Divisible,
        loss: Callable[[Any, PolicyOutput], LossOutput],
        *,
        is_separable: bool = True,
        **asked: Any,
    ) -> tuple[LossOutput, Tensor | None]:
        """`loss(batch, policy(batch))`, and the values if they were asked for.

        A loss that is a mean over what `count` counts is taken part by part inside the output head, which is the same
        number for less work, unless `is_separable` or hardware.loss_in_chunks forbids it.
        """
        if is_separable and self.loss_in_chunks and torch.is_grad_enabled():
            return in_parts(policy, batch, loss, self.count, **asked)
        out = policy(batch.sequences, **asked)
        return loss(batch, out), out.values

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients are whole and unscaled here: clip them, and refuse to step on a NaN."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        limit = self.optimizer.max_grad_norm
        self._grad_norm = torch.nn.utils.clip_grad_norm_(parameters, limit if limit is not None else float("inf"))
        is_finite = bool(torch.isfinite(self._grad_norm))
        self._skipped = 0 if is_finite else self._skipped + 1
        allowed = MOST_SKIPPED if self._uses_loss_scaling else 0  # a GradScaler skips a step and lowers its scale
        if self._skipped > allowed:
            raise NonFiniteError(
                f"step {self.completed_steps + 1}: the gradient norm is {float(self._grad_norm)}; the weights were not "
                "touched. Lower method.lr, check the data of this step, or train in hardware.precision=32"
            )

    @property
    def _uses_loss_scaling(self) -> bool:
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def _refuse_non_finite(self, suspects: list[Any]) -> None:
        """Raise on every process if any has a micro-batch whose loss is not finite; the weights are still whole."""
        found = self.sum_over_processes(torch.tensor(float(len(suspects)), device=self.device))
        if not found > 0:
            return
        rows = [int(row) for micro in suspects for row in micro.rows]
        where = f"data rows {rows[:16]}" if rows else "the rows of another process"
        raise NonFiniteError(
            f"step {self.completed_steps + 1}: the loss is not finite on {where}; the weights were not touched. "
            "Lower method.lr, check these rows, or train in hardware.precision=32"
        )

    # -- many processes ------------------------------------------------------------------------------------------
    def sum_over_processes(self, x: Tensor) -> Tensor:
        """`x` summed over all processes (a copy); `x` itself on one process."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return x
        x = x.detach().clone()
        dist.all_reduce(x)
        return x

    def total_tokens(self) -> int:
        """Real tokens of all training batches so far, over all processes."""
        return int(self.sum_over_processes(torch.tensor(self.seen_tokens, device=self.device)))

    def _sum_gradients(self) -> None:
        """Every process gets the sum of all gradients: each loss was already divided by the global count."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return
        for parameter in self.trained_parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    # -- what is logged ------------------------------------------------------------------------------------------
    def finish_step(self, metrics: dict[str, Tensor]) -> None:
        """Count the step and write its metrics when it is their turn."""
        self.completed_steps += 1
        if self.completed_steps % self.log_every == 0 or self.completed_steps == self.total_steps:
            self.write_metrics({f"train/{name}": float(value) for name, value in metrics.items()})

    def write_metrics(self, metrics: dict[str, float]) -> None:
        """Hand `metrics` to every logger, at the number of completed steps."""
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.completed_steps)

    # -- validation and test: exact means over the whole split ----------------------------------------------------
    def evaluate_batch(self, batch: Any, split: str) -> dict[str, Tensor]:
        """Sums over this batch, by name, with their denominators under `count`; see `reduce_evaluation`."""
        raise TypeError(f"{type(self).__name__} must say what it measures on held-out data")

    def reduce_evaluation(self, totals: dict[str, float]) -> dict[str, float]:
        """Metrics from the sums of `evaluate_batch` over the split; the default divides each by `count`."""
        count = totals["count"] or 1.0
        return {name: value / count for name, value in totals.items() if name != "count"}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._add(self.evaluate_batch(batch, "validation"))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._add(self.evaluate_batch(batch, "test"))

    def on_validation_epoch_end(self) -> None:
        self.validation_metrics = self._reduced("validation")
        self.write_metrics(self.validation_metrics)

    def on_test_epoch_end(self) -> None:
        self.test_metrics = self._reduced("test")

    def _add(self, sums: dict[str, Tensor]) -> None:
        for name, value in sums.items():
            self._totals[name] = self._totals.get(name, 0.0) + value.detach().double()

    def _reduced(self, split: str) -> dict[str, float]:
        totals = {name: float(value) for name, value in self._totals.items()}
        self._totals = {}
        if dist.is_available() and dist.is_initialized():  # a process may have had no rows of a small split
            everyone: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, totals)
            names = sorted({name for own in everyone for name in own})
            totals = {name: float(sum(own.get(name, 0.0) for own in everyone)) for name in names}
        return {f"{split}/{name}": value for name, value in self.reduce_evaluation(totals).items()} if totals else {}
