"""Gradients of real methods on a tiny network: unbiased where they should be, and shrinking errors."""

from functools import partial
from typing import Any

import pytest
import torch

from alignlab.batches import Sequences
from alignlab.errors import ConfigError
from alignlab.evaluate.studies.cases import Case, make_cases
from alignlab.evaluate.studies.critics import ExactValues
from alignlab.evaluate.studies.gradients import (
    Truth,
    all_replies,
    compare,
    exact_gradient,
    expected,
    float32_rewards,
    gradients,
    move,
    parts,
    sample,
    trust_exact_values,
)
from alignlab.models.source import ModelSource
from alignlab.worlds.exact import Automaton, ExactWorld, Script, build_tokenizer

VOCABULARY, GROUP = 3, 4
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
FLOAT32 = 1e-6  # Llama's norms compute in float32, whatever the weights are
UNBIASED = ["PPO(1)", "PPO(1), exact V", "PPO(0.95), exact V", "PPO(0), exact V"]
BIASED = ["PPO(0.95)", "PPO(0)"]


def source(**settings: Any) -> ModelSource:
    return ModelSource(architecture=ARCHITECTURE, tokenizer=build_tokenizer(VOCABULARY), **settings)


def make(reward: Any) -> tuple[dict[str, Case], Truth]:
    world = float32_rewards(ExactWorld(VOCABULARY, 3, reward, 0.3))
    policy = source().load_policy()
    policy.double()
    cases = make_cases(policy, world, GROUP)
    for case in cases:
        case.method.plan(seed=0, total_steps=1, micro_batch_size=512)
    move(policy, 0.1, seed=0)
    truth = exact_gradient(cases[0].method, world)
    trust_exact_values(cases, truth)
    return {case.name: case for case in cases}, truth


@pytest.fixture(scope="module")
def tried() -> tuple[dict[str, Case], Truth]:
    return make(Automaton(VOCABULARY))


def test_the_policy_has_left_its_reference_and_is_peaky(tried: tuple[dict[str, Case], Truth]):
    _, truth = tried
    assert 0.05 < truth.world.kl(truth.logprobs) < 2
    assert truth.logprobs.max().exp() > 3 / len(truth.logprobs)


@pytest.mark.parametrize("name", UNBIASED)
def test_the_expected_gradient_of_ppo_is_that_of_the_objective(name: str, tried: tuple[dict[str, Case], Truth]):
    cases, truth = tried
    assert cases[name].is_unbiased and expected(cases[name], truth).error < FLOAT32


@pytest.mark.parametrize("name", BIASED)
def test_lambda_below_1_is_biased_without_values(name: str, tried: tuple[dict[str, Case], Truth]):
    cases, truth = tried
    assert not cases[name].is_unbiased and expected(cases[name], truth).error > 0.02


def test_without_a_reward_ppos_gradient_is_that_of_the_kl():
    """The penalty alone, through token rewards, GAE and the clipped loss."""
    cases, truth = make(lambda tokens: 0.0)
    assert truth.gradient.norm() > 0.01
    assert expected(cases["PPO(1)"], truth).error < FLOAT32


def test_more_replies_less_error_until_only_the_bias_is_left(tried: tuple[dict[str, Case], Truth]):
    """32 times the replies: sqrt(32) = 5.7 times less error. The rollout is one of the fairer ones."""
    cases, truth = tried
    rollout = sample(cases["RLOO"].method, truth.world, 4096, seed=1)
    for name in ("PPO(1)", "PPO(1), whitened", "RLOO", "RLOO, k2 in the loss", "Dr. GRPO, k1"):
        few = [compare(cases[name], part, truth).error for part in parts(rollout, 128, 32)]
        many = compare(cases[name], rollout, truth)
        assert many.cosine > 0.99, name
        assert many.error < 0.35 * (sum(error**2 for error in few) / len(few)) ** 0.5, name
    assert compare(cases["GRPO"], rollout, truth).error > 0.1


