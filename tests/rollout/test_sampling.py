"""The choice of a token: numbers worked by hand, and the distribution of many draws."""

import math
from bisect import bisect_right
from itertools import accumulate

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.rollout.sampling import check_sampling, log_distribution, most_likely, sample

LOGITS = torch.tensor([[4.0, 2.0, 1.0, 1.0]]).log()  # probabilities 1/2, 1/4, 1/8, 1/8


def probabilities(**settings: float) -> list[float]:
    """The distribution that LOGITS give under some settings."""
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings}
    return log_distribution(LOGITS, **settings).exp()[0].tolist()


def test_nothing_is_cut_unless_asked_for() -> None:
    assert probabilities() == pytest.approx([0.5, 0.25, 0.125, 0.125])


def test_temperature_half_squares_the_odds() -> None:
    assert probabilities(temperature=0.5) == pytest.approx([16 / 22, 4 / 22, 1 / 22, 1 / 22])


def test_top_k_keeps_the_k_most_likely() -> None:
    assert probabilities(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert probabilities(top_k=1) == pytest.approx([1, 0, 0, 0])
    assert probabilities(top_k=9) == pytest.approx([0.5, 0.25, 0.125, 0.125])


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass() -> None:
    assert probabilities(top_p=0.5) == pytest.approx([1, 0, 0, 0])
    assert probabilities(top_p=0.6) == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert probabilities(top_p=0.8) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])


def test_top_p_works_on_what_top_k_left() -> None:
    assert probabilities(top_k=2, top_p=0.6) == pytest.approx([1, 0, 0, 0])


def test_draws_follow_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 12, generator=generator) * 2
    logprobs = log_distribution(logits, temperature=0.8, top_k=0, top_p=1.0)
    draws = 40_000
    tokens = sample(logprobs.expand(draws, -1), torch.rand(draws, generator=generator, dtype=torch.float64)).tokens
    expected = logprobs.exp()[0] * draws
    chi_square = ((tokens.bincount(minlength=12) - expected) ** 2 / expected).sum().item()
    assert chi_square < 31.3  # the 0.1 % point of chi-square with 11 degrees of freedom


def test_a_uniform_number_picks_its_slice_of_the_cumulative_distribution() -> None:
    logprobs = log_distribution(LOGITS, temperature=1.0, top_k=0, top_p=1.0).expand(6, -1)
    uniform = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.8, 0.99], dtype=torch.float64)
    choice = sample(logprobs, uniform)
    assert choice.tokens.tolist() == [0, 0, 1, 1, 2, 3]
    assert choice.logprobs.tolist() == pytest.approx([math.log(p) for p in (0.5, 0.5, 0.25, 0.25, 0.125, 0.125)])


def test_a_token_that_was_cut_is_never_drawn_even_at_the_edges() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(2, -1)
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert sample(logits.log_softmax(-1), edges).tokens.tolist() == [1, 3]


@pytest.mark.parametrize("width", [511, 1024, 1025, 1536, 1700, 2049])
def test_large_vocabularies_are_searched_as_if_they_were_one_cumulative_distribution(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    logprobs = (torch.randn(1, width, generator=generator, dtype=torch.float64) * 3).log_softmax(-1)
    logprobs[0, :7], logprobs[0, 300:1024] = -torch.inf, -torch.inf  # with a block of which nothing is left
    cumulative = list(accumulate(logprobs[0].exp().tolist()))
    uniform = torch.rand(3000, generator=generator, dtype=torch.float64)
    expected = [bisect_right(cumulative, u * cumulative[-1]) for u in uniform.tolist()]
    choice = sample(logprobs.expand(3000, -1), uniform)
    assert choice.tokens.tolist() == expected
    assert choice.logprobs.equal(logprobs[0, expected])


def test_a_token_that_was_cut_is_never_drawn_at_the_edges_of_blocks() -> None:
    logits = torch.full((2, 2000), -torch.inf)
    logits[:, [600, 1800]] = 0.0
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert sample(logits.log_softmax(-1), edges).tokens.tolist() == [600, 1800]
    half = torch.tensor([0.5 - 2**-53, 0.5], dtype=torch.float64)
    assert sample(logits.log_softmax(-1), half).tokens.tolist() == [600, 1800]


def test_float64_stays_float64() -> None:
    exact = log_distribution(LOGITS.double(), temperature=1.0, top_k=0, top_p=1.0)
    assert exact.dtype == torch.float64
    assert log_distribution(LOGITS.bfloat16(), temperature=1.0, top_k=0, top_p=1.0).dtype == torch.float32


def test_greedy_takes_the_first_of_equals() -> None:
    assert most_likely(torch.tensor([[0.1, 0.4, 0.4]]).log()).tokens.tolist() == [1]


@pytest.mark.parametrize(
    "bad", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        check_sampling(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **bad})
