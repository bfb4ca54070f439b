"""Studies without a network: their claims, and their numbers against plain loops over the responses."""

import itertools
import math
from typing import Any

import pytest
import torch

from alignlab.evaluate.studies.advantages import Quality, advantages, exact_truth, quality
from alignlab.evaluate.studies.bandit import bandit, certain, descend, three_arms
from alignlab.evaluate.studies.estimators import CONVENTIONS, Convention, estimators
from alignlab.evaluate.studies.policies import PrefixPolicy, token_logprobs, token_mask
from alignlab.evaluate.studies.vectors import cosine, gradient_of, misdirection, relative_error
from alignlab.losses import DPOLoss, IPOLoss, RobustDPOLoss
from alignlab.worlds.exact import Automaton, ExactWorld

EXACT = 1e-10


def small_world(vocab_size: int = 3, max_length: int = 3, beta: float = 0.5, **settings: Any) -> ExactWorld:
    return ExactWorld(vocab_size, max_length, Automaton(vocab_size), beta, peakedness=1.5, **settings)


# -- vectors and policies -----------------------------------------------------------------------------------------
def test_vectors_by_hand():
    expected = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 9.0]), expected) == pytest.approx(1.0)
    assert cosine(torch.tensor([6.0, 8.0]), expected) == pytest.approx(1.0)
    assert cosine(torch.tensor([-4.0, 3.0]), expected) == pytest.approx(0.0)
    assert cosine(1e-15 * expected, expected) == 0.0  # rounding of nothing has no direction
    assert misdirection(torch.tensor([6.0, 8.0]), expected) == pytest.approx(0.0, abs=1e-3)
    assert misdirection(torch.tensor([5.0, 0.0]), expected) == pytest.approx(0.8)
    assert misdirection(-expected, expected) == 1.0


def test_a_gradient_is_one_vector_and_has_a_0_for_what_plays_no_part():
    x, y = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([5.0], requires_grad=True)
    assert gradient_of((x**2).sum(), [x, y]).tolist() == [2.0, 4.0, 0.0]


def test_a_prefix_policy_starts_from_the_reference():
    world = small_world()
    for distance in (0.0, 1.0):
        logprobs = PrefixPolicy(world, distance=distance)()
        assert not logprobs[~token_mask(world)].any()
        assert logprobs.sum(-1).exp().sum().item() == pytest.approx(1, abs=1e-12)
        torch.testing.assert_close(token_logprobs(world, logprobs.sum(-1)), logprobs, rtol=0, atol=1e-12)
        assert (world.kl(logprobs.sum(-1)).item() < 1e-12) == (distance == 0)


# -- estimators of the KL -----------------------------------------------------------------------------------------
def errors(world: ExactWorld, **settings: Any) -> dict[tuple[str, str, str], dict[str, Any]]:
    rows: list[dict[str, Any]] = estimators({}, world=world, **settings).tables["kl_gradients"].rows
    return {(row["paid in"], row["estimator"], row["per"]): row for row in rows}


@pytest.mark.parametrize("num_prompts", [None, 2])
def test_k1_in_the_reward_and_k2_of_whole_replies_are_exact_and_nothing_else_is(num_prompts: int | None):
    found = errors(small_world(4, 3, num_prompts=num_prompts))
    exact = {("reward", "k1", "token"), ("reward", "k1", "sequence"), ("loss", "k2", "sequence")}
    for key, row in found.items():
        assert row["error"] < EXACT if key in exact else row["error"] > 0.05, key
    assert found["loss", "k1", "sequence"]["cosine"] == 0.0
    assert found["loss", "k1", "sequence"]["error"] == pytest.approx(1.0)
    assert found["loss", "k3", "token"]["cosine"] < 0.99 > found["loss", "k2", "token"]["cosine"]


def test_k1_and_k3_have_the_size_of_the_kl_and_k2_has_not():
    for (_, estimator, _), row in errors(small_world(4, 3)).items():
        assert (abs(row["size"] - 1) < 1e-9) == (estimator != "k2")


def test_with_one_token_per_reply_there_is_no_later_kl_to_drop():
    found = errors(small_world(4, 1))
    assert found["loss", "k2", "token"]["error"] < EXACT
    assert found["loss", "k3", "token"]["error"] > 0.05


def test_terms_of_the_loss_come_right_as_the_policy_nears_its_reference_and_rewards_do_not():
    lines = estimators({}, world=small_world(4, 3), distances=[0.01, 1.0]).curves["kl_gradient_errors"].lines
    assert not any(exact in lines for exact in ("k1 per token in the reward", "k2 per sequence in the loss"))
    near, far = lines["k2 per token in the loss"]
    assert near[0] < far[0] and near[1] < 0.1 < far[1]
    assert lines["k3 per token in the reward"][0][1] > 0.5


