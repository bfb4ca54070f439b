"""KL estimators: by their definitions, by exact expectation, and by what their gradients are good for."""

import math

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.kernels.divergence import full_kl, kl_estimate
from tests.reference import statistics as twins
from tests.reference.check import DTYPES, assert_close, assert_like_twin

KINDS = ("k1", "k2", "k3")


@pytest.fixture
def five_way() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a policy and of its reference over five tokens."""
    return 2 * torch.randn(5).double(), 2 * torch.randn(5).double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_estimators_equal_the_twin(dtype, kind):
    logprobs, ref_logprobs = torch.randn(3, 47), torch.randn(3, 47)
    assert_like_twin(
        lambda p, q: (kl_estimate(p, q, kind=kind),),
        lambda p, q: (twins.kl_estimate(p, q, kind),),
        logprobs,
        ref_logprobs,
        dtype=dtype,
    )


def test_estimators_worked_by_hand():
    """p = 1/2 where the reference says 1/4: d = ln 2, and exp(-d) = 1/2."""
    p, q = torch.tensor([0.5]).double().log(), torch.tensor([0.25]).double().log()
    assert kl_estimate(p, q, kind="k1").item() == pytest.approx(math.log(2))
    assert kl_estimate(p, q, kind="k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_estimate(p, q, kind="k3").item() == pytest.approx(math.log(2) - 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_full_kl_equals_the_sum_over_tokens(dtype):
    assert_like_twin(
        lambda p, q: (full_kl(p, q),),
        lambda p, q: (twins.full_kl(p, q),),
        3 * torch.randn(5, 31),
        3 * torch.randn(5, 31),
        dtype=dtype,
    )


def test_full_kl_is_zero_only_at_equality():
    logits = torch.randn(4, 9).double()
    assert full_kl(logits, logits + 3).abs().max() < 1e-12  # the same distribution
    assert (full_kl(logits, torch.randn(4, 9).double()) > 0.01).all()


def test_tokens_that_are_never_picked_add_nothing():
    logits = torch.tensor([0.0, 0.0, -math.inf], dtype=torch.float64, requires_grad=True)
    kl = full_kl(logits, torch.zeros(3, dtype=torch.float64))
    kl.backward()
    assert kl.item() == pytest.approx(math.log(1.5))  # two halves against two thirds
    assert torch.isfinite(logits.grad).all()


def test_k1_and_k3_are_unbiased_and_k3_never_negative(five_way):
    p, q = (logits.log_softmax(0) for logits in five_way)
    exact = full_kl(*five_way)
    assert_close((p.exp() * kl_estimate(p, q, kind="k1")).sum(), exact)
    assert_close((p.exp() * kl_estimate(p, q, kind="k3")).sum(), exact)
    assert (kl_estimate(p, q, kind="k3") >= 0).all() and (kl_estimate(p, q, kind="k1") < 0).any()
    assert abs((p.exp() * kl_estimate(p, q, kind="k2")).sum() - exact) > 0.01


def test_as_a_loss_only_k2_has_the_gradient_of_the_kl(five_way):
    """And in a reward only k1: the expected gradients, taken exactly over the five tokens."""
    logits, ref_logits = five_way[0].requires_grad_(), five_way[1]

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    exact = gradient(full_kl(logits, ref_logits))
    p, q = logits.log_softmax(0), ref_logits.log_softmax(0)
    weights = p.exp().detach()

    def error(value):
        return ((gradient(value) - exact).norm() / exact.norm()).item()

    as_loss = {kind: error((weights * kl_estimate(p, q, kind=kind)).sum()) for kind in KINDS}
    in_reward = {kind: error((weights * kl_estimate(p, q, kind=kind).detach() * p).sum()) for kind in KINDS}
    assert as_loss["k2"] < 1e-12 and as_loss["k1"] == pytest.approx(1.0) and as_loss["k3"] > 0.1
    assert in_reward["k1"] < 1e-12 and in_reward["k3"] > 0.1


def test_k3_keeps_its_digits_near_zero():
    """exp(-d) - 1 + d is d^2 / 2 there; without expm1, float32 is off by a tenth at d = 0.001."""
    tiny = kl_estimate(torch.zeros(1), torch.tensor([-1e-3]), kind="k3").item()
    assert tiny == pytest.approx(5e-7, rel=1e-3)


def test_an_unknown_kind_is_a_config_error():
    with pytest.raises(ConfigError, match="'k4'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), kind="k4")
