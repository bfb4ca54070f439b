"""`task=sample`: replies of a finished policy, scored, as files that any other target reads as its data.

    samples/scored.jsonl      every reply with its score (and gold, where the data knows it and something else scored)
    samples/sft.jsonl         the best reply to each prompt
    samples/preference.jsonl  pairs of a better and a worse one
    samples/unpaired.jsonl    replies that are desirable or not
    report/                   what the best of n is worth, with n above 1

Each batch is written whole to samples/batches/ as soon as it is scored, so a killed command goes on where it was, and
ends in the same bytes: batch k depends on the seed and k alone. The batches are removed when all is written.
"""

import functools
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignlab.app.configs.made import make
from alignlab.app.runs.runfolder import as_json, write_atomic
from alignlab.app.work.training import Metrics, data_for, device_of, settle, world_of
from alignlab.errors import ConfigError

JUDGE_ANSWERS = "judge_answers.jsonl"
"""In samples/: each answer of a judge endpoint, as it came."""

log = logging.getLogger("alignlab")


def sample(cfg: DictConfig, folder: Path, target: Any) -> Metrics:
    """Draw, score, write; goes on from the batches that are there."""
    from alignlab.models.saving import load_policy
    from alignlab.rollout.judges.ranking import by_comparison
    from alignlab.rollout.replies import draw_batch, each_by_itself
    from alignlab.rows import PromptRow

    task = cfg.task
    settle(cfg)
    [of] = target.needs["of"] if "of" in target.needs else target.needs[task.of]
    _check_policy(of.folder)
    data_node = _data_node(cfg, of.folder)
    drawing = _drawing(cfg, data_node)
    select = make(task.select, "task.select")
    gold = make(data_node.gold, "data.gold") if data_node.get("gold") else None
    reward, judge = _scored_by(cfg, folder, gold)
    device = device_of(cfg)
    policy = load_policy(of.folder).to(device)
    data = data_for(data_node, policy, PromptRow, seed=0)  # only the split that is asked for is read
    for scorer in (reward, judge, gold):
        if scorer is not None and hasattr(scorer, "to"):
            scorer.to(device)
    scorers = {"score": each_by_itself(reward) if judge is None else by_comparison(judge)}
    if gold is not None and gold is not reward:
        scorers["gold"] = each_by_itself(gold)
    batches = data.prompt_batches(task.split, limit=task.num_prompts, batch_size=task.batch_size)
    places = folder / "samples" / "batches"
    places.mkdir(parents=True, exist_ok=True)
    number = 0
    for number, batch in enumerate(batches, start=1):
        place = places / f"{number - 1:06d}.jsonl"
        if not place.exists():
            write_atomic(place, _lines(draw_batch(policy, batch, drawing, scorers, index=number - 1)))
            log.info("%s: batch %d", folder.name, number)
    replies = [json.loads(line) for index in range(number) for line in _read(places / f"{index:06d}.jsonl")]
    metrics = _write(folder, replies, select.rows(replies))
    if judge is not None:
        metrics |= _judge_figures(judge, replies)
    if drawing.n > 1:
        metrics |= _report(cfg, folder, replies, policy, data, reward)
    shutil.rmtree(places)
    return metrics


def _check_policy(of: Path) -> None:
    """ConfigError where what lies there can say nothing."""
    from alignlab.models.origins import REWARD_FILE, locate

    if (locate(str(of)).files.folder() / REWARD_FILE).exists():
        raise ConfigError(
            f"{of}: a reward model, which writes no replies; sample from a policy and score with this one"
        )


def _scored_by(cfg: DictConfig, folder: Path, gold: Any) -> tuple[Any, Any]:
    """The reward that scores, or None and the judge that compares. ConfigError where there is neither, or both."""
    task = cfg.task
    if task.judge is None:
        if task.reward is None and gold is None:
            raise ConfigError(
                "task.reward: nothing scores the replies, for the data knows no gold reward: choose one, for example "
                "method/reward@task.reward=length, or a judge: evaluation/judge@task.judge=endpoint"
            )
        return make(task.reward, "task.reward") if task.reward else gold, None
    if task.reward is not None:
        raise ConfigError("task.reward and task.judge: both would score the replies; choose one")
    if task.n < 2:
        raise ConfigError(f"task.n={task.n}: a judge compares replies to one prompt, so there must be two at least")
    judge = make(task.judge, "task.judge")
    if isinstance(judge, functools.partial):  # judge=gold: the reward is the data's own
        if gold is None:
            raise ConfigError("task.judge: the data knows no gold reward to judge by")
        judge = judge(gold)
    if hasattr(judge, "remember"):
        judge.remember(folder / "samples" / JUDGE_ANSWERS)
    return None, judge