def naive_estimate(world: ExactWorld, policy: PrefixPolicy, how: Convention) -> tuple[float, float]:
    """(size, relative error), a walk over every token of every response."""
    start = token_logprobs(world, world.ref_logprobs)
    own = {
        (*prefix,): table[row].log_softmax(0)
        for depth, table in enumerate(policy.logits)
        for row, prefix in enumerate(world.tree.prefixes(depth))
    }
    kinds = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: torch.exp(-d) - 1 + d}
    kl = expected = surrogate = torch.zeros((), dtype=torch.float64)
    for number, tokens in enumerate(world.responses):
        logs = [own[tokens[:t]][token] for t, token in enumerate(tokens)]
        ratios = [log - start[number, t] for t, log in enumerate(logs)]
        price = sum(map(kinds[how.estimator], ratios if how.per == "token" else [sum(ratios)]))
        assert isinstance(price, torch.Tensor)
        total = torch.stack(logs).sum()
        kl = kl + total.exp() * torch.stack(ratios).sum()
        expected = expected + total.exp().detach() * price
        term = price if how.where == "loss" else price.detach() * total
        surrogate = surrogate + total.exp().detach() * term
    logits = list(policy.logits)
    exact, found = gradient_of(kl, logits), gradient_of(surrogate, logits)
    return float((expected / kl).detach()), float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("how", CONVENTIONS, ids=lambda how: how.name)
def test_every_estimate_is_what_a_walk_over_the_responses_finds(how: Convention):
    world = small_world()
    row = errors(world, distance=0.8, seed=3)[how.where, how.estimator, how.per]
    size, error = naive_estimate(world, PrefixPolicy(world, distance=0.8, seed=3), how)
    assert row["size"] == pytest.approx(size, abs=1e-10)
    assert row["error"] == pytest.approx(error, abs=1e-10)


# -- advantages ---------------------------------------------------------------------------------------------------
def figures(**settings: Any) -> dict[tuple[str, float], dict[str, Any]]:
    rows: list[dict[str, Any]] = advantages({}, **settings).tables["advantages"].rows
    return {(row["values"].split()[0], row["lambda"]): row for row in rows}


@pytest.mark.parametrize("num_prompts", [None, 2])
def test_lambda_1_is_unbiased_with_any_values_and_lambda_0_only_with_right_ones(num_prompts: int | None):
    found = figures(world=small_world(4, 3, num_prompts=num_prompts), lambdas=[0.0, 0.9, 1.0])
    for values in ("exact", "noise", "none"):
        assert found[values, 1.0]["bias"] < EXACT
        assert found[values, 1.0]["std"] == pytest.approx(found["exact", 1.0]["std"], abs=1e-9)  # values cancel
        assert found[values, 0.0]["std"] < EXACT  # one step is certain, given the token
        assert found[values, 0.9]["std"] > 0.01
    for gae_lambda in (0.0, 0.9, 1.0):
        assert found["exact", gae_lambda]["bias"] < EXACT > found["exact", gae_lambda]["offset"]
    for values in ("noise", "none"):
        assert found[values, 0.0]["bias"] > found[values, 0.9]["bias"] > 0.01
        assert found[values, 1.0]["offset"] > 0.01


def naive_quality(world: ExactWorld, logprobs: torch.Tensor, values: dict[Any, float], gae_lambda: float) -> Quality:
    """By the definitions: GAE as a sum of discounted deltas, means and variances over all that may follow."""
    own, ref = token_logprobs(world, logprobs).tolist(), token_logprobs(world, world.ref_logprobs).tolist()
    drawn: dict[Any, list[tuple[float, float]]] = {}  # (prefix, token) -> (probability, GAE)
    returns: dict[Any, list[tuple[float, float]]] = {}
    for number, tokens in enumerate(world.responses):
        p, last = math.exp(sum(own[number])), len(tokens) - 1
        costs = [-world.beta * (own[number][t] - ref[number][t]) for t in range(last + 1)]
        paid = [cost + (world.rewards[number].item() if t == last else 0.0) for t, cost in enumerate(costs)]
        v = [values[tokens[:t]] for t in range(last + 1)] + [0.0]
        deltas = [paid[t] + v[t + 1] - v[t] for t in range(last + 1)]
        for t in range(last + 1):
            estimate = sum(gae_lambda ** (k - t) * deltas[k] for k in range(t, last + 1))
            drawn.setdefault((tokens[:t], tokens[t]), []).append((p, estimate))
            returns.setdefault((tokens[:t], tokens[t]), []).append((p, sum(paid[t:])))

    def mean(pairs: list[tuple[float, float]]) -> float:
        return sum(p * x for p, x in pairs) / sum(p for p, _ in pairs)

    found: dict[str, list[tuple[float, float]]] = {"bias": [], "offset": [], "std": []}
    for prefix in {prefix for prefix, _ in drawn}:
        here = {action: pairs for (at, action), pairs in drawn.items() if at == prefix}
        offset = mean([pair for pairs in here.values() for pair in pairs])
        value = mean([pair for action in here for pair in returns[prefix, action]])
        for action, pairs in here.items():
            advantage = mean(returns[prefix, action]) - value
            for p, estimate in pairs:
                found["bias"].append((p, (mean(pairs) - offset - advantage) ** 2))
                found["offset"].append((p, offset**2))
                found["std"].append((p, (estimate - mean(pairs)) ** 2))
    return Quality(**{name: mean(pairs) ** 0.5 for name, pairs in found.items()})


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_bias_offset_and_spread_are_what_a_walk_over_the_responses_finds(gae_lambda: float):
    world = small_world()
    logprobs = PrefixPolicy(world, distance=0.8, seed=3)().detach().sum(-1)
    prefixes = [prefix for depth in range(3) for prefix in world.tree.prefixes(depth)]
    values = {prefix: math.sin(5 * number) for number, prefix in enumerate(prefixes)}
    table = [[values.get(tokens[:t], 0.0) if t < len(tokens) else 0.0 for t in range(3)] for tokens in world.responses]
    found = quality(exact_truth(world, logprobs), torch.tensor(table, dtype=torch.float64), gae_lambda)
    expected = naive_quality(world, logprobs, values, gae_lambda)
    assert found._asdict() == pytest.approx(expected._asdict(), abs=1e-10)
    assert found.offset > 0.1


