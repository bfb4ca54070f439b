"""Every pairwise loss: its twin, and what it says of itself, both ways: what is claimed holds, what is not fails."""

import math

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.losses import AOTLoss, DPOLoss, PreferenceLoss, UnpairedAOTLoss, WithSFT
from alignlab.worlds.exact import ExactWorld, population_optimum
from tests.losses.catalogue import CASES, LENGTHS, METRICS, P, near, pairs, random_pairs
from tests.reference.check import DTYPES, assert_close, assert_like_twin

SORTING = {"aot", "aot unpaired"}  # these refuse soft labels and weights


def over(names) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", [CASES[name].make for name in names], ids=list(names))


every_loss, every_weighed_loss = over(CASES), over([name for name in CASES if name not in SORTING])
MARGINS = torch.cat([torch.linspace(-60, 60, 25), torch.linspace(-1, 1, 21)]).double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_every_loss_equals_its_twin(name, dtype):
    make, twin_of_batch = CASES[name]
    lengths = list(zip(*LENGTHS.tolist(), strict=True))

    def twin(chosen, rejected, ref_chosen, ref_rejected):
        policy, reference = list(zip(chosen, rejected)), list(zip(ref_chosen, ref_rejected))
        return (twin_of_batch(policy, reference, lengths),)

    def ours(chosen, rejected, ref_chosen, ref_rejected):
        return (make()(pairs(chosen, rejected), pairs(ref_chosen, ref_rejected)).loss,)

    assert_like_twin(ours, twin, *(-5 * torch.rand(4, P)), dtype=dtype)


@every_loss
def test_forward_is_the_mean_of_per_pair(make):
    """In evaluation, where nothing runs along."""
    loss, reference = make().eval(), random_pairs()
    policy = near(reference)
    per_pair = loss.per_pair(policy, reference)
    assert per_pair.shape == (P,)
    assert_close(loss(policy, reference).loss, per_pair.mean())


@every_loss
def test_value_at_reference_is_as_stated(make):
    policy, loss = random_pairs(), make()
    values = loss.per_pair(policy, policy)
    if loss.value_at_reference is None:
        assert values.max() - values.min() > 1e-3
    else:
        assert_close(values, torch.full_like(values, loss.value_at_reference))


@every_loss
def test_needs_reference_is_as_stated(make):
    policy, reference, loss = random_pairs(), random_pairs(), make()
    if loss.needs_reference:
        with pytest.raises(ConfigError, match="reference=None"):
            loss(policy)
    else:
        assert_close(loss(policy).loss, loss(policy, reference).loss)