def _judge_figures(judge: Any, replies: Sequence[dict[str, Any]]) -> Metrics:
    """What the verdicts say of the judge; answers that are remembered are not asked for again."""
    from alignlab.rollout.judges.ranking import all_verdicts
    from alignlab.rollout.selection import by_prompt

    groups = by_prompt(replies)
    texts = [[reply["response"] for reply in group] for group in groups]
    verdicts = all_verdicts(judge, [group[0]["prompt"] for group in groups], texts)
    unjudged = sum(verdict.value is None for verdict in verdicts)
    return {"num_judged": float(len(verdicts) - unjudged), "num_unjudged": float(unjudged), **judge.figures(verdicts)}


def _drawing(cfg: DictConfig, data: Any) -> Any:
    """How replies are drawn. ConfigError, before a model is loaded, where that cannot be."""
    from alignlab.rollout.replies import Drawing

    task = cfg.task
    if task.split not in ("train", "validation", "test"):
        raise ConfigError(f"task.split={task.split}: allowed are train, validation and test")
    for name, value in (("num_prompts", task.num_prompts), ("batch_size", task.batch_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"task.{name}={value}: expected a whole number from 1")
    return Drawing(
        n=task.n,
        max_new_tokens=data.max_new_tokens if task.max_new_tokens is None else task.max_new_tokens,
        temperature=task.temperature,
        top_k=task.top_k,
        top_p=task.top_p,
        seed=task.seed,
    )


def _data_node(cfg: DictConfig, of: Path) -> DictConfig:
    """Where the prompts come from: `task.data`, else the data of the run."""
    if cfg.task.data:
        return cfg.task.data
    if not (of / "config.yaml").is_file():
        raise ConfigError(
            f"{of}: this is no run, so it has no data; say where prompts come from: data@task.data=prompts"
        )
    trained = OmegaConf.load(of / "config.yaml")
    return OmegaConf.create(OmegaConf.to_container(trained, resolve=True)).data


def _write(folder: Path, replies: Sequence[dict[str, Any]], rows: dict[str, list[dict[str, Any]]]) -> Metrics:
    """The files, and how much is in them."""
    samples = folder / "samples"
    write_atomic(samples / "scored.jsonl", _lines(replies))
    for kind, made in rows.items():
        write_atomic(samples / f"{kind}.jsonl", _lines(made))
    count = len(replies)
    return {
        "prompts": float(len({reply["row"] for reply in replies})),
        "replies": float(count),
        **{f"rows/{kind}": float(len(made)) for kind, made in rows.items()},
        "complete_rate": sum(reply["complete"] for reply in replies) / count,
        "empty_rate": sum(not reply["response"].strip() for reply in replies) / count,
        "tokens": float(sum(reply["length"] for reply in replies)),
    }


def _report(cfg: DictConfig, folder: Path, replies: Any, policy: Any, data: Any, reward: Any) -> Metrics:
    """The best-of-n table and figure."""
    from alignlab.evaluate.best_of_n import best_of_n, findings
    from alignlab.report.study import build_study
    from alignlab.rollout.selection import by_prompt

    groups = by_prompt(replies)
    scores = [[reply["score"] for reply in group] for group in groups]
    golds = [[reply["gold"] for reply in group] for group in groups] if "gold" in replies[0] else None
    exact = _exact(cfg, policy, data, reward, gold=golds is not None)
    found = findings(best_of_n(scores, golds, exact=exact), num_prompts=len(groups))
    build_study(
        folder,
        title=cfg.task.title,
        tables=found.tables,
        curves=found.curves,
        notes=found.notes,
        next_commands=list(cfg.task.next_commands),
    )
    return found.metrics


def _exact(cfg: DictConfig, policy: Any, data: Any, reward: Any, *, gold: bool) -> Any:
    """The exact figures where replies can be listed; not of a truncated distribution, whose log-probs nobody asks, nor
    of replies that are cut elsewhere than the world's are."""
    from alignlab.evaluate.best_of_n import exact_figures_of_best
    from alignlab.evaluate.exact import response_scores
    from alignlab.worlds.exact import response_logprobs

    world, task = world_of(data), cfg.task
    if world is None or reward is None or task.top_k or task.top_p < 1:
        return None
    if task.max_new_tokens not in (None, world.max_length):
        return None
    import torch

    with torch.no_grad():
        logprobs = response_logprobs(
            lambda s: policy(s, temperature=task.temperature).logprobs, world, device=policy.device
        )
    return exact_figures_of_best(world, logprobs, response_scores(reward, world), task.n, gold=gold)


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(as_json(row) + "\n" for row in rows)


def _read(path: Path) -> Iterator[str]:
    """Lines; not splitlines(), which takes U+2028 for an end of line (as_json escapes it, others may not)."""
    return (line for line in path.read_text(encoding="utf-8").split("\n") if line)
