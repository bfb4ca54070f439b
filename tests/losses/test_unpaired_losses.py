"""KTO and unpaired BCO: twins, numbers by hand, the KL estimate, the running means."""

import math

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.losses import KTOLoss, UnpairedBCOLoss, UnpairedLogprobs
from tests.reference.check import DTYPES, assert_like_twin
from tests.reference.losses import sigmoid

B = 31
DESIRABLE = torch.rand(B, generator=torch.Generator().manual_seed(0)) < 0.6
METRICS = {"accuracy", "reward", "credit", "logprob", "desirable", "baseline"}


def replies(logprobs, desirable=DESIRABLE) -> UnpairedLogprobs:
    return UnpairedLogprobs(logprobs, torch.ones(len(desirable), dtype=torch.int64), desirable)


def batch(log_ratios, desirable):
    """Against a reference of zeros."""
    labels = torch.tensor(desirable)
    return (
        replies(torch.tensor(log_ratios, dtype=torch.float64), labels),
        replies(torch.zeros(len(labels), dtype=torch.float64), labels),
    )


def softplus(x):
    return math.log(1 + math.exp(x))


def kto_twin(policy, reference, kl_policy, kl_reference):
    """beta 0.3, weights 1.5 and 0.8, one reply after the other."""
    z = max(0.0, sum((p - r).item() for p, r in zip(kl_policy, kl_reference)) / B)
    losses = []
    for p, r, good in zip(policy, reference, DESIRABLE.tolist(), strict=True):
        losses.append(1.5 * (1 - sigmoid(0.3 * (p - r - z))) if good else 0.8 * (1 - sigmoid(0.3 * (z - (p - r)))))
    return (sum(losses) / B,)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("above", [1.0, -1.0])
