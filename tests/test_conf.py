"""Every option and every experiment composes and passes the preflight; every key has a comment."""

from pathlib import Path

import pytest

from alignlab.app.configs.paths import roots
from alignlab.app.planning.preflight import preflight
from alignlab.app.planning.targets import Planner

REPO = Path(__file__).parents[1]
CONF, EXPERIMENTS = REPO / "conf", REPO / "experiments"
GROUPS = (
    *("model", "adapter", "data", "hardware", "logger", "method", "method/loss", "method/kl", "method/reward"),
    "evaluation/judge",
)
# what an option cannot know by itself
NEEDS = {
    "model=pretrained": ["model.init_from=folder"],
    "model=random_gpt2": ["model.tokenizer=folder"],
    "model=random_qwen2": ["model.tokenizer=folder"],
    "model=random_gpt_neo": ["model.tokenizer=folder"],
    "model=distilbert": ["model.tokenizer=folder", "method=reward"],
    "model=deberta": ["model.tokenizer=folder", "method=reward"],
    **{
        f"method={name}": ["method/reward=length"]
        for name in ("ppo", "rloo", "grpo", "dr_grpo", "dapo", "reinforce", "online_dpo")
    },
    "evaluation/judge=gold": ["task=evaluate", "evaluation.against=dataset"],
    "evaluation/judge=reward_model": ["task=evaluate", "evaluation.judge.reward.path=folder"],
    "evaluation/judge=endpoint": ["task=evaluate", "evaluation.judge.model=gpt"],
    "data=exact": ["model=exact"],
    **{f"data/source/world/reward={name}": ["model=exact", "data=exact"] for name in ("counts", "automaton", "table")},
    "method/reward=exact": ["model=exact", "data=exact"],
    "task=study": ["task.study={_target_:alignlab.evaluate.studies.bandit.bandit,_partial_:true}"],
    "method/reward=lexicon": ["method.reward.path=file"],
    "method/reward=bag_of_words": ["method.reward.path=file"],
    "method/reward=model": ["method.reward.path=folder"],
    "method/reward=regex": ["method.reward.pattern=a"],
    "method/reward=weighted": [
        "method.reward.rewards={length:{_target_:alignlab.rollout.rewards.length.LengthReward}}",
        "method.reward.weights={length:1.0}",
    ],
}


def options() -> list[str]:
    return [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


def experiments() -> list[str]:
    return [path.relative_to(EXPERIMENTS).with_suffix("").as_posix() for path in sorted(EXPERIMENTS.rglob("*.yaml"))]


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(roots())


def faults(planner: Planner, overrides: list[str]) -> list[str]:
    return preflight(planner, [planner.target(overrides)])


@pytest.mark.parametrize("option", options())
def test_every_option_passes_the_preflight(option: str, planner: Planner):
    needed = ["method=dpo"] if option.startswith("method/loss") else []
    needed += ["method=ppo"] if option.startswith(("method/kl", "method/reward")) else []
    needed += ["method/reward=length"] if option.startswith("method/kl") else []
    assert faults(planner, [*needed, option, *NEEDS.get(option, []), "paths.data=folder"]) == []


@pytest.mark.parametrize("experiment", experiments())
@pytest.mark.parametrize("task", [None, "evaluate"])
def test_every_experiment_passes_the_preflight(experiment: str, task: str | None, planner: Planner):
    target = planner.target([f"experiments={experiment}", "paths.data=folder"])
    if task is not None and target.kind in ("table", "study", "sample"):
        pytest.skip("a table, a study or a set of samples is not evaluated")
    overrides = [f"experiments={experiment}", "paths.data=folder", *([f"task={task}"] if task else [])]
    assert faults(planner, overrides) == []


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONF)))
def test_every_key_of_the_vocabulary_is_explained(path: Path):
    """A comment behind the key, or in the line above; `_target_` and friends explain themselves."""
    lines = path.read_text().split("\nhydra:")[0].splitlines()  # what is Hydra's own is explained there
    assert lines[0].startswith("#"), "the first line says what this option is"
    for before, line in zip(["", *lines], lines, strict=False):
        key, colon, rest = line.strip().partition(":")
        own = key.lstrip("- ")
        if not colon or not own.isidentifier() or own.startswith(("_", "defaults")) or not rest.strip():
            continue
        assert "#" in rest or before.strip().startswith("#"), f"{path.name}: {own} has no comment"


@pytest.mark.parametrize("experiment", experiments())
def test_every_experiment_says_how_it_is_run(experiment: str):
    head = (EXPERIMENTS / f"{experiment}.yaml").read_text().split("\n\n")[0]
    assert head.startswith("# @package _global_\n#") and "alignlab" in head
