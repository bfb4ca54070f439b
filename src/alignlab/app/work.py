"""What building a target means: train, evaluate, sample, collect a table, work out a study. Wires the rooms together.

Called by `build` with the config of the target (resolved, its needs' folders filled in), its run folder, and the
target; returns the metrics that go into run.json. All heavy imports are inside functions: planning never pays for them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from alignlab.app.sample import sample
from alignlab.app.training import (
    Metrics,
    card_of,
    check_hardware,
    device_of,
    load_model,
    make_data,
    make_monitor,
    make_sampler,
    make_trainer,
    rank_of_process,
    seed_everything,
    use_threads,
    world_of,
)
from alignlab.errors import ConfigError

if TYPE_CHECKING:
    from alignlab.methods.base import Method


def train(cfg: DictConfig, folder: Path, target: Any) -> Metrics:
    """Train what `cfg` says in `folder`, going on from its last checkpoint if there is one."""
    from hydra.utils import instantiate

    from alignlab.methods.checkpoint import newest_checkpoint, restore_method
    from alignlab.models.policy import Policy

    check_hardware(cfg)
    use_threads(cfg)
    seed_everything(cfg.seed)
    source = instantiate(cfg.model)(seed=cfg.seed, gradient_checkpointing=cfg.hardware.gradient_checkpointing)
    make_method = instantiate(cfg.method)
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
    from alignlab.app.loggers import close
    from alignlab.methods.checkpoint import BEST, load_trained_state, read_checkpoint

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
    metrics["train/steps"] = float(method.completed_steps)
    metrics["tokens"] = float(method.total_tokens())
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
        facts = data.test_rows.pair_facts()
        return _saved(folder, evaluate_reward_model(method.reward_model, data.batches("test"), facts=facts))
    save_policy(method.policy, folder, card=card_of(cfg, folder, method, metrics))
    if cfg.task.samples.final_prompts == 0:
        return {}
    result = make_sampler(cfg, method, data, "test", cfg.task.samples.final_prompts)()
    return {} if result is None else _saved(folder, result)


# -- evaluate ---------------------------------------------------------------------------------------------------
def evaluate(cfg: DictConfig, folder: Path, target: Any) -> Metrics:
    """Measure the run that the target is an evaluation of, on its own test split or that of `evaluation.data`."""
    from hydra.utils import get_class

    from alignlab.report.reward import build_reward_report

    of: Path = target.needs["of"][0].folder
    trained = OmegaConf.load(of / "config.yaml")
    assert isinstance(trained, DictConfig)
    method_class: Any = get_class(trained.method._target_)
    if method_class.produces == "reward_model":
        metrics = _saved(folder, _evaluate_reward_model(cfg, trained, of))
        build_reward_report(folder, of.name)
        return metrics
    return _saved(folder, _evaluate_policy(cfg, trained, of))


def _saved(folder: Path, result: Any) -> Metrics:
    """Write an evaluation into a run folder; its metrics as run.json has them."""
    from alignlab.evaluate.policy import PolicyEvaluation
    from alignlab.evaluate.saving import save_evaluation

    save_evaluation(folder, "policy" if isinstance(result, PolicyEvaluation) else "reward", result)
    return {f"test/{name}": value for name, value in result.metrics.items()}


def _evaluate_policy(cfg: DictConfig, trained: DictConfig, of: Path) -> Any:
    from hydra.utils import instantiate

    from alignlab.evaluate.policy import evaluate_policy
    from alignlab.models.reference import FrozenCopy
    from alignlab.models.saving import load_policy
    from alignlab.rollout.rewards.model import ModelReward
    from alignlab.rows import PromptRow

    e, device = cfg.evaluation, device_of(cfg)
    quality = instantiate(e.quality)  # before any model: a threshold that cannot be is refused at once
    policy = load_policy(of).to(device)
    data = _data_of(cfg, trained, policy, PromptRow)
    if e.reference == "self":
        start = policy
    elif e.reference is not None:
        start = load_policy(Path(e.reference))
    else:  # what the run started from; random weights are no reference
        start = instantiate(trained.model)(seed=trained.seed).load_policy() if trained.model.init_from else None
    reference = None if start is None else FrozenCopy(start).to(device)
    return evaluate_policy(
        policy,
        reference=reference,
        prompts=data.prompt_batches("test", limit=e.num_prompts, batch_size=e.batch_size),
        gold=data.gold,
        proxy=ModelReward(e.proxy).to(device) if e.proxy else None,
        max_new_tokens=e.max_new_tokens or data.max_new_tokens,
        temperature=e.temperature,
        seed=e.seed,
        quality=quality,
    )


def _evaluate_reward_model(cfg: DictConfig, trained: DictConfig, of: Path) -> Any:
    from alignlab.evaluate.reward import evaluate_reward_model
    from alignlab.models.saving import load_reward_model
    from alignlab.rows import PreferenceRow

    model = load_reward_model(of).to(device_of(cfg))
    data = _data_of(cfg, trained, model, PreferenceRow)
    return evaluate_reward_model(model, data.batches("test"), facts=data.test_rows.pair_facts())


def _data_of(cfg: DictConfig, trained: DictConfig, model: Any, row_type: type) -> Any:
    """What a finished model is measured on: `evaluation.data`, else the data of its run; read for the model."""
    from hydra.utils import instantiate

    stop = getattr(model, "stop_token_ids", None) or (model.tokenizer.eos_token_id,)
    data = instantiate(cfg.evaluation.data or trained.data)(
        tokenizer=model.tokenizer, stop_token_ids=tuple(stop), row_type=row_type, seed=trained.seed, num_workers=0
    )
    data.prepare()
    return data


# -- table ------------------------------------------------------------------------------------------------------
def table(cfg: DictConfig, folder: Path, target: Any) -> Metrics:
    """Collect the runs of all needs into tables, figures and a report."""
    from alignlab.report.build import build_report

    runs = {name: [parent.folder for parent in parents] for name, parents in target.needs.items()}
    if not runs:
        raise ConfigError("task=table: there are no needs; a table collects the runs that `needs` names")
    task = cfg.task
    return build_report(folder, runs, title=task.title, next_commands=list(task.next_commands), baseline=task.baseline)


# -- study ------------------------------------------------------------------------------------------------------
def study(cfg: DictConfig, folder: Path, target: Any) -> Metrics:
    """Ask the study for its findings and write them down; it may read the runs of its needs."""
    from hydra.utils import instantiate

    from alignlab.report.study import build_study

    seed_everything(cfg.seed)
    task = cfg.task
    runs = {name: [parent.folder for parent in parents] for name, parents in target.needs.items()}
    tables, curves, metrics, notes = instantiate(task.study)(runs=runs)
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