@every_loss
def test_batch_coupling_is_as_stated(make):
    """A training batch cut in two: the mean of the halves is the whole, or it is not."""
    reference = random_pairs()
    policy = near(reference)

    def part(rows):
        return make()(*(type(x)(*(column[rows] for column in x)) for x in (policy, reference))).loss

    half = slice(0, P // 2), slice(P // 2, P)
    gap = (part(slice(0, P)) - (part(half[0]) + part(half[1])) / 2).abs()
    assert gap > 1e-4 if make().batch_coupled else gap < 1e-12


@every_loss
def test_shift_invariance_is_as_stated(make):
    """Each pair by a number of its own."""
    loss, reference = make(), random_pairs()
    policy, shift = near(reference), 3 * torch.randn(P, dtype=torch.float64)
    shifted = policy._replace(chosen=policy.chosen + shift, rejected=policy.rejected + shift)
    moved = (loss.per_pair(shifted, reference) - loss.per_pair(policy, reference)).abs().max()
    assert moved < 1e-9 if loss.shift_invariant else moved > 1e-2


@every_loss
def test_monotonicity_is_as_stated(make):
    """The signs of the gradients over a grid of log-probs of both replies, far below and above every target."""
    loss = make()
    chosen, rejected = torch.cartesian_prod(MARGINS, MARGINS).T.clone().requires_grad_().unbind()
    lengths, zeros = torch.ones(2, len(chosen), dtype=torch.int64), torch.zeros(len(chosen), dtype=torch.float64)
    value = loss.per_pair(pairs(chosen, rejected, lengths), pairs(zeros, zeros, lengths)).sum()
    to_chosen, to_rejected = torch.autograd.grad(value, (chosen, rejected), allow_unused=True)
    uphill = max(to_chosen.max().item(), 0.0 if to_rejected is None else -to_rejected.min().item())
    assert uphill <= 1e-12 if loss.monotone else uphill > 1e-3


@every_loss
def test_antisymmetry_is_as_stated(make):
    assert sees_the_margin_alone(make()) == make().antisymmetric


def sees_the_margin_alone(loss: PreferenceLoss) -> bool:
    """Swapping negates the margin, and other log-probs with the same margins cost the same."""
    reference = random_pairs()
    policy, other_reference = near(reference), random_pairs() if loss.needs_reference else reference
    rewards, swapped = (
        loss.implied_rewards(policy, reference),
        loss.implied_rewards(policy.swapped(), reference.swapped()),
    )
    margin = rewards[0] - rewards[1]
    # another level: rejected replies less likely, and the chosen log-prob that gives the same margin, by bisection
    level = policy.rejected - reference.rejected - 2 * torch.rand(P, dtype=torch.float64)
    other = policy._replace(rejected=other_reference.rejected + level)
    low, high = other_reference.chosen - 200, other_reference.chosen + 50
    for _ in range(80):
        middle = (low + high) / 2
        other = other._replace(chosen=middle)
        mine = loss.implied_rewards(other, other_reference)
        below = mine[0] - mine[1] < margin
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    assert_close(mine[0] - mine[1], margin)
    gap = (loss.per_pair(other, other_reference) - loss.per_pair(policy, reference)).abs().max()
    return bool((swapped[0] - swapped[1] + margin).abs().max() < 1e-9) and bool(gap < 1e-8)


@every_loss
def test_the_optimum_is_as_stated(make):
    """On the exact world, where both closed forms are known; `rlhf_under_flips` is checked with flipped labels."""
    loss = make().eval()
    if loss.batch_coupled:
        assert loss.optimum is None  # a batch of all pairs with both labels is none that it would be given
        return
    beta = loss.beta
    world = ExactWorld(3, 2, lambda tokens: sum(math.sin(3 * x + place) for place, x in enumerate(tokens)), beta)
    drawn = world.pairs()
    if loss.optimum == "rlhf_under_flips":
        drawn = drawn._replace(preference=0.8 * drawn.preference + 0.2 * (1 - drawn.preference))
    found = population_optimum(world, loss, pairs=drawn)
    rlhf, ipo = (found - closed for closed in (world.optimum(), world.ipo_optimum(beta)))
    far = {"rlhf": rlhf.abs().max().item(), "ipo": ipo.abs().max().item()}
    reached = {name for name, distance in far.items() if distance < 1e-4}
    expected = {None: set(), "rlhf_under_flips": {"rlhf"}}.get(loss.optimum, {loss.optimum})
    assert reached == expected and all(far[name] > 1e-2 for name in far.keys() - expected), far


def test_an_untrue_claim_is_found_out():
    """A loss with a likelihood term that says nothing of it."""

    class Anchored(PreferenceLoss):
        def per_pair(self, policy, reference):
            return DPOLoss(0.3).per_pair(policy, reference) + 0.1 * policy.chosen

    for claim in (
        test_antisymmetry_is_as_stated,
        test_shift_invariance_is_as_stated,
        test_monotonicity_is_as_stated,
    ):
        with pytest.raises(AssertionError):
            claim(lambda: Anchored(0.1))


# what holds for all


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extreme_margins_keep_finite_losses_and_gradients(make, dtype):
    far = 1e4
    for levels in ((far, -far), (-far, far), (far, far), (-far, -far), (0.0, 0.0)):
        chosen, rejected = (torch.tensor([x], dtype=dtype, requires_grad=True) for x in levels)
        zero, lengths = torch.zeros(1, dtype=dtype), torch.ones(2, 1, dtype=torch.int64)
        out = make().eval()(pairs(chosen, rejected, lengths), pairs(zero, zero, lengths))
        gradients = torch.autograd.grad(out.loss, (chosen, rejected), allow_unused=True)
        assert out.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.isfinite(out.loss) and all(g is None or torch.isfinite(g).all() for g in gradients)
        assert set(out.metrics) == METRICS and all(torch.isfinite(x) for x in out.metrics.values())


@every_loss
def test_metrics_are_detached_scalars_of_the_same_names(make):
    policy = random_pairs()._replace(chosen=torch.randn(P, requires_grad=True))
    metrics = make()(policy, random_pairs()).metrics
    assert set(metrics) == METRICS
    assert all(x.ndim == 0 and not x.requires_grad for x in metrics.values())


@every_loss
def test_autocast_around_it_changes_nothing(make):
    policy, reference = (type(x)(*(column.float() for column in x)) for x in (random_pairs(), random_pairs()))
    plain = make()(policy, reference).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(make()(policy, reference).loss, plain)


# soft labels and weights


@every_weighed_loss
def test_a_soft_label_is_the_mean_over_both_labels(make):
    reference, loss = random_pairs(), make().eval()
    policy, p = near(reference), torch.rand(P, dtype=torch.float64)
    kept, flipped = loss.per_pair(policy, reference), loss.per_pair(policy.swapped(), reference.swapped())
    assert_close(loss(policy, reference, preference=p).loss, (p * kept + (1 - p) * flipped).mean())


@every_weighed_loss
def test_which_reply_stands_first_does_not_matter_once_the_label_says_which_is_better(make):
    """(c, r, p) and (r, c, 1 - p) are one pair, in the loss and in every metric; p = 1 is the certain label."""
    reference = random_pairs()
    policy, p = near(reference), torch.rand(P, dtype=torch.float64)

    def same(one, other):
        assert_close(one.loss, other.loss)
        for name in METRICS:
            assert_close(one.metrics[name], other.metrics[name])

    swapped = policy.swapped(), reference.swapped()
    same(make()(policy, reference, preference=p), make()(*swapped, preference=1 - p))
    same(make()(policy, reference, preference=torch.ones(P)), make()(policy, reference))
    same(make()(policy, reference, preference=torch.zeros(P)), make()(*swapped))


@every_weighed_loss
def test_a_weight_of_three_is_the_pair_three_times(make):
    reference = random_pairs()
    policy, times, p = near(reference), torch.randint(1, 4, (P,)), torch.rand(P, dtype=torch.float64)
    repeated = [type(x)(*(column.repeat_interleave(times) for column in x)) for x in (policy, reference)]
    weighted = make()(policy, reference, preference=p, weight=times.double())
    counted = make()(*repeated, preference=p.repeat_interleave(times))
    assert_close(weighted.loss, counted.loss)
    for name in METRICS:
        assert_close(weighted.metrics[name], counted.metrics[name])


@pytest.mark.parametrize("given", ["preference", "weight"])
@pytest.mark.parametrize("loss", [AOTLoss(0.1), UnpairedAOTLoss(0.1)])
def test_a_loss_that_sorts_its_batch_refuses_soft_labels_and_weights(loss, given):
    with pytest.raises(ConfigError, match=f"{type(loss).__name__}: {given}"):
        loss(random_pairs(), random_pairs(), **{given: torch.ones(P)})


def test_beta_has_no_default():
    for loss in {type(case.make()) for case in CASES.values()}:
        with pytest.raises(TypeError, match="loss" if loss is WithSFT else "beta"):
            loss()
