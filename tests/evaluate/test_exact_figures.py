"""Exact figures of networks and reward models, against the world's own numbers and against sampling."""

import math

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.evaluate.exact import (
    PolicyMonitor,
    RewardMonitor,
    exact_figures,
    ipo_figures,
    network_scores,
    response_scores,
)
from alignlab.models.source import ModelSource
from alignlab.worlds.exact import ExactReward, ExactWorld, TokenCounts, build_tokenizer, every_response

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def make_world(**settings) -> ExactWorld:
    return ExactWorld(4, 3, TokenCounts([0.2, 1.0, -1.0, 0.5]), 0.5, **settings)


def make_source(seed: int = 0) -> ModelSource:
    settings = {"model_type": "llama", "num_key_value_heads": 2, "max_position_embeddings": 16, **SHAPE}
    return ModelSource(
        architecture=settings | {"initializer_range": 0.4}, tokenizer=build_tokenizer(4), seed=seed, dropout=0.0
    )


def some_policy(world: ExactWorld, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(world.rewards.shape, generator=generator, dtype=torch.float64).log_softmax(-1)


def test_the_figures_of_a_policy_by_hand():
    """One place, two tokens, reference (3/4, 1/4), rewards 0 and ln 3, beta 1: J* = ln 1.5, at (1/2, 1/2)."""
    world = ExactWorld(2, 1, lambda t: math.log(3) * t[0], 1.0)
    reference = torch.tensor([0.75, 0.25], dtype=torch.float64).log()
    half = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    best, start = exact_figures(world, half, reference), exact_figures(world, reference, reference)
    kl = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert best["share"] == pytest.approx(1.0) and best["regret"] == pytest.approx(0.0, abs=1e-12)
    assert best["kl"] == pytest.approx(kl) and best["optimal_kl"] == pytest.approx(kl)
    assert best["reward"] == pytest.approx(0.5 * math.log(3)) and best["objective"] == pytest.approx(math.log(1.5))
    assert start["share"] == 0 and start["kl"] == 0 and start["reward"] == pytest.approx(0.25 * math.log(3))
    assert start["regret"] == pytest.approx(math.log(1.5) - 0.25 * math.log(3))


def test_the_reference_of_the_figures_is_the_one_given_not_the_worlds():
    world = make_world()
    reference, policy = some_policy(world, 1), some_policy(world, 2)
    found = exact_figures(world, policy, reference)
    assert found["kl"] == pytest.approx((policy.exp() * (policy - reference)).sum().item())
    optimum = (reference + world.rewards / 0.5).log_softmax(-1)
    assert found["regret"] == pytest.approx(0.5 * (policy.exp() * (policy - optimum)).sum().item())
    assert found["regret"] != pytest.approx(world.regret(policy).item(), rel=1e-3)


def test_ipo_is_scored_by_what_it_maximises():
    """Win rate against mu less tau KL: 1 at its own closed form, which is not the optimum of the reward."""
    world = make_world()
    start = some_policy(world, 3)
    aimed_at = world.with_reference(start).ipo_optimum(0.2, behaviour=world.ref_logprobs)
    found = ipo_figures(world, aimed_at, start, tau=0.2)
    assert found["ipo_share"] == pytest.approx(1.0, abs=1e-9) and abs(found["ipo_regret"]) < 1e-9
    assert exact_figures(world, aimed_at, start)["share"] < 0.999
    assert ipo_figures(world, start, start, tau=0.2)["ipo_share"] == 0


def test_what_is_no_distribution_is_refused():
    world = make_world()
    with pytest.raises(ConfigError, match="add up to"):
        exact_figures(world, world.ref_logprobs - 0.1, world.ref_logprobs)


def test_a_monitor_reads_the_policy_as_it_is_now_and_its_reference_once():
    world, policy = make_world(), make_source().load_policy().train()
    asked = []

    def reference(sequences):
        asked.append(sequences.num_rows)
        return policy(sequences).logprobs

    monitor = PolicyMonitor(world, policy, reference)
    first = monitor()
    assert first["kl"] == pytest.approx(0.0, abs=1e-6) and first["share"] == pytest.approx(0.0, abs=1e-5)
    assert policy.training and asked == [40]
    with torch.no_grad():
        policy.model.lm_head.weight.add_(0.1 * torch.randn(policy.model.lm_head.weight.shape))
    second = monitor()
    assert asked == [40] and second["kl"] > 1e-3
    assert {"ipo_share", "ipo_regret"} <= set(PolicyMonitor(world, policy, None, ipo_tau=0.3)())


def test_a_reward_model_is_scored_by_its_likelihood_and_by_the_policy_it_leads_to():
    world, model = make_world(num_prompts=3), make_source().load_reward_model()
    scores = network_scores(model, world)
    torch.testing.assert_close(scores, network_scores(model, world, batch_size=7), atol=1e-5, rtol=0)
    with torch.no_grad():
        assert scores.flatten()[50].item() == pytest.approx(model(every_response(world).take(slice(50, 51))).item())
    found = RewardMonitor(world, model)()
    assert found["likelihood_gap"] == pytest.approx(world.likelihood_gap(scores).item())
    best = (world.ref_logprobs + scores / world.beta).log_softmax(-1)
    assert found["regret"] == pytest.approx(world.regret(best).item())


def test_the_worlds_reward_put_to_every_text_is_the_worlds_reward():
    for world in (make_world(), make_world(num_prompts=2)):
        torch.testing.assert_close(response_scores(ExactReward(world), world), world.rewards, atol=1e-6, rtol=0)
        assert exact_figures(world, world.optimum(), world.ref_logprobs)["share"] == pytest.approx(1.0)


def test_a_reward_reads_the_text_that_a_sampler_would_write():
    """Of the response that ends at once: nothing, not the five letters of an end token."""
    world, seen = make_world(), []

    def lengths(prompts, responses):
        seen.extend(responses)
        return torch.tensor([float(len(response)) for response in responses])

    tokens = [sum(token != world.eos_id for token in response) for response in world.responses]
    assert response_scores(lengths, world).tolist() == tokens and seen.count("") == 1