def test_without_a_critic_dr_grpo_is_rloo_but_for_its_factor(tried: tuple[dict[str, Case], Truth]):
    cases, truth = tried
    rollout = sample(cases["RLOO"].method, truth.world, 64, seed=1)
    rloo, dr_grpo = (compare(cases[name], rollout, truth) for name in ("RLOO", "Dr. GRPO, k1"))
    assert rloo.error == pytest.approx(dr_grpo.error, rel=1e-5) and rloo.error > 0.01


def test_parts_of_a_rollout_share_no_reply(tried: tuple[dict[str, Case], Truth]):
    cases, truth = tried
    rollout = sample(cases["RLOO"].method, truth.world, 20, seed=0)
    found = parts(rollout, 8, 5)
    assert [part.sequences.num_rows for part in found] == [8, 8]
    assert found[0].responses + found[1].responses == rollout.responses[:16]
    assert torch.equal(torch.cat([part.sequences.labels for part in found]), rollout.sequences.labels[:16])


def test_all_replies_are_all_responses(tried: tuple[dict[str, Case], Truth]):
    _, truth = tried
    rollout, script = all_replies(truth.world), Script(truth.world)
    assert [script.number(text) for text in rollout.responses] == list(range(15))
    assert rollout.complete.tolist() == [tokens[-1] == 0 for tokens in truth.world.responses]


@pytest.mark.parametrize("eos_id", [0, 1])
def test_exact_values_are_what_replies_that_go_on_bring(eos_id: int):
    """The mean, over the responses that begin so, of the reward less what their further tokens cost."""
    world = ExactWorld(3, 3, Automaton(3), 0.3, eos_id)
    logprobs = (2 * torch.randn(15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).log_softmax(0)
    own, ref = (world.tree.on_responses(world.tree.conditionals(x)) for x in (logprobs, world.ref_logprobs))
    sequences = all_replies(world).sequences
    values = ExactValues(world, logprobs)(sequences)
    assert not values[:, -1].any()
    for number, tokens in enumerate(world.responses):
        for t in range(len(tokens)):
            below = [n for n, other in enumerate(world.responses) if other[:t] == tokens[:t]]
            weights = logprobs[below].softmax(0)
            to_come = world.rewards[below] - world.beta * (own - ref)[below, t:].sum(-1)
            assert values[number, t].item() == pytest.approx((weights * to_come).sum().item(), abs=1e-12)
        assert not values[number, len(tokens) :].any()
    short = Sequences(*(x[:1] for x in sequences)).take(torch.tensor([0]))
    assert torch.equal(ExactValues(world, logprobs)(short), values[:1, : short.labels.shape[1]])


def test_exact_values_know_one_prompt():
    world = ExactWorld(3, 2, Automaton(3), 0.3, num_prompts=2)
    with pytest.raises(ConfigError, match="num_prompts=2"):
        ExactValues(world, world.ref_logprobs)


def test_the_study_says_what_was_found():
    world = ExactWorld(VOCABULARY, 2, Automaton(VOCABULARY), 0.3)
    found = gradients({}, world=world, model=partial(source), sizes=[64, 512], repeats=2, group_size=GROUP)
    rows: list[dict[str, Any]] = found.tables["gradients"].rows
    assert [*rows[0]] == ["method", "64", "512", "endless", "cosine", "compared"]
    by_name = {row["method"]: row for row in rows}
    assert by_name["PPO(1)"]["endless"] < FLOAT32 and by_name["RLOO"]["endless"] == ""
    assert by_name["PPO(1), whitened"]["compared"] == by_name["GRPO"]["compared"] == "direction"
    assert found.metrics["cosine/ppo_1_exact_v"] == by_name["PPO(1), exact V"]["cosine"] > 0.9
    assert found.curves["gradient_errors"].lines["RLOO"] == [(64, by_name["RLOO"]["64"]), (512, by_name["RLOO"]["512"])]
