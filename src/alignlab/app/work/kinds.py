"""What building a target means: train, evaluate, sample, collect a table, work out a study. Wires the rooms together.

Called by `build` with the config of the target (resolved, its needs' folders filled in), its run folder, and the
target; returns the metrics that go into run.json. All heavy imports are inside functions: planning never pays for them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from alignlab.app.configs.made import make
from alignlab.app.work.evaluating import evaluate, write_evaluation
from alignlab.app.work.sample import sample
from alignlab.app.work.training import (
    Metrics,
    card_of,
    load_model,
    make_data,
    make_monitor,
    make_sampler,
    make_trainer,
    pair_facts_of,
    rank_of_process,
    seed_everything,
    settle,
    world_of,
)
from alignlab.errors import ConfigError

if TYPE_CHECKING:
    from alignlab.methods.base import Method


def train(cfg: DictConfig, folder: Path, target: Any) -> Metrics:
    """Train what `cfg` says in `folder`, going on from its last checkpoint if there is one."""
    from alignlab.methods.checkpoint import newest_checkpoint, restore_method
    from alignlab.models.policy import Policy

    settle(cfg)
    seed_everything(cfg.seed)
    source = make(cfg.model, "model")(seed=cfg.seed, gradient_checkpointing=cfg.hardware.gradient_checkpointing)
    make_method = make(cfg.method, "method")
    method_class: type[Method] = make_method.func
    data = make_data(cfg, folder, source, method_class.row_type)
    model = load_model(cfg, source, method_class)
    model.layout = cfg.hardware.layout
    if isinstance(model, Policy):
        model.decoder = cfg.hardware.decoder
    method: Method = make_method(model)
    seed_everything(cfg.seed + 100_003 * rank_of_process())  # dropout differs between processes, weights did not
    total_steps = method.num_steps(data.steps_per_epoch)
    method.plan(
        seed=cfg.seed,
        total_steps=total_steps,
        micro_batch_size=cfg.hardware.micro_batch_size,
        loss_in_chunks=cfg.hardware.loss_in_chunks,
        log_every=max(total_steps // max(cfg.task.log_points, 1), 1),
    )
    state = newest_checkpoint(folder / "checkpoints")
    start = state["step"] if state is not None else 0
    data.set_range(start, total_steps)
    trainer, loggers = make_trainer(cfg, folder, method, data, state)
    if total_steps > 0 and (state is None or (start < total_steps and not state["extra"]["stopped"])):
        trainer.fit(method, datamodule=data)
    else:  # nothing to train, or killed after the last step
        method.to(trainer.strategy.root_device)
        method.before_training(data)
        if state is not None:
            restore_method(method, state)
    return finish(cfg, folder, method, data, trainer, loggers)


def finish(cfg: DictConfig, folder: Path, method: Any, data: Any, trainer: Any, loggers: list[Any]) -> Metrics:
    """After the last step: choose the weights, test them, write what others load."""
    from alignlab.app.runs.loggers import close
    from alignlab.methods.census import counted
    from alignlab.methods.checkpoint import BEST, Checkpointer, load_trained_state, read_checkpoint

    best = folder / "checkpoints" / BEST
    if cfg.task.export == "best" and best.exists():
        load_trained_state(method, read_checkpoint(best)["weights"])
    device = trainer.strategy.root_device  # Lightning leaves a module on the CPU after each of its loops
    method.to(device)
    method.after_training(data)
    if data.test_rows:
        trainer.test(method, datamodule=data, verbose=False)
    method.to(device)
    metrics: Metrics = dict(getattr(method, "test_metrics", {}))
    if world_of(data) is not None and cfg.task.exact_points > 0:
        metrics |= {f"exact/{name}": value for name, value in make_monitor(method, data)().items()}
    if (step := next(each.best_step for each in trainer.callbacks if isinstance(each, Checkpointer))) > 0:
        metrics["train/best_step"] = float(step)
    metrics["train/steps"] = float(method.completed_steps)
    metrics["tokens"] = float(method.total_tokens())
    metrics |= counted(method)
    if trainer.is_global_zero:
        loggers[0].write_csv()
        close(loggers[1:])
        metrics |= export(cfg, folder, method, data, metrics)
    return metrics


def export(cfg: DictConfig, folder: Path, method: Any, data: Any, metrics: Metrics) -> Metrics:
    """Write model/ or adapter/, and measure the finished model on the test split."""
    from alignlab.models.saving import save_policy, save_reward_model

    if method.produces == "reward_model":
        from alignlab.evaluate.reward import evaluate_reward_model

        save_reward_model(method.reward_model, folder, card=card_of(cfg, folder, method, metrics))
        if not data.test_rows:
            return {}
        found = evaluate_reward_model(method.reward_model, data.batches("test"), facts=pair_facts_of(data))
        return write_evaluation(folder, found)
    save_policy(method.policy, folder, card=card_of(cfg, folder, method, metrics))
    if cfg.task.samples.final_prompts == 0:
        return {}
    result = make_sampler(cfg, method, data, "test", cfg.task.samples.final_prompts)()
    return {} if result is None else write_evaluation(folder, result)


# -- table ------------------------------------------------------------------------------------------------------
def table(cfg: DictConfig, folder: Path, target: Any) -> Metrics:
    """Collect the runs of all needs into tables, figures and a report."""
    from alignlab.report.build import build_report

    runs = {name: [parent.folder for parent in parents] for name, parents in target.needs.items()}
    if not runs:
        raise ConfigError("task=table: there are no needs; a table collects the runs that `needs` names")
    task = cfg.task
    return build_report(
        folder,
        runs,
        title=task.title,
        next_commands=list(task.next_commands),
        baseline=task.baseline,
        ordering=list(task.ordering),
        ordering_by=task.ordering_by,
    )


# -- study ------------------------------------------------------------------------------------------------------
def study(cfg: DictConfig, folder: Path, target: Any) -> Metrics:
    """Ask the study for its findings and write them down; it may read the runs of its needs."""
    from alignlab.report.study import build_study

    settle(cfg)
    seed_everything(cfg.seed)
    task = cfg.task
    runs = {name: [parent.folder for parent in parents] for name, parents in target.needs.items()}
    tables, curves, metrics, notes = make(task.study, "task.study")(runs=runs)
    next_commands = list(task.next_commands)
    build_study(folder, title=task.title, tables=tables, curves=curves, notes=notes, next_commands=next_commands)
    return metrics


WORK: dict[str, Callable[[DictConfig, Path, Any], Metrics]] = {
    "train": train,
    "evaluate": evaluate,
    "sample": sample,
    "table": table,
    "study": study,
}
