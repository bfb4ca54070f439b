"""`task=evaluate`: a finished run measured on held-out data: a policy by its fresh replies, a reward model by pairs.

All heavy imports are inside functions: planning never pays for them.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignlab.app.configs.made import make
from alignlab.app.work.training import Metrics, data_for, device_of, pair_facts_of, settle, world_of


def evaluate(cfg: DictConfig, folder: Path, target: Any) -> Metrics:
    """Measure the run that the target is an evaluation of, on its own test split or that of `evaluation.data`."""
    from hydra.utils import get_class

    from alignlab.report.reward import build_reward_report

    settle(cfg)
    of: Path = target.needs["of"][0].folder
    trained = OmegaConf.load(of / "config.yaml")
    assert isinstance(trained, DictConfig)
    method_class: Any = get_class(trained.method._target_)
    if method_class.produces == "reward_model":
        metrics = write_evaluation(folder, _evaluate_reward_model(cfg, trained, of))
        build_reward_report(folder, of.name)
        return metrics
    return write_evaluation(folder, _evaluate_policy(cfg, trained, of, folder))


def _with_checkpoint(load: Callable[[], Any], of: Path, which: str | int | None, role: str) -> Any:
    """A run's policy or reward model as it was handed on, or (`which`) as one of its checkpoints has it."""
    from alignlab.methods.kept import put_into, read_kept

    if which is None:
        return load()
    weights = read_kept(of, which)  # before the model is loaded: a name that is not there is refused at once
    model = load()
    put_into(model, weights, prefix=role)
    return model


def _evaluate_policy(cfg: DictConfig, trained: DictConfig, of: Path, folder: Path) -> Any:
    from alignlab.app.work.comparing import make_contest
    from alignlab.evaluate.policy import evaluate_policy
    from alignlab.evaluate.preference import evaluate_pairs
    from alignlab.models.reference import FrozenCopy
    from alignlab.models.saving import load_policy
    from alignlab.rollout.rewards.model import ModelReward
    from alignlab.rows import PreferenceRow, PromptRow, SFTRow

    e, device = cfg.evaluation, device_of(cfg)
    quality = make(e.quality, "evaluation.quality")  # before any model: a threshold that cannot be is refused at once
    contest = make_contest(cfg, trained, folder)  # and so is an opponent or a judge that cannot be
    policy = _with_checkpoint(lambda: load_policy(of), of, e.checkpoint, "policy").to(device)
    data = _data_of(cfg, trained, policy, SFTRow if e.rouge else PromptRow)
    if e.reference == "self":
        start = policy
    elif e.reference is not None:
        start = load_policy(Path(e.reference))
    else:  # what the run started from; random weights are no reference
        start = make(trained.model, "model")(seed=trained.seed).load_policy() if trained.model.init_from else None
    reference = None if start is None else FrozenCopy(start).to(device)
    result = evaluate_policy(
        policy,
        reference=reference,
        prompts=data.prompt_batches("test", limit=e.num_prompts, batch_size=e.batch_size),
        gold=data.gold,
        proxy=ModelReward(e.proxy).to(device) if e.proxy else None,
        targets=data.replies("test", limit=e.num_prompts) if e.rouge else None,
        max_new_tokens=e.max_new_tokens or data.max_new_tokens,
        temperature=e.temperature,
        seed=e.seed,
        quality=quality,
    )
    result.metrics.update(_heldout_perplexity(cfg, trained, policy, reference))
    if e.num_pairs:
        pairs = _data_of(cfg, trained, policy, PreferenceRow)
        batches, facts = pairs.batches("test", limit=e.num_pairs), pair_facts_of(pairs)
        result.metrics.update(evaluate_pairs(policy, reference=reference, batches=batches, facts=facts))
    if contest is not None:
        result.metrics.update(contest.judged(result).metrics)
    return result


def _heldout_perplexity(cfg: DictConfig, trained: DictConfig, policy: Any, reference: Any) -> Metrics:
    """Perplexity of the test rows' own responses; nothing where they have none, or their text is no language."""
    from alignlab.data.responses import has_rows
    from alignlab.evaluate.perplexity import heldout_perplexity
    from alignlab.rows import SFTRow

    node = (cfg.evaluation.data or trained.data).copy()
    node.on_bad_row = "skip"  # a row that prompts can be taken from need not be one that has a usable response
    data = data_for(node, policy, SFTRow, seed=trained.seed)
    if world_of(data) is not None or not has_rows(data.source, SFTRow):
        return {}
    rows = (batch.sequences for batch in data.batches("test", limit=cfg.evaluation.num_prompts))
    return heldout_perplexity(policy, rows, reference=reference)


def _evaluate_reward_model(cfg: DictConfig, trained: DictConfig, of: Path) -> Any:
    from alignlab.evaluate.reward import evaluate_reward_model
    from alignlab.models.saving import load_reward_model
    from alignlab.rows import PreferenceRow

    which = cfg.evaluation.checkpoint
    load = partial(load_reward_model, of, merge=which is None)
    model = _with_checkpoint(load, of, which, "reward_model").to(device_of(cfg))
    data = _data_of(cfg, trained, model, PreferenceRow)
    return evaluate_reward_model(model, data.batches("test"), facts=pair_facts_of(data))


def _data_of(cfg: DictConfig, trained: DictConfig, model: Any, row_type: type) -> Any:
    """What a finished model is measured on: `evaluation.data`, else the data of its run; read for the model."""
    data = data_for(cfg.evaluation.data or trained.data, model, row_type, seed=trained.seed)
    data.prepare()
    return data


def write_evaluation(folder: Path, result: Any) -> Metrics:
    """Write an evaluation into a run folder; its metrics as run.json has them."""
    from alignlab.evaluate.policy import PolicyEvaluation
    from alignlab.evaluate.saving import save_evaluation

    save_evaluation(folder, "policy" if isinstance(result, PolicyEvaluation) else "reward", result)
    return {f"test/{name}": value for name, value in result.metrics.items()}
