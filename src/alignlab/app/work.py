"""What building a target means: train, evaluate, or collect into a table. Wires the rooms together.

Called by `build` with the config of the target (resolved, its needs' folders filled in), its run folder, and the
target; returns the metrics that go into run.json. All heavy imports are inside functions: planning never pays for them.
"""

import logging
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from alignlab.errors import ConfigError, HardwareError

if TYPE_CHECKING:
    from alignlab.methods.base import Method

Metrics = dict[str, float]
log = logging.getLogger("alignlab")


def train(cfg: DictConfig, folder: Path, target: Any) -> Metrics:
    """Train what `cfg` says in `folder`, going on from its last checkpoint if there is one."""
    from hydra.utils import instantiate

    from alignlab.methods.checkpoint import load_trained_state, newest_checkpoint

    check_hardware(cfg)
    seed_everything(cfg.seed)
    source = instantiate(cfg.model)(seed=cfg.seed, gradient_checkpointing=cfg.hardware.gradient_checkpointing)
    make_method = instantiate(cfg.method)
    method_class: type[Method] = make_method.func
    data = make_data(cfg, folder, source, method_class.row_type)
    method: Method = make_method(load_model(cfg, source, method_class))
    total_steps = method.num_steps(data.steps_per_epoch)
    method.plan(
        seed=cfg.seed,
        total_steps=total_steps,
        micro_batch_size=cfg.hardware.micro_batch_size,
        log_every=max(total_steps // max(cfg.task.log_points, 1), 1),
    )
    state = newest_checkpoint(folder / "checkpoints")
    start = state["step"] if state is not None else 0
    data.set_range(start, total_steps)
    trainer, loggers = make_trainer(cfg, folder, method, data, state)
    if state is None or (start < total_steps and not state["extra"]["stopped"]):
        if total_steps > 0:
            trainer.fit(method, datamodule=data)
    else:
        load_trained_state(method, state["weights"])
        method.completed_steps, method.seen_tokens = state["step"], state["seen_tokens"]
    return finish(cfg, folder, method, data, trainer, loggers)


def finish(cfg: DictConfig, folder: Path, method: Any, data: Any, trainer: Any, loggers: list[Any]) -> Metrics:
    """After the last step: choose the weights, test them, write what others load."""
    from alignlab.methods.checkpoint import BEST, load_trained_state, read_checkpoint

    best = folder / "checkpoints" / BEST
    if cfg.task.export == "best" and best.exists():
        load_trained_state(method, read_checkpoint(best)["weights"])
    method.after_training(data)
    if data.test_rows:
        trainer.test(method, datamodule=data, verbose=False)
    metrics: Metrics = dict(getattr(method, "test_metrics", {}))
    metrics["train/steps"] = float(method.completed_steps)
    metrics["tokens"] = float(method.total_tokens())
    if trainer.is_global_zero:
        loggers[0].write_csv()
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
        return _saved(folder, evaluate_reward_model(method.reward_model, data.batches("test")))
    save_policy(method.policy, folder, card=card_of(cfg, folder, method, metrics))
    if cfg.task.samples.final_prompts == 0:
        return {}
    result = make_sampler(cfg, method, data, "test", cfg.task.samples.final_prompts)()
    return {} if result is None else _saved(folder, result)


def load_model(cfg: DictConfig, source: Any, method_class: Any) -> Any:
    """The policy or reward model to train, its adapter on; a reward model learns how its texts are written."""
    from hydra.utils import instantiate

    from alignlab.models.reward_model import TextFormat

    adapter = instantiate(cfg.adapter)
    if method_class.produces == "policy":
        return source.load_policy(adapter)
    model = source.load_reward_model(adapter)
    settings = {key: cfg.data[key] for key in ("template", "append_eos", "add_bos", "max_length", "max_prompt_length")}
    model.text_format = TextFormat(**settings, stop_token_ids=source.stop_tokens())
    return model


def card_of(cfg: DictConfig, folder: Path, method: Any, metrics: Metrics) -> str:
    """The README.md of the model that a run hands on."""
    from alignlab.models.cards import model_card

    overrides = (folder / "overrides.txt").read_text().split("\n")[:-1]
    return model_card(
        name=folder.name,
        produces=method.produces,
        base=cfg.model.init_from or "random weights",
        method=type(method).__name__,
        data=str(cfg.data.source._target_).rpartition(".")[2],
        metrics=metrics,
        adapter=hasattr(cfg.adapter, "rank"),
        command=shlex.join(["alignlab", *overrides]),
    )


# -- the parts of a training ------------------------------------------------------------------------------------
def seed_everything(seed: int) -> None:
    """Seed the global random states; every room that draws for itself has a generator of its own."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def check_hardware(cfg: DictConfig) -> None:
    """HardwareError where the machine lacks what is asked for."""
    import torch

    if cfg.hardware.accelerator == "gpu" and not torch.cuda.is_available():
        raise HardwareError(
            "hardware=gpu: torch sees no CUDA device here; choose hardware=cpu, or install a CUDA build"
        )


def world_size(cfg: DictConfig) -> int:
    """Number of processes of this run."""
    if cfg.hardware.devices == -1:
        import torch

        return max(torch.cuda.device_count(), 1)
    return int(cfg.hardware.devices)


def make_data(cfg: DictConfig, folder: Path, source: Any, row_type: type) -> Any:
    """The data room for this model's tokenizer, its rows read and encoded."""
    from hydra.utils import instantiate

    data = instantiate(cfg.data)(
        tokenizer=source.load_tokenizer(),
        stop_token_ids=source.stop_tokens(),
        row_type=row_type,
        seed=cfg.seed,
        num_workers=cfg.hardware.num_workers,
    )
    rank = int(os.environ.get("LOCAL_RANK", 0))
    data.prepare(world_size=world_size(cfg), rank=rank)
    if rank == 0:
        report_data(data, folder)
    return data


def report_data(data: Any, folder: Path) -> None:
    """Write what was read, and every row that was left out, beside the metrics."""
    import json

    (folder / "data.json").write_text(json.dumps(data.statistics, indent=2) + "\n")
    if data.bad_rows:
        (folder / "bad_rows.txt").write_text("".join(f"{line}\n" for line in data.bad_rows))
        log.warning("%d rows were left out; they are listed in %s", len(data.bad_rows), folder / "bad_rows.txt")


def make_trainer(
    cfg: DictConfig, folder: Path, method: Any, data: Any, state: dict[str, Any] | None
) -> tuple[Any, list]:
    """The Lightning trainer: one pass over the steps that are left, our own checkpoints and metrics."""
    import lightning as L

    from alignlab.app.callbacks import Progress, Samples
    from alignlab.methods.checkpoint import Checkpointer
    from alignlab.methods.strategy import make_strategy

    start = state["step"] if state is not None else 0
    loggers = make_loggers(cfg, folder, start)
    validates = bool(data.validation_rows) and cfg.task.validations > 0
    every = -(-method.total_steps // max(cfg.task.validations, 1))
    metric, mode = cfg.task.best_metric or method.best_metric[0], cfg.task.best_mode or method.best_metric[1]
    callbacks: list[Any] = [Progress(folder.name, enabled=cfg.hardware.progress)]
    sampler = make_sampler(cfg, method, data, "validation", cfg.task.samples.num_prompts)
    if validates and method.produces == "policy" and cfg.task.samples.num_prompts > 0:
        callbacks.append(Samples(folder, lambda: _pair(sampler())))
    callbacks.append(
        Checkpointer(
            folder / "checkpoints",
            every=-(-method.total_steps // max(cfg.task.checkpoints, 1)),
            metric=metric if validates else None,
            mode=mode,
            patience=cfg.task.patience,
            state=state,
        )
    )
    trainer = L.Trainer(
        accelerator=cfg.hardware.accelerator,
        devices=cfg.hardware.devices,
        strategy=make_strategy(cfg.hardware.strategy),
        precision=PRECISIONS[str(cfg.hardware.precision)],
        max_epochs=1,
        val_check_interval=max(every, 1),
        check_val_every_n_epoch=None,  # counts batches from the start of the run, not of this process
        limit_val_batches=None if validates else 0,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=loggers,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
        default_root_dir=folder,
    )
    # validation falls on the same steps as in an uninterrupted run
    trainer.fit_loop.epoch_loop.batch_progress.total.ready = start
    return trainer, loggers


PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"}


def make_loggers(cfg: DictConfig, folder: Path, resumed_step: int) -> list[Any]:
    """metrics.jsonl first, then whatever the logger group adds."""
    from hydra.utils import instantiate

    from alignlab.app.loggers import FileLogger

    loggers: list[Any] = [FileLogger(folder, resumed_step=resumed_step)]
    for node in (cfg.logger or {}).values():
        loggers.append(instantiate(node)(folder=folder))
    return loggers


def make_sampler(cfg: DictConfig, method: Any, data: Any, split: str, num_prompts: int) -> Callable[[], Any]:
    """A function that samples replies to the first `num_prompts` prompts of `split` and measures them."""
    from alignlab.evaluate.policy import evaluate_policy

    samples = cfg.task.samples

    def sample() -> Any:
        prompts = list(data.prompt_batches(split, limit=num_prompts, batch_size=samples.batch_size))
        if not prompts:
            return None
        return evaluate_policy(
            method.policy,
            reference=getattr(method, "reference", None),
            prompts=prompts,
            gold=data.gold,
            max_new_tokens=data.max_new_tokens,
            temperature=samples.temperature,
            seed=cfg.seed,
        )

    return sample


def _pair(result: Any) -> tuple[Metrics, list[dict[str, Any]]]:
    return (result.metrics, result.samples) if result is not None else ({}, [])


# -- evaluate ---------------------------------------------------------------------------------------------------
def evaluate(cfg: DictConfig, folder: Path, target: Any) -> Metrics:
    """Measure the run that the target is an evaluation of, on its own test split."""
    from hydra.utils import get_class

    of: Path = target.needs["of"][0].folder
    trained = OmegaConf.load(of / "config.yaml")
    assert isinstance(trained, DictConfig)
    method_class: Any = get_class(trained.method._target_)
    if method_class.produces == "reward_model":
        return _saved(folder, _evaluate_reward_model(trained, of))
    return _saved(folder, _evaluate_policy(cfg, trained, of))


def _saved(folder: Path, result: Any) -> Metrics:
    """Write an evaluation into a run folder; its metrics as run.json has them."""
    from alignlab.evaluate.policy import PolicyEvaluation
    from alignlab.evaluate.saving import save_evaluation

    save_evaluation(folder, "policy" if isinstance(result, PolicyEvaluation) else "reward", result)
    return {f"test/{name}": value for name, value in result.metrics.items()}


def _evaluate_policy(cfg: DictConfig, trained: DictConfig, of: Path) -> Any:
    from alignlab.evaluate.policy import evaluate_policy
    from alignlab.models.reference import FrozenCopy
    from alignlab.models.saving import load_policy
    from alignlab.rollout.rewards.model import ModelReward
    from alignlab.rows import PromptRow

    e = cfg.evaluation
    policy = load_policy(of)
    data = _data_of(trained, policy, PromptRow)
    reference_path = e.reference or trained.model.init_from
    is_self = reference_path in ("self", None)
    reference = None if reference_path is None else FrozenCopy(policy if is_self else load_policy(Path(reference_path)))
    return evaluate_policy(
        policy,
        reference=reference,
        prompts=data.prompt_batches("test", limit=e.num_prompts, batch_size=e.batch_size),
        gold=data.gold,
        proxy=ModelReward(e.proxy) if e.proxy else None,
        max_new_tokens=e.max_new_tokens or data.max_new_tokens,
        temperature=e.temperature,
        seed=e.seed,
    )


def _evaluate_reward_model(trained: DictConfig, of: Path) -> Any:
    from alignlab.evaluate.reward import evaluate_reward_model
    from alignlab.models.saving import load_reward_model
    from alignlab.rows import PreferenceRow

    model = load_reward_model(of)
    return evaluate_reward_model(model, _data_of(trained, model, PreferenceRow).batches("test"))


def _data_of(trained: DictConfig, model: Any, row_type: type) -> Any:
    """The data of a finished run, read for its finished model."""
    from hydra.utils import instantiate

    stop = getattr(model, "stop_token_ids", None) or (model.tokenizer.eos_token_id,)
    data = instantiate(trained.data)(
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


WORK: dict[str, Callable[[DictConfig, Path, Any], Metrics]] = {"train": train, "evaluate": evaluate, "table": table}
