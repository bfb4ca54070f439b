"""The price of a reply, worked by hand; which of the prices is exact is in test_exact_gradients.py."""

import math

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.methods.kl_penalty import KLPenalty

# log-ratios 0.5 and -0.25, and one token that does not count
LOGPROBS = torch.tensor([[-1.0, -2.0, math.nan], [-1.0, math.inf, 9.0]])
REFERENCE = torch.tensor([[-1.5, -1.75, 3.0], [-1.0, 0.0, 9.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


@pytest.mark.parametrize(
    ("where", "estimator", "per", "price"),
    [
        ("reward", "k1", "token", 0.25),
        ("reward", "k1", "sequence", 0.25),
        ("loss", "k2", "token", 0.5**3 + 0.5 * 0.25**2),
        ("loss", "k2", "sequence", 0.5 * 0.25**2),
        ("loss", "k3", "token", (math.exp(-0.5) - 1 + 0.5) + (math.exp(0.25) - 1 - 0.25)),
        ("loss", "k3", "sequence", math.exp(-0.25) - 1 + 0.25),
    ],
)
def test_the_price_of_a_reply(where: str, estimator: str, per: str, price: float):
    """The second reply agrees with the reference where it counts, so it is free."""
    penalty = KLPenalty(where=where, estimator=estimator, per=per)
    torch.testing.assert_close(penalty.of_replies(LOGPROBS, REFERENCE, MASK), torch.tensor([price, 0.0]))


def test_its_gradient_is_finite_and_does_not_leave_the_reply():
    logprobs = LOGPROBS.clone().requires_grad_()
    KLPenalty(where="loss", estimator="k2", per="sequence").of_replies(logprobs, REFERENCE, MASK).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[0.25, 0.25, 0.0], [0.0, 0.0, 0.0]]  # d of the whole reply, at each token


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="k1 in the loss"):
        KLPenalty(where="loss", estimator="k1", per="sequence")
    for wrong in ({"where": "both"}, {"estimator": "k4"}, {"per": "word"}):
        with pytest.raises(ConfigError, match=f"kl_penalty.{next(iter(wrong))}"):
            KLPenalty(**{"where": "reward", "estimator": "k1", "per": "token"} | wrong)
