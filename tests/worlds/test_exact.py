"""The exact world: its identities to 1e-9, and that the preference losses reach the optimum they are said to have."""

import itertools
import math

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.losses import DPOLoss, HingeLoss, IPOLoss, RobustDPOLoss
from alignlab.worlds.exact import ExactWorld, TabularPolicy, population_optimum

EXACT = {"rtol": 0.0, "atol": 1e-9}


def bumpy(tokens: tuple[int, ...]) -> float:
    """A reward that depends on every token and its place."""
    return sum(math.sin(3 * token + place) for place, token in enumerate(tokens))


def small_world(beta: float = 0.5, **settings) -> ExactWorld:
    return ExactWorld(4, 3, bumpy, beta, **settings)


def some_policy(world: ExactWorld, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(len(world.responses), generator=generator, dtype=torch.float64)).log_softmax(0)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p.exp() * (p - q)).sum()


def test_the_responses_of_two_tokens_written_out():
    world = ExactWorld(3, 2, bumpy, 1.0)
    assert world.responses == [(0,), (1, 0), (2, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert world.lengths.tolist() == [1, 2, 2, 2, 2, 2, 2]
    other_end = ExactWorld(3, 1, bumpy, 1.0, eos_id=2)
    assert other_end.responses == [(2,), (0,), (1,)]


def test_the_responses_are_all_strings_cut_at_their_first_end():
    world = small_world(eos_id=1)
    cut = set()
    for string in itertools.product(range(4), repeat=3):
        cut.add(string[: string.index(1) + 1] if 1 in string else string)
    assert set(world.responses) == cut and len(world.responses) == len(cut) == 1 + 3 + 9 + 27


def test_everything_is_float64_and_adds_up_to_one():
    world = small_world()
    for logprobs in (world.ref_logprobs, world.optimum(), world.ipo_optimum(0.5), TabularPolicy(world.ref_logprobs)()):
        assert logprobs.dtype == torch.float64
        assert logprobs.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert world.rewards.tolist() == [bumpy(tokens) for tokens in world.responses]
    assert all(x.dtype == torch.float64 for x in (world.objective(world.optimum()), world.rewards))


def test_a_world_solved_by_hand():
    """One place, two tokens: reference (3/4, 1/4), rewards 0 and ln 3, beta 1: Z = 3/4 + 3/4, pi* = (1/2, 1/2)."""
    world = ExactWorld(2, 1, lambda t: math.log(3) * t[0], 1.0, reference=lambda prefix: (math.log(3), 0.0))
    torch.testing.assert_close(world.ref_logprobs.exp(), torch.tensor([0.75, 0.25], dtype=torch.float64))
    torch.testing.assert_close(world.optimum().exp(), torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert world.log_partition.item() == pytest.approx(math.log(1.5))
    kl_to_reference = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert world.kl(world.optimum()).item() == pytest.approx(kl_to_reference)
    assert world.objective(world.optimum()).item() == pytest.approx(0.5 * math.log(3) - kl_to_reference)
    assert world.regret(world.ref_logprobs).item() == pytest.approx(math.log(1.5) - 0.25 * math.log(3))
    # p(y > mu): 3/4 * 1/2 + 1/4 * 1/4 = 7/16 and 3/4 * 3/4 + 1/4 * 1/2 = 11/16
    assert world.preferences()[1, 0].item() == pytest.approx(0.75)
    odds = (world.ipo_optimum(0.5)[1] - world.ipo_optimum(0.5)[0]).item()
    assert odds == pytest.approx(-math.log(3) + (11 / 16 - 7 / 16) / 0.5)


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_regret_is_beta_times_the_kl_to_the_optimum(beta, seed):
    world = small_world(beta)
    policy, best = some_policy(world, seed), world.optimum()
    torch.testing.assert_close(world.regret(policy), beta * kl(policy, best), **EXACT)
    torch.testing.assert_close(world.objective(best), beta * world.log_partition, **EXACT)
    torch.testing.assert_close(world.kl(policy), kl(policy, world.ref_logprobs), **EXACT)
    assert abs(world.regret(best)) < 1e-12 and world.regret(policy) > 0
    assert world.kl(world.ref_logprobs) == 0


def test_the_implied_reward_of_the_optimum_is_the_reward():
    """Up to one constant: eq. 5 of Rafailov et al. 2023, on which DPO stands."""
    world = small_world()
    implied = world.beta * (world.optimum() - world.ref_logprobs + world.log_partition)
    torch.testing.assert_close(implied, world.rewards, **EXACT)


def test_the_gradient_of_the_objective_vanishes_at_the_optimum_alone():
    world = small_world()
    for start, at_rest in ((world.optimum(), True), (world.ref_logprobs, False)):
        policy = TabularPolicy(start)
        world.objective(policy()).backward()
        assert (policy.logits.grad.abs().max() < 1e-12) == at_rest


def test_the_default_reference_is_peaky_and_a_pure_function_of_the_seed():
    """A nearly uniform reference would hide mistakes."""
    world, again, other = small_world(seed=3), small_world(seed=3), small_world(seed=4)
    assert torch.equal(world.ref_logprobs, again.ref_logprobs)
    assert not torch.allclose(world.ref_logprobs, other.ref_logprobs)
    entropy = -(world.ref_logprobs.exp() * world.ref_logprobs).sum()
    assert entropy < 0.8 * math.log(len(world.responses))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    small_world()
    assert torch.equal(torch.rand(1), expected)  # the global generator is left alone


def test_a_policy_given_token_by_token_adds_up_to_one():
    world = small_world()
    table = torch.randn(4, 4, dtype=torch.float64)
    logprobs = world.sequence_logprobs(lambda prefix: table[prefix[-1] if prefix else 0].tolist())
    assert logprobs.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    steps = table.log_softmax(-1)
    number = world.responses.index((2, 3, 0))
    assert logprobs[number].item() == pytest.approx((steps[0, 2] + steps[2, 3] + steps[3, 0]).item())


def test_population_pairs_are_all_pairs_and_weighted_by_the_reference():
    world = ExactWorld(3, 2, bumpy, 1.0)
    first, second, preference, weight = world.pairs()
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == list(itertools.combinations(range(7), 2))
    mu = world.ref_logprobs.exp()
    torch.testing.assert_close(weight, mu[first] * mu[second] / (0.5 * (1 - (mu**2).sum())), **EXACT)
    torch.testing.assert_close(preference, world.preferences()[first, second], **EXACT)


def test_the_population_loss_is_the_expectation_over_draws_and_labels():
    """A double loop over both draws, and over the label of each pair."""
    world = ExactWorld(3, 2, bumpy, 1.0)
    loss, policy, mu = DPOLoss(0.7), some_policy(world), world.ref_logprobs.exp()
    total = drawn = 0.0
    for i, j in itertools.permutations(range(7), 2):
        chosen, rejected = torch.tensor([i]), torch.tensor([j])
        value = loss(
            world.pair_logprobs(policy, chosen, rejected), world.pair_logprobs(world.ref_logprobs, chosen, rejected)
        ).loss.item()
        total += (mu[i] * mu[j]).item() * world.preferences()[i, j].item() * value
        drawn += (mu[i] * mu[j]).item() / 2
    assert world.population_loss(loss, policy).item() == pytest.approx(total / drawn, abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_tabular_policy_trained_with_dpo_on_the_population_has_no_regret(seed):
    """Plain L-BFGS on the policy's own logits, as a training loop would do it."""
    world = small_world(seed=seed)
    policy, pairs, loss = TabularPolicy(world.ref_logprobs), world.pairs(), DPOLoss(world.beta)
    optimizer = torch.optim.LBFGS(
        policy.parameters(), max_iter=2000, tolerance_grad=1e-16, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = world.population_loss(loss, policy(), pairs=pairs)
        value.backward()
        return value

    assert world.regret(policy()) > 0.1
    optimizer.step(closure)
    assert world.regret(policy()) < 1e-9


@pytest.mark.parametrize(("vocab_size", "max_length", "beta"), [(4, 3, 0.5), (4, 4, 0.1), (6, 4, 0.1)])
def test_population_dpo_and_ipo_reach_their_closed_forms(vocab_size, max_length, beta):
    """The largest has 781 responses, of which the reference gives the rarest 1e-10."""
    world = ExactWorld(vocab_size, max_length, bumpy, beta)
    assert len(world.responses) < 1000
    assert DPOLoss.optimum == "rlhf" and IPOLoss(beta).optimum == "ipo"
    assert abs(world.regret(population_optimum(world, DPOLoss(beta)))) < 1e-9
    ipo = population_optimum(world, IPOLoss(beta))
    assert abs(kl(ipo, world.ipo_optimum(beta))) < 1e-9
    assert world.regret(ipo) > 1e-3  # another optimum: IPO maximises the win rate, not the reward


def test_robust_dpo_undoes_flipped_labels_and_plain_dpo_does_not():
    world = small_world()
    pairs = world.pairs()
    flipped = pairs._replace(preference=0.8 * pairs.preference + 0.2 * (1 - pairs.preference))
    robust = RobustDPOLoss(world.beta, label_smoothing=0.2)
    assert robust.optimum == "rlhf_under_flips"
    assert abs(world.regret(population_optimum(world, robust, pairs=flipped))) < 1e-9
    assert world.regret(population_optimum(world, DPOLoss(world.beta), pairs=flipped)) > 1e-2


@pytest.mark.parametrize("make", [lambda b: DPOLoss(b, 0.2), lambda b: IPOLoss(b, True), HingeLoss])
def test_losses_that_claim_no_closed_form_have_neither(make):
    world = small_world()
    loss = make(world.beta)
    assert loss.optimum is None
    found = population_optimum(world, loss)
    assert kl(found, world.optimum()) > 1e-3 and kl(found, world.ipo_optimum(world.beta)) > 1e-3


def test_a_policy_that_never_says_some_things_has_finite_numbers():
    world = small_world()
    greedy = torch.full_like(world.rewards, -math.inf)
    greedy[5] = 0.0
    assert world.objective(greedy).item() == pytest.approx(
        (world.rewards[5] + world.beta * world.ref_logprobs[5]).item(), abs=1e-12
    )
    torch.testing.assert_close(world.regret(greedy), -world.beta * world.optimum()[5], **EXACT)


def test_what_is_no_policy_is_refused():
    world = small_world()
    with pytest.raises(ConfigError, match="add up to"):
        world.regret(world.ref_logprobs + 1)
    with pytest.raises(ConfigError, match="add up to nan"):
        world.kl(world.ref_logprobs * math.nan)
    with pytest.raises(ConfigError, match="expected one for each of the 40"):
        world.objective(world.ref_logprobs[1:])


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ((4, 3, bumpy, 0.0), "beta=0.0"),
        ((1, 3, bumpy, 1.0), "vocab_size=1"),
        ((4, 0, bumpy, 1.0), "max_length=0"),
        ((4, 3, bumpy, 1.0, 4), "eos_id=4"),
        ((50, 8, bumpy, 1.0), "responses"),
    ],
)
def test_a_world_that_cannot_be_listed_is_a_config_error(settings, name):
    with pytest.raises(ConfigError, match=name):
        ExactWorld(*settings)
