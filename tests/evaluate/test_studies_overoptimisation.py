"""Optimising against a reward model: by hand, with scores fitted to drawn pairs, and from run folders."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alignlab.errors import ConfigError, DataError
from alignlab.evaluate.exact import response_scores
from alignlab.evaluate.studies.overoptimisation import overoptimisation, path
from alignlab.models.saving import load_reward_model, save_policy, save_reward_model
from alignlab.models.source import ModelSource
from alignlab.rollout.rewards.model import ModelReward
from alignlab.rows import PreferenceRow
from alignlab.worlds.exact import Automaton, Bandit, ExactSource, ExactWorld, Script, build_tokenizer, response_logprobs

WORLD = ExactWorld(4, 3, Automaton(4), 0.5)
BETAS = [10.0, 1.0, 0.3, 0.1, 0.03, 0.01]
ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
}


def test_two_arms_by_hand():
    """Reference (3/4, 1/4), rewards 0 and 1, scores 0 and ln 3: at beta 1 the policy is (1/2, 1/2)."""
    world = ExactWorld(2, 1, Bandit([0.0, 1.0]), 1.0, reference=lambda prefix: (math.log(3), 0.0))
    (step,) = path(world, torch.tensor([0.0, math.log(3)], dtype=torch.float64), [1.0])
    assert step.kl == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert step.proxy == pytest.approx((0.5 - 0.25) * math.log(3)) and step.gold == pytest.approx(0.25)


def test_a_path_leads_from_large_betas_to_small_ones_and_a_shift_of_the_scores_changes_nothing():
    world = ExactWorld(3, 3, Automaton(3), 0.5)
    steps, shifted = path(world, world.rewards, BETAS[::-1]), path(world, world.rewards + 7.0, BETAS)
    assert [step.beta for step in steps] == BETAS
    for step, other in zip(steps, shifted, strict=True):
        assert step == pytest.approx(other, abs=1e-9)
        assert step.gold == pytest.approx(step.proxy, abs=1e-12)  # the true reward cannot be hacked
    golds = [step.gold for step in steps]
    assert golds == sorted(golds)


def fitted_scores(world: ExactWorld, num_pairs: int, seed: int) -> torch.Tensor:
    """A number for each response: Bradley-Terry's likelihood of drawn pairs, with a weak pull to 0."""
    source = ExactSource(world, pairs="sampled", labels="bradley_terry", num_pairs=num_pairs, seed=seed)
    rows, script = list(source.rows(PreferenceRow, "train")), Script(world)
    chosen, rejected = ([script.number(getattr(row, name)) for row in rows] for name in ("chosen", "rejected"))
    scores = torch.zeros(len(world.responses), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -torch.nn.functional.logsigmoid(scores[chosen] - scores[rejected]).sum() + 0.05 * scores.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return scores.detach()


def test_few_pairs_the_gold_reward_falls_while_the_proxy_rises_and_many_pairs_hold_longer():
    world = ExactWorld(4, 3, Automaton(4), 0.5, peakedness=1.5)
    few, many = (
        [path(world, fitted_scores(world, number, seed), BETAS) for seed in range(3)] for number in (100, 20_000)
    )
    for steps in (*few, *many):
        proxies = [step.proxy for step in steps]
        assert proxies == sorted(proxies)

    def mean(paths: list[Any], at: int, which: str) -> float:
        return sum(getattr(steps[at], which) for steps in paths) / len(paths)

    best = max(mean(few, at, "gold") for at in range(len(BETAS)))
    assert mean(few, -1, "gold") < best - 0.1
    assert mean(few, -1, "proxy") > mean(few, -1, "gold") + 1.0  # it promises more than it is worth
    assert mean(many, -1, "gold") > mean(few, -1, "gold") + 0.3


# -- from run folders ---------------------------------------------------------------------------------------------
def source(seed: int) -> ModelSource:
    return ModelSource(architecture=ARCHITECTURE, tokenizer=build_tokenizer(4), seed=seed)


def write_run(folder: Path, *, num_pairs: int | None, seed: int) -> Path:
    """A reward model nobody trained, in a folder such as a training leaves."""
    model = source(seed).load_reward_model()
    # one token of prompt and three of response, so that a response that never ends is given no end token
    model.text_format = replace(model.text_format, max_length=1 + WORLD.max_length)
    model.normalize(torch.tensor([-1.0, 0.0, 4.0]))
    save_reward_model(model, folder, card="")
    settings = {"data": {"source": {"num_pairs": num_pairs}}, "seed": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "run.json").write_text(json.dumps({"status": "done", "metrics": {"test/accuracy": 0.5 + 0.1 * seed}}))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("runs")
    sizes = [(300, 0), (100, 1), (300, 2)]
    models = [write_run(folder / f"rm-{number}-{seed}", num_pairs=number, seed=seed) for number, seed in sizes]
    save_policy(source(5).load_policy(), folder / "base", card="")
    (folder / "base" / "run.json").write_text(json.dumps({"status": "done", "metrics": {}}))
    return {"rm": models, "base": [folder / "base"]}


def test_runs_are_grouped_by_their_pairs_and_scored_as_text_would_be(runs: dict[str, list[Path]]):
    found = overoptimisation(runs, world=WORLD, betas=BETAS)
    rows: list[dict[str, Any]] = found.tables["overoptimisation"].rows
    assert [(row["pairs"], row["seeds"]) for row in rows] == [(100, 1), (300, 2)]
    assert rows[1]["accuracy"] == pytest.approx(0.6)
    policy = source(5).load_policy()
    with torch.no_grad():
        reference = response_logprobs(lambda s: policy(s).logprobs, WORLD).log_softmax(-1)
    assert WORLD.kl(reference) > 0.1  # the world's own is another one
    golds, proxies = [], []
    for folder in (runs["rm"][0], runs["rm"][2]):
        model = load_reward_model(folder)
        scores = (response_scores(ModelReward(str(folder)), WORLD) - model.bias.double()) / model.gain.double()
        best = (reference + scores / BETAS[-1]).softmax(-1) - reference.exp()
        golds.append((best * WORLD.rewards).sum().item())
        proxies.append((best * scores).sum().item())
    assert rows[1]["last gold"] == pytest.approx(sum(golds) / 2, abs=1e-4)
    assert rows[1]["last proxy"] == pytest.approx(sum(proxies) / 2, abs=1e-4)
    assert found.curves["gold"].lines["300 pairs"][-1][1] == pytest.approx(sum(golds) / 2, abs=1e-4)
    assert [*found.curves["gold"].lines] == ["100 pairs", "300 pairs", "the true reward itself"]
    assert "gold, 100 pairs" in found.curves["gold_and_proxy"].lines


def test_without_a_base_the_reference_is_the_worlds_own(runs: dict[str, list[Path]]):
    with_base, without = (
        overoptimisation(given, world=WORLD, betas=BETAS).tables["overoptimisation"].rows
        for given in (runs, {"rm": runs["rm"]})
    )
    assert with_base[0]["last KL"] != pytest.approx(float(without[0]["last KL"]), abs=1e-3)


def test_there_must_be_reward_models_of_a_number_of_pairs(tmp_path: Path):
    with pytest.raises(ConfigError, match="rm"):
        overoptimisation({"base": []}, world=WORLD, betas=BETAS)
    run = write_run(tmp_path / "rm", num_pairs=None, seed=0)
    with pytest.raises(DataError, match="num_pairs"):
        overoptimisation({"rm": [run]}, world=WORLD, betas=BETAS)
