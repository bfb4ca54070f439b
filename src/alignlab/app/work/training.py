"""The parts of a training, made from its config: data, model, trainer, loggers, and the sampler that watches it."""

import json
import logging
import os
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from alignlab.app.configs.made import make
from alignlab.errors import ConfigError, HardwareError

Metrics = dict[str, float]
log = logging.getLogger("alignlab")


LAYOUTS = ("auto", "padded", "packed", "shared")
"""What hardware.layout may say; see `models/packing/`."""

DECODERS = ("auto", "general")
"""What hardware.decoder may say; see `models/decoding`."""

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"}


def seed_everything(seed: int) -> None:
    """Seed the global random states; every room that draws for itself has a generator of its own."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def check_hardware(cfg: DictConfig) -> None:
    """HardwareError where the machine lacks what is asked for; ConfigError for settings that say nothing."""
    import torch

    h = cfg.hardware
    for name, allowed in (("layout", LAYOUTS), ("decoder", DECODERS)):
        if h[name] not in allowed:
            raise ConfigError(f"hardware.{name}={h[name]}: allowed are {', '.join(allowed)}")
    if h.threads is not None and not (isinstance(h.threads, int) and h.threads >= 1):
        raise ConfigError(f"hardware.threads={h.threads}: expected null or a number from 1")
    if cfg.hardware.accelerator == "gpu" and not torch.cuda.is_available():
        raise HardwareError(
            "hardware=gpu: torch sees no CUDA device here; choose hardware=cpu, or install a CUDA build"
        )


def device_of(cfg: DictConfig) -> str:
    """Where a single process computes."""
    check_hardware(cfg)
    return "cuda" if cfg.hardware.accelerator == "gpu" else "cpu"


def settle(cfg: DictConfig) -> None:
    """What holds for the whole process: CPU threads (null: as many as torch started with) and forms that are plain."""
    import torch

    from alignlab.kernels.plain import choose_plain

    check_hardware(cfg)
    own_choice = torch_threads()
    torch.set_num_threads(cfg.hardware.threads or own_choice)
    plain = cfg.hardware.plain
    choose_plain([] if plain is None else plain if isinstance(plain, ListConfig) else [plain])


@cache
def torch_threads() -> int:
    """The number that torch starts with; to be asked before it is changed."""
    import torch

    return torch.get_num_threads()


def world_size(cfg: DictConfig) -> int:
    """Number of processes of this run."""
    if cfg.hardware.devices == -1:
        import torch

        return max(torch.cuda.device_count(), 1)
    return int(cfg.hardware.devices)


def rank_of_process() -> int:
    """0 on one process and on the first of several."""
    return int(os.environ.get("LOCAL_RANK", 0))


def make_data(cfg: DictConfig, folder: Path, source: Any, row_type: type) -> Any:
    """The data room for this model's tokenizer, its rows read and encoded."""
    data = make(cfg.data, "data")(
        tokenizer=source.load_tokenizer(),
        stop_token_ids=source.stop_tokens(),
        row_type=row_type,
        seed=cfg.seed,
        num_workers=cfg.hardware.num_workers,
    )
    check_world(data)
    rank = rank_of_process()
    data.prepare(world_size=world_size(cfg), rank=rank)
    if rank == 0:
        report_data(data, folder)
    return data


def data_for(node: DictConfig, model: Any, row_type: type, *, seed: int) -> Any:
    """The data room that a config node `data` says, for a finished model's tokenizer; nothing is read yet."""
    stop = getattr(model, "stop_token_ids", None) or (model.tokenizer.eos_token_id,)
    data = make(node, "data")(
        tokenizer=model.tokenizer, stop_token_ids=tuple(stop), row_type=row_type, seed=seed, num_workers=0
    )
    check_world(data)
    return data


def world_of(data: Any) -> Any:
    """The exact world that the rows come from; None where there is none."""
    return getattr(data.source, "world", None)


def pair_facts_of(data: Any) -> list[Any]:
    """What an evaluation may ask about each pair of the test split (`PairFacts`).

    The prompts of an exact world are all there are, not a sample of more: there each pair is a draw by itself.
    """
    facts = data.test_rows.pair_facts()
    return facts if world_of(data) is None else [fact._replace(prompt=row) for row, fact in enumerate(facts)]


def check_world(data: Any) -> None:
    """ConfigError where rows of an exact world would not be cut where its responses are."""
    world = world_of(data)
    if world is None:
        return
    from alignlab.worlds.exact import Script

    expected = Script(world).prompt_length + world.max_length
    if data.max_length != expected or data.max_new_tokens != world.max_length:
        raise ConfigError(
            f"data.max_length={data.max_length}, data.max_new_tokens={data.max_new_tokens}: the exact world's prompts "
            f"have {expected - world.max_length} tokens and its responses up to {world.max_length}, so "
            f"data.max_length must be {expected} and data.max_new_tokens {world.max_length}"
        )