def test_kto_equals_its_twin(dtype, above):
    """With an estimate of the KL above 0, and with one below."""
    loss = KTOLoss(0.3, desirable_weight=1.5, undesirable_weight=0.8)

    def ours(policy, reference, kl_policy, kl_reference):
        return (loss(replies(policy), replies(reference), kl_policy=kl_policy, kl_reference=kl_reference).loss,)

    columns = -5 * torch.rand(4, B)
    assert_like_twin(ours, kto_twin, *columns[:2], columns[2] + above * 6, columns[2], dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpaired_bco_equals_its_twin(dtype):
    def twin(policy, reference):
        rewards = [0.3 * (p - r) for p, r in zip(policy, reference)]
        by_label = [[x.item() for x, d in zip(rewards, DESIRABLE.tolist()) if d == label] for label in (True, False)]
        delta = sum(sum(xs) / len(xs) for xs in by_label) / 2
        signs = [1 if good else -1 for good in DESIRABLE.tolist()]
        return (sum(-torch.log(sigmoid(s * (x - delta))) for s, x in zip(signs, rewards)) / B,)

    def ours(policy, reference):
        return (UnpairedBCOLoss(0.3)(replies(policy), replies(reference)).loss,)

    assert_like_twin(ours, twin, *(-5 * torch.rand(2, B)), dtype=dtype)


def test_kto_worked_by_hand():
    """Log-ratios 3 (desirable) and -1 (not), beta 0.5, mismatched pairs at 1.5 and 0.5: z = 1, credits 1 and 1."""
    policy, reference = batch([3.0, -1.0], [True, False])
    kl = {"kl_policy": torch.tensor([1.5, 0.5]), "kl_reference": torch.zeros(2)}
    out = KTOLoss(0.5, desirable_weight=2.0)(policy, reference, **kl)
    assert out.loss.item() == pytest.approx((2 + 1) / 2 / (1 + math.e))
    assert {name: value.item() for name, value in out.metrics.items()} == {
        "accuracy": 1.0,
        "reward": 0.5,
        "credit": 1.0,
        "logprob": 1.0,
        "desirable": 0.5,
        "baseline": 0.5,
    }


def test_the_kl_estimate_is_no_less_than_zero_and_gets_no_gradient():
    policy, reference = batch([3.0, -1.0], [True, False])
    policy.logprobs.requires_grad_()
    kl_policy = torch.tensor([-4.0, 1.0], requires_grad=True)
    out = KTOLoss(0.5)(policy, reference, kl_policy=kl_policy, kl_reference=torch.zeros(2))
    assert out.metrics["baseline"] == 0.0
    gradients = torch.autograd.grad(out.loss, (policy.logprobs, kl_policy), allow_unused=True)
    assert gradients[1] is None
    slope = [0.5 / (2 + math.exp(x) + math.exp(-x)) for x in (1.5, 0.5)]  # beta sigmoid'(credit)
    assert gradients[0].tolist() == pytest.approx([-slope[0] / 2, slope[1] / 2])


def test_value_at_the_reference():
    policy, reference = batch([0.0, 0.0], [True, False])
    kl = {"kl_policy": torch.zeros(2), "kl_reference": torch.zeros(2)}
    for loss, per_label in (
        (KTOLoss(0.5), (0.5, 0.5)),
        (KTOLoss(0.5, 3.0, 3.0), (1.5, 1.5)),
        (KTOLoss(0.5, 2.0, 1.0), (1.0, 0.5)),
        (UnpairedBCOLoss(0.5), (math.log(2), math.log(2))),
    ):
        assert loss(policy, reference, **kl).loss.item() == pytest.approx(sum(per_label) / 2)
        assert loss.value_at_reference == (per_label[0] if per_label[0] == per_label[1] else None)


def test_bco_keeps_a_mean_for_each_label():
    """Desirable rewards 4, 2, then 0: mean 2. One undesirable, -1: mean -1. delta = 1/2 whatever the numbers."""
    loss = UnpairedBCOLoss(1.0)
    first = loss(*batch([4.0, 2.0], [True, True]))
    assert first.metrics["baseline"].item() == pytest.approx(1.5)  # the other label's mean is still 0
    second = loss(*batch([0.0, -1.0], [True, False]))
    assert second.metrics["baseline"].item() == pytest.approx(0.5)
    assert second.loss.item() == pytest.approx((softplus(0.5) + softplus(-1.5)) / 2)
    loss.eval()(*batch([9.0, 9.0], [True, False]))
    assert loss(*batch([0.0, -1.0], [True, False])).loss.item() == pytest.approx(second.loss.item())


def test_a_resumed_bco_goes_on_from_the_same_means():
    first, second = batch([4.0, -2.0], [True, False]), batch([1.0, 3.0], [False, True])
    straight, stopped, resumed, forgetful = (UnpairedBCOLoss(1.0) for _ in range(4))
    straight(*first), stopped(*first)
    resumed.load_state_dict(stopped.state_dict())
    assert resumed(*second).loss == straight(*second).loss != forgetful(*second).loss


@pytest.mark.parametrize("loss", [KTOLoss(0.3), UnpairedBCOLoss(0.3)])
def test_a_batch_cut_in_two_is_another_loss(loss):
    """Both couple a batch: through the KL estimate, and through the running mean."""
    assert loss.batch_coupled
    columns = -5 * torch.rand(4, B - 1, dtype=torch.float64)
    columns[2] += torch.linspace(0, 20, B - 1)

    def part(rows):
        labels = DESIRABLE[:-1][rows]
        kl = {"kl_policy": columns[2][rows], "kl_reference": columns[3][rows]}
        fresh = type(loss)(0.3)
        return fresh(replies(columns[0][rows], labels), replies(columns[1][rows], labels), **kl).loss

    half = (B - 1) // 2
    whole, halves = part(slice(None)), (part(slice(0, half)), part(slice(half, None)))
    assert (whole - sum(halves) / 2).abs() > 1e-3


@pytest.mark.parametrize("loss", [KTOLoss(0.3), UnpairedBCOLoss(0.3).eval()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("far", [1e4, -1e4])
def test_extreme_log_ratios_keep_finite_losses_and_gradients(loss, dtype, far):
    logprobs = torch.tensor([far, far], dtype=dtype, requires_grad=True)
    labels, zeros = torch.tensor([True, False]), torch.zeros(2, dtype=dtype)
    out = loss(replies(logprobs, labels), replies(zeros, labels), kl_policy=logprobs, kl_reference=zeros)
    assert torch.isfinite(out.loss) and torch.isfinite(torch.autograd.grad(out.loss, logprobs)[0]).all()
    assert out.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert set(out.metrics) == METRICS
    assert all(x.ndim == 0 and not x.requires_grad and torch.isfinite(x) for x in out.metrics.values())


def test_what_is_missing_is_named():
    policy, reference = batch([3.0, -1.0], [True, False])
    with pytest.raises(ConfigError, match="KTOLoss: reference=None"):
        KTOLoss(0.1)(policy)
    with pytest.raises(ConfigError, match="KTOLoss: kl_policy=None"):
        KTOLoss(0.1)(policy, reference)
    with pytest.raises(ConfigError, match="KTOLoss: kl_reference=None"):
        KTOLoss(0.1)(policy, reference, kl_policy=torch.zeros(2))
    assert KTOLoss.needs_kl and not UnpairedBCOLoss.needs_kl
    UnpairedBCOLoss(0.1)(policy, reference)  # reads no mismatched pairs
    with pytest.raises(ConfigError, match="KTOLoss: undesirable_weight=0"):
        KTOLoss(0.1, undesirable_weight=0.0)
