"""Values, gradients and several prompts: against plain walks over the list of responses."""

import itertools
import math

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.losses import DPOLoss, IPOLoss
from alignlab.worlds.exact import Automaton, Bandit, ExactWorld, RandomTable, TokenCounts, population_optimum

EXACT = {"rtol": 0.0, "atol": 1e-10}


def bumpy(tokens: tuple[int, ...], prompt: int = 0) -> float:
    return sum(math.sin(3 * token + place + 2 * prompt) for place, token in enumerate(tokens))


def some_policy(world: ExactWorld, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(world.rewards.shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


def beginning_with(world: ExactWorld, prefix: tuple[int, ...]) -> list[int]:
    return [n for n, tokens in enumerate(world.responses) if tokens[: len(prefix)] == prefix]


@pytest.mark.parametrize(
    ("vocab_size", "max_length", "eos_id"), [(3, 3, 0), (4, 2, 3), (4, 3, 1), (2, 4, 0), (5, 1, 2)]
)
def test_tables_and_responses_are_two_views_of_one_policy(vocab_size, max_length, eos_id):
    world = ExactWorld(vocab_size, max_length, bumpy, 1.0, eos_id)
    policy = some_policy(world)
    tables = world.tree.conditionals(policy)
    torch.testing.assert_close(world.tree.on_responses(tables).sum(-1), policy, **EXACT)
    for depth in range(max_length):
        for row, prefix in enumerate(world.tree.prefixes(depth)):
            mass = policy[beginning_with(world, prefix)].exp().sum()
            assert world.tree.reach(policy)[depth][row].exp().item() == pytest.approx(mass.item(), abs=1e-12)
            for token in range(vocab_size):
                below = policy[beginning_with(world, (*prefix, token))].exp().sum()
                assert tables[depth][row, token].exp().item() == pytest.approx((below / mass).item(), abs=1e-12)


def test_every_response_knows_its_number_and_nothing_else_has_one():
    world = ExactWorld(4, 3, bumpy, 1.0, 2)
    assert [world.tree.number(tokens) for tokens in world.responses] == list(range(len(world.responses)))
    assert world.lengths.tolist() == [len(tokens) for tokens in world.responses]
    for wrong in ((), (0,), (0, 1, 3, 2), (0, 2, 2), (0, 1, 3, 0), (7, 2)):
        with pytest.raises(ValueError, match="no response"):
            world.tree.number(wrong)


@pytest.mark.parametrize("penalised", [True, False])
def test_values_are_expectations_over_the_responses_that_go_on(penalised):
    """V and Q by their definition: the mean over all completions of what is still to come."""
    world = ExactWorld(3, 3, bumpy, 0.7, peakedness=1.0)
    policy = some_policy(world)
    own, reference = world.tree.conditionals(policy), world.tree.conditionals(world.ref_logprobs)
    costs = world.tree.on_responses([world.beta * (a - b) for a, b in zip(own, reference, strict=True)])
    to_come = costs.flip(-1).cumsum(-1).flip(-1) * penalised  # [N, L]: of this token and all after it
    found = world.values(policy, penalised=penalised)
    for depth in range(world.max_length):
        for row, prefix in enumerate(world.tree.prefixes(depth)):
            for tokens, answer in [(prefix, found.values[depth][row])] + [
                ((*prefix, token), found.action_values[depth][row, token]) for token in range(3)
            ]:
                below = beginning_with(world, tokens)
                weights = policy[below].softmax(0)
                expected = (weights * (world.rewards[below] - to_come[below, depth])).sum()
                assert answer.item() == pytest.approx(expected.item(), abs=1e-10)


def test_the_value_of_the_empty_prefix_is_the_objective_and_advantages_have_mean_zero():
    world = ExactWorld(4, 3, bumpy, 0.3, num_prompts=2)
    policy = some_policy(world)
    found = world.values(policy)
    torch.testing.assert_close(found.values[0].mean(), world.objective(policy), **EXACT)
    for table, advantage in zip(world.tree.conditionals(policy), found.advantages, strict=True):
        assert (table.exp() * advantage).sum(-1).abs().max() < 1e-12


def test_the_policy_gradient_theorem_holds():
    """The gradient of J by autograd, and as a sum over prefixes of reach x pi x advantage x grad log pi."""
    world = ExactWorld(3, 3, bumpy, 0.4)
    logits = [torch.randn(2**depth, 3, dtype=torch.float64, requires_grad=True) for depth in range(3)]
    policy = world.tree.on_responses([table.log_softmax(-1) for table in logits]).sum(-1)
    expected = torch.autograd.grad(world.objective(policy), logits, retain_graph=True)
    found, reach = world.values(policy.detach()), world.tree.reach(policy.detach())
    for table, gradient, advantage, arrived in zip(logits, expected, found.advantages, reach, strict=True):
        pi = table.detach().softmax(-1)
        by_hand = arrived.exp().unsqueeze(-1) * pi * advantage  # softmax: sum_a' pi' A' = 0
        torch.testing.assert_close(by_hand, gradient, **EXACT)


def test_several_prompts_are_several_worlds():
    both = ExactWorld(3, 2, bumpy, 0.5, num_prompts=2)
    alone = [ExactWorld(3, 2, lambda t, p=p: bumpy(t, p), 0.5) for p in range(2)]
    for prompt, world in enumerate(alone):
        torch.testing.assert_close(both.rewards[prompt], world.rewards)
        world.ref_logprobs = both.ref_logprobs[prompt]
    assert not torch.allclose(both.ref_logprobs[0], both.ref_logprobs[1])
    policy = some_policy(both)

    def mean(figure) -> float:
        return sum(figure(world, policy[prompt]).item() for prompt, world in enumerate(alone)) / 2

    for name in ("objective", "regret", "kl", "expected_reward"):
        found = getattr(both, name)(policy).item()
        assert found == pytest.approx(mean(lambda world, own, name=name: getattr(world, name)(own)), abs=1e-12)
    torch.testing.assert_close(both.optimum()[1], alone[1].optimum(), **EXACT)
    torch.testing.assert_close(both.ipo_optimum(0.3)[0], alone[0].ipo_optimum(0.3), **EXACT)
    loss = DPOLoss(0.5)
    assert both.population_loss(loss, policy).item() == pytest.approx(
        mean(lambda world, own: world.population_loss(loss, own)), abs=1e-12
    )
    assert both.likelihood_gap(both.rewards + torch.tensor([[3.0], [-1.0]])).item() == pytest.approx(0.0, abs=1e-12)


def test_population_dpo_in_a_world_of_prompts_has_no_regret():
    world = ExactWorld(3, 3, bumpy, 0.5, num_prompts=3)
    assert abs(world.regret(population_optimum(world, DPOLoss(0.5)))) < 1e-9


def test_ipo_under_another_behaviour_policy_has_the_closed_form_of_that_one():
    """Azar et al.: p(y > mu), mu being who wrote the pairs; with the reference's it is another policy."""
    world = ExactWorld(4, 2, bumpy, 0.5)
    mu = some_policy(world, seed=5)
    found = population_optimum(world, IPOLoss(0.5), pairs=world.pairs(behaviour=mu), max_iterations=500)
    assert world.with_reference(world.ipo_optimum(0.5, behaviour=mu)).kl(found) < 1e-9
    assert world.with_reference(world.ipo_optimum(0.5)).kl(found) > 1e-4


def test_win_rates_over_levels_of_reward_are_win_rates_over_responses():
    world = ExactWorld(4, 3, TokenCounts([0.0, 1.0, -1.0, 0.5]), 0.5)
    mu = world.ref_logprobs.exp()
    assert len(world.rewards.unique()) < len(world.rewards)
    torch.testing.assert_close(world.win_rates(mu), world.preferences() @ mu, **EXACT)


def test_the_share_of_the_optimum_by_hand():
    world = ExactWorld(2, 1, lambda t: math.log(3) * t[0], 1.0, reference=lambda prefix: (math.log(3), 0.0))
    assert world.share_of_optimum(world.ref_logprobs).item() == 0
    assert world.share_of_optimum(world.optimum()).item() == pytest.approx(1.0)
    halfway = torch.tensor([0.6, 0.4], dtype=torch.float64).log()
    j = 0.4 * math.log(3) - (0.6 * math.log(0.6 / 0.75) + 0.4 * math.log(0.4 / 0.25))
    start, best = 0.25 * math.log(3), math.log(1.5)
    assert world.share_of_optimum(halfway).item() == pytest.approx((j - start) / (best - start))


def test_the_likelihood_gap_is_a_kl_of_coins():
    world = ExactWorld(3, 1, Bandit([0.0, 1.0, -0.5]), 1.0)
    scores = torch.tensor([0.2, 0.9, 0.1], dtype=torch.float64)
    total = 0.0
    first, second, preference, weight = world.pairs()
    for i, j, p, w in zip(first.tolist(), second.tolist(), preference.tolist(), weight.tolist(), strict=True):
        q = 1 / (1 + math.exp(scores[j] - scores[i]))
        total += w * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert world.likelihood_gap(scores).item() == pytest.approx(total, abs=1e-12)


def test_rewards_that_read_order_and_rewards_that_do_not():
    counts, automaton, table = TokenCounts([0, 2.0, -1.0]), Automaton(3, num_states=2, seed=4), RandomTable(seed=1)
    for a, b in itertools.permutations([(1, 2, 2, 0), (2, 1, 2, 0), (2, 2, 1, 0)], 2):
        assert counts(a) == counts(b) == 0.0
    assert len({automaton(t) for t in [(1, 2, 2, 0), (2, 1, 2, 0), (2, 2, 1, 0)]}) > 1
    pay = automaton.pay()
    # from state 0: token 1 -> (0 + 1 + 1) % 2 = 0; token 2 -> 1; token 0 ends
    assert automaton((1, 2, 0)) == pytest.approx(pay[0][1] + pay[0][2] + pay[1][0])
    assert table((1, 2)) == RandomTable(seed=1)((1, 2)) != table((2, 1))
    # of prompt 1 every weight has moved on by one token
    assert counts((1,), 1) == -1.0 and counts((2,), 1) == 2.0 and counts((0,), 1) == 0.0


def test_a_world_too_large_for_its_pairs_says_what_to_do():
    world = ExactWorld(8, 5, bumpy, 0.5)
    assert len(world.responses) == 19608
    with pytest.raises(ConfigError, match="fresh"):
        world.pairs()
    assert world.regret(world.optimum()).abs() < 1e-12
    assert world.win_rates(world.ref_logprobs.exp()).shape == (19608,)
