"""Whom an evaluation compares a policy with, and who judges: `evaluation.against` and `evaluation.judge`.

What can be known to be wrong is refused before a model is loaded; the other replies are brought in once ours are there.
"""

import functools
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignlab.app.configs.made import make
from alignlab.app.runs import runfolder
from alignlab.app.work.training import data_for, device_of
from alignlab.data.responses import prompt_key, responses_of
from alignlab.errors import ConfigError
from alignlab.evaluate.comparison import Comparison, compare
from alignlab.evaluate.policy import PolicyEvaluation, evaluate_policy
from alignlab.evaluate.saving import load_policy_evaluation, save_comparison
from alignlab.models.origins import REWARD_FILE, locate
from alignlab.models.saving import load_policy
from alignlab.rows import PromptRow

DATASET = "dataset"
"""`evaluation.against=dataset`: the data's own responses."""

ASKED = "judge_answers.jsonl"
"""In eval/: each answer of a judge endpoint, as it came."""

log = logging.getLogger("alignlab")
Samples = list[dict[str, Any]]


def make_contest(cfg: DictConfig, trained: DictConfig, folder: Path) -> "Contest | None":
    """The comparison that `cfg.evaluation` asks for; None where there is nobody to compare with.

    `trained` is the config of the run that is evaluated, `folder` the evaluation's. ConfigError for a judge without
    an opponent, an opponent that is not there, or a judge that cannot be asked.
    """
    if cfg.evaluation.against is not None:
        return Contest(cfg, trained, folder)
    if cfg.evaluation.judge is not None:
        raise ConfigError(
            "evaluation/judge: there is nothing to judge; set evaluation.against to a run folder or to dataset"
        )
    return None


class Contest:
    """A comparison that an evaluation asks for. Made before any model is loaded; `judged` once ours is measured."""

    def __init__(self, cfg: DictConfig, trained: DictConfig, folder: Path) -> None:
        """ConfigError for an opponent or a judge that cannot be."""
        self.cfg, self.trained, self.folder = cfg, trained, folder
        self.against = str(cfg.evaluation.against)
        self.data_node = cfg.evaluation.data or trained.data
        self.gold = make(self.data_node.gold, "data.gold") if self.data_node.gold else None
        self.judge = self._make_judge()
        self.responses: dict[str, list[str]] = {}
        if self.against == DATASET:
            self.responses = responses_of(make(self.data_node.source, "data.source"))
        else:
            self._check_opponent()

    def judged(self, ours: PolicyEvaluation) -> Comparison:
        """Ours against the others, with files in eval/ about it."""
        theirs = self._others(ours)
        if hasattr(self.judge, "to"):
            self.judge.to(device_of(self.cfg))
        result = compare(ours.samples, theirs, judge=self.judge, seed=self.cfg.evaluation.seed)
        save_comparison(self.folder, result, against=self.against, judge=self.judge.name)
        return result

    def _make_judge(self) -> Any:
        node = self.cfg.evaluation.judge
        judge = make(node, "evaluation.judge") if node is not None else None
        if judge is None or isinstance(judge, functools.partial):
            if self.gold is None:
                raise ConfigError(
                    f"evaluation.against={self.against}: the data have no gold reward to judge by; choose "
                    "evaluation/judge=reward_model or evaluation/judge=endpoint"
                )
            from alignlab.rollout.judges.score import ScoreJudge

            return (judge or ScoreJudge)(self.gold)
        if hasattr(judge, "remember"):
            judge.remember(self.folder / "eval" / ASKED)
        return judge

    # -- the other replies ---------------------------------------------------------------------------------------
    def _check_opponent(self) -> None:
        path = Path(self.against).expanduser()
        if runfolder.read(path).get("task") == "evaluate":
            if not (path / "eval" / "policy.json").is_file():
                raise ConfigError(f"evaluation.against={self.against}: an evaluation, but not of a policy")
            return
        files = locate(self.against).files  # ModelError where there is no model
        if files.is_folder and (files.folder() / REWARD_FILE).exists():
            raise ConfigError(f"evaluation.against={self.against}: a reward model writes no replies; name a policy")

    def _others(self, ours: PolicyEvaluation) -> Samples:
        if self.against == DATASET:
            return self._scored(self._dataset_replies(ours.samples))
        path = Path(self.against).expanduser()
        if runfolder.read(path).get("task") == "evaluate":
            theirs = load_policy_evaluation(path)
            if theirs.settings != ours.settings:
                log.warning("evaluation: %s was sampled with %s, ours with %s", path, theirs.settings, ours.settings)
            return self._scored(theirs.samples)
        saved = self._saved_samples(path, ours)
        if saved is not None:
            log.info("evaluation: the replies that %s has are to the same prompts and settings", path)
            return self._scored(saved)
        return self._fresh_samples(ours)

    def _dataset_replies(self, ours: Samples) -> Samples:
        """A sample for each of our prompts that has a response; prompts without words take turns among theirs."""
        used: dict[str, int] = defaultdict(int)
        found: dict[tuple[int, str], dict[str, Any]] = {}
        for sample in ours:
            key = prompt_key(sample["prompt"])
            responses = self.responses.get(key, [])
            if responses and (sample["row"], key) not in found:
                response = responses[used[key] % len(responses)]
                found[sample["row"], key] = {name: sample[name] for name in ("row", "prompt")} | {"response": response}
                used[key] += 1
        return list(found.values())

    def _saved_samples(self, path: Path, ours: PolicyEvaluation) -> Samples | None:
        """What a training sampled at its end, if it is what we would sample now."""
        if not (path / "eval" / "policy.json").is_file():
            return None
        saved = load_policy_evaluation(path)
        theirs = {(sample["row"], prompt_key(sample["prompt"])) for sample in saved.samples}
        wanted = {(sample["row"], prompt_key(sample["prompt"])) for sample in ours.samples}
        return saved.samples if saved.settings == ours.settings and wanted <= theirs else None

    def _fresh_samples(self, ours: PolicyEvaluation) -> Samples:
        """Replies of the other policy to our prompts, as its own tokenizer and template write them."""
        e, settings = self.cfg.evaluation, dict(ours.settings)
        policy = load_policy(self.against).to(device_of(self.cfg))
        data = data_for(self._data_for_other(), policy, PromptRow, seed=self.trained.seed)
        prompts = data.prompt_batches("test", limit=e.num_prompts, batch_size=e.batch_size)
        return evaluate_policy(policy, reference=None, prompts=prompts, gold=self.gold, **settings).samples

    def _data_for_other(self) -> DictConfig:
        """Our rows, with the template that the other was trained on, where it was trained here."""
        file = Path(self.against).expanduser() / "config.yaml"
        node = self.data_node.copy()
        if self.cfg.evaluation.data is None and runfolder.read(file.parent):
            other = OmegaConf.load(file)
            assert isinstance(other, DictConfig)
            node.template, node.add_bos = other.data.template, other.data.add_bos
        return node

    def _scored(self, samples: Samples) -> Samples:
        """With the gold reward of this evaluation's data, where it is known."""
        if self.gold is None or not samples:
            return samples
        prompts = [p if isinstance(p := sample["prompt"], str) else tuple(p) for sample in samples]
        scores = self.gold(prompts, [sample["response"] for sample in samples]).tolist()
        return [{**sample, "gold_reward": score} for sample, score in zip(samples, scores, strict=True)]