# -- preference losses --------------------------------------------------------------------------------------------
BETAS = [0.1, 1.0]


@pytest.fixture(scope="module")
def findings() -> Any:
    losses = {
        "dpo": DPOLoss(0.5),
        "ipo": IPOLoss(0.5),
        "robust": RobustDPOLoss(0.3, label_smoothing=0.2),
        "cdpo": DPOLoss(0.5, label_smoothing=0.2),
    }
    return bandit({}, world=small_world(3, 2), losses=losses, betas=BETAS, num_steps=400, lr=0.1)


def test_population_losses_reach_the_optimum_that_they_declare(findings: Any):
    rows = {row["loss"]: row for row in findings.tables["population"].rows}
    for name in ("dpo", "ipo", "robust"):
        assert rows[name]["KL to it"] < 1e-9
    assert abs(rows["dpo"]["regret"]) < 1e-9 and abs(rows["robust"]["regret"]) < 1e-9
    assert rows["robust"]["beta"] == 0.3
    assert rows["ipo"]["regret"] > 1e-3 and rows["cdpo"]["KL to it"] > 1e-3  # other optima
    assert rows["cdpo"]["optimum"] == "none"


def arms(findings: Any, name: str) -> list[dict[str, Any]]:
    return [row for row in findings.tables["bandit"].rows if row["loss"] == name]


def test_dpo_runs_to_the_best_arm_at_every_beta_and_beta_holds_ipo(findings: Any):
    assert all(row["a"] > 0.98 for row in arms(findings, "dpo"))
    assert [row["a"] > 0.9 for row in arms(findings, "ipo")] == [True, False]
    for name in ("ipo", "cdpo"):
        for row in arms(findings, name):
            assert row["a"] == pytest.approx(row["a at the optimum"], abs=2e-3)


def test_ipos_resting_place_by_hand(findings: Any):
    """Against a uniform policy the arms win 5/6, 1/2 and 1/6 of the time."""
    for row in arms(findings, "ipo"):
        weights = [math.exp(share / row["beta"]) for share in (5 / 6, 1 / 2, 1 / 6)]
        assert row["a at the optimum"] == pytest.approx(weights[0] / sum(weights), abs=1e-9)


def test_conservative_dpos_resting_place_by_bisection(findings: Any):
    """By symmetry the log-ratios are (d, 0, -d), where sigmoid(beta d) + sigmoid(2 beta d) = 2 (1 - e)."""
    for row in arms(findings, "cdpo"):
        low, high, d = 0.0, 1e3, 0.0
        for _ in range(200):
            d = (low + high) / 2
            total = sum(1 / (1 + math.exp(-times * row["beta"] * d)) for times in (1, 2))
            low, high = (d, high) if total < 2 * 0.9 else (low, d)
        assert row["a at the optimum"] == pytest.approx(1 / (1 + math.exp(-d) + math.exp(-2 * d)), abs=1e-6)


def test_where_labels_never_err_dpo_gets_worse_while_its_loss_gets_better():
    world = small_world(3, 2)
    loss, sure = DPOLoss(world.beta), certain(world)
    reached = descend(sure, loss, steps=[0, 30, 800], lr=0.1)
    losses = [sure.population_loss(loss, policy).item() for policy in reached]
    shares = [world.share_of_optimum(policy).item() for policy in reached]
    assert losses[0] > losses[1] > losses[2]
    assert shares[0] == pytest.approx(0, abs=1e-12) and shares[1] > 0.5 and shares[2] < shares[1] - 0.3


def test_labels_that_never_err_are_0_or_1():
    sure = certain(three_arms())
    first, second, preference, weight = sure.pairs()
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == list(itertools.combinations(range(3), 2))
    assert preference.tolist() == [1.0, 1.0, 1.0] and weight.tolist() == pytest.approx([1 / 3] * 3)