def report_data(data: Any, folder: Path) -> None:
    """Write what was read, and every row that was left out, beside the metrics."""
    (folder / "data.json").write_text(json.dumps(data.statistics, indent=2) + "\n")
    if data.bad_rows:
        (folder / "bad_rows.txt").write_text("".join(f"{line}\n" for line in data.bad_rows))
        log.warning("%d rows were left out; they are listed in %s", len(data.bad_rows), folder / "bad_rows.txt")


def load_model(cfg: DictConfig, source: Any, method_class: Any) -> Any:
    """The policy or reward model to train, its adapter on; a reward model learns how its texts are written."""
    from alignlab.models.reward_model import TextFormat

    adapter = make(cfg.adapter, "adapter")
    if method_class.produces == "policy":
        return source.load_policy(adapter)
    model = source.load_reward_model(adapter)
    settings = {key: cfg.data[key] for key in ("template", "append_eos", "add_bos", "max_length", "max_prompt_length")}
    model.text_format = TextFormat(**settings, stop_token_ids=source.stop_tokens())
    return model


def make_trainer(
    cfg: DictConfig, folder: Path, method: Any, data: Any, state: dict[str, Any] | None
) -> tuple[Any, list]:
    """The Lightning trainer: one pass over the steps that are left, our own checkpoints and metrics."""
    import lightning as L

    from alignlab.app.work.callbacks import ExactFigures, Progress, Samples
    from alignlab.methods.checkpoint import Checkpointer
    from alignlab.methods.kept import KeepWeights
    from alignlab.methods.strategy import make_strategy

    start = state["step"] if state is not None else 0
    loggers = make_loggers(cfg, folder, start)
    validates = bool(data.validation_rows) and cfg.task.validations > 0
    every = -(-method.total_steps // max(cfg.task.validations, 1))
    metric, mode = best_metric(cfg, method)
    callbacks: list[Any] = [Progress(folder.name, enabled=cfg.hardware.progress)]
    sampler = make_sampler(cfg, method, data, "validation", cfg.task.samples.num_prompts)
    if validates and method.produces == "policy" and cfg.task.samples.num_prompts > 0:
        callbacks.append(Samples(folder, lambda: _pair(sampler())))
    if world_of(data) is not None and cfg.task.exact_points > 0:
        points = -(-method.total_steps // cfg.task.exact_points)
        callbacks.append(ExactFigures(make_monitor(method, data), every=points, start=start))
    if cfg.task.keep:
        callbacks.append(KeepWeights(folder / "checkpoints", most=cfg.task.keep))
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


def best_metric(cfg: DictConfig, method: Any) -> tuple[str, str]:
    """The metric that makes a checkpoint the best, and whether more or less of it is better."""
    name, mode = method.best_metric
    if cfg.task.best_metric not in (None, name) and cfg.task.best_mode is None:
        raise ConfigError(f"task.best_metric={cfg.task.best_metric}: say task.best_mode=min or max too")
    return cfg.task.best_metric or name, cfg.task.best_mode or mode


def make_loggers(cfg: DictConfig, folder: Path, resumed_step: int) -> list[Any]:
    """metrics.jsonl first, then whatever the logger group adds."""
    from alignlab.app.runs.loggers import FileLogger

    loggers: list[Any] = [FileLogger(folder, resumed_step=resumed_step)]
    for node in (cfg.logger or {}).values():
        loggers.append(make(node, "logger")(folder=folder))
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
            reference=method.live_reference(),
            prompts=prompts,
            gold=data.gold,
            max_new_tokens=data.max_new_tokens,
            temperature=samples.temperature,
            seed=cfg.seed,
        )

    return sample


def make_monitor(method: Any, data: Any) -> Callable[[], Metrics]:
    """A function that gives the exact figures of what is trained; data of an exact world only."""
    from alignlab.evaluate.exact import PolicyMonitor, RewardMonitor

    if method.produces == "reward_model":
        return RewardMonitor(world_of(data), method.reward_model)
    loss: Any = getattr(method, "loss", None)
    tau = loss.beta if getattr(loss, "optimum", None) == "ipo" else None
    return PolicyMonitor(world_of(data), method.policy, method.live_reference(), ipo_tau=tau)


def _pair(result: Any) -> tuple[Metrics, list[dict[str, Any]]]:
    return (result.metrics, result.samples) if result is not None else ({}, [])


def card_of(cfg: DictConfig, folder: Path, method: Any, metrics: Metrics) -> str:
    """The README.md of the model that a run hands on."""
    from alignlab.models.cards import model_card
    from alignlab.models.tokenizers import loading_class

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
        tokenizer=loading_class(getattr(method, method.produces).tokenizer),
    )
