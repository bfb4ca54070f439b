"""A world small enough to be solved: every response is listed, so the optimum is known and regret is exact.

With reference mu, reward r and beta over the N responses (Rafailov et al. 2023, eq. 3-5):

    J(pi) = E_pi[r] - beta KL(pi || mu)        pi* = mu exp(r / beta) / Z        J(pi*) = beta log Z
    regret(pi) = J(pi*) - J(pi) = beta KL(pi || pi*)

"It trains" is never mistaken for "it is right": a method is scored by its regret. All numbers are float64.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignlab.errors import ConfigError
from alignlab.losses.preference import PairLogprobs, PreferenceLoss

Tokens = tuple[int, ...]
Reward = Callable[[Tokens], float]
Reference = Callable[[Tokens], Sequence[float]]

_MAX_RESPONSES = 200_000
_SUM_TOLERANCE = 1e-3  # float32 log-probs of a network add up to 1 within about 1e-5


class PopulationPairs(NamedTuple):
    """All unordered pairs of different responses: what endless preference data would show."""

    first: Int[Tensor, "P"]  # response numbers, first < second
    second: Int[Tensor, "P"]
    preference: Float[Tensor, "P"]  # Bradley-Terry probability that `first` is preferred
    weight: Float[Tensor, "P"]  # how often two draws from the reference make this pair; adds up to 1


class ExactWorld:
    """One prompt; the responses are all token strings that end with their first EOS or stop at `max_length`.

    `reward(tokens)` scores a response, its EOS included. `reference(prefix)` gives the logits of the next token; the
    default draws them from a normal distribution with standard deviation `peakedness`, the same for the same seed.
    A policy is a vector of log-probs in the order of `responses`. ConfigError for a world that cannot be listed.
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        reward: Reward,
        beta: float,
        eos_id: int = 0,
        *,
        reference: Reference | None = None,
        seed: int = 0,
        peakedness: float = 2.0,
    ):
        _check(vocab_size, max_length, beta, eos_id)
        self.vocab_size, self.max_length, self.beta, self.eos_id = vocab_size, max_length, float(beta), eos_id
        self.responses = list(_responses(vocab_size, max_length, eos_id))
        self.lengths = torch.tensor([len(tokens) for tokens in self.responses])
        self.rewards = torch.tensor([float(reward(tokens)) for tokens in self.responses], dtype=torch.float64)
        self.ref_logprobs = self.sequence_logprobs(reference or _PeakyReference(vocab_size, seed, peakedness))

    @property
    def log_partition(self) -> Float[Tensor, ""]:
        """log Z, Z = E_mu[exp(r / beta)]."""
        return (self.ref_logprobs + self.rewards / self.beta).logsumexp(0)

    def optimum(self) -> Float[Tensor, "N"]:
        """log pi*: what reinforcement learning under a KL penalty, and DPO with endless data, converge to."""
        return self.ref_logprobs + self.rewards / self.beta - self.log_partition

    def ipo_optimum(self, tau: float) -> Float[Tensor, "N"]:
        """log of mu exp(p(y > mu) / tau) / Z: IPO's optimum, p(y > mu) the chance to beat a draw from the reference.

        Azar et al. 2023, sec. 4, with the identity for Psi and the reference as the behaviour policy.
        """
        win_rate = self.preferences() @ self.ref_logprobs.exp()
        return (self.ref_logprobs + win_rate / tau).log_softmax(0)

    def objective(self, logprobs: Float[Tensor, "N"]) -> Float[Tensor, ""]:
        """J(pi): expected reward minus beta times the KL to the reference."""
        logprobs = self._policy(logprobs)
        return (logprobs.exp() * self.rewards).sum() - self.beta * _kl(logprobs, self.ref_logprobs)

    def regret(self, logprobs: Float[Tensor, "N"]) -> Float[Tensor, ""]:
        """J(pi*) - J(pi), at least 0 (up to rounding, about 1e-15)."""
        return self.beta * self.log_partition - self.objective(logprobs)

    def kl(self, logprobs: Float[Tensor, "N"]) -> Float[Tensor, ""]:
        """KL(pi || mu) in nats per response."""
        return _kl(self._policy(logprobs), self.ref_logprobs)

    def preferences(self) -> Float[Tensor, "N N"]:
        """Bradley-Terry: entry [i, j] is the probability that response i is preferred to response j."""
        return (self.rewards.unsqueeze(1) - self.rewards).sigmoid()

    def pairs(self) -> PopulationPairs:
        """All pairs, each weighted by how often two draws from the reference make it. N (N - 1) / 2 of them."""
        first, second = torch.triu_indices(len(self.responses), len(self.responses), offset=1)
        weight = (self.ref_logprobs[first] + self.ref_logprobs[second]).softmax(0)
        return PopulationPairs(first, second, (self.rewards[first] - self.rewards[second]).sigmoid(), weight)

    def pair_logprobs(
        self, logprobs: Float[Tensor, "N"], chosen: Int[Tensor, "P"], rejected: Int[Tensor, "P"]
    ) -> PairLogprobs:
        """A policy's log-probs of given pairs of response numbers, as the preference losses take them."""
        return PairLogprobs(logprobs[chosen], logprobs[rejected], self.lengths[chosen], self.lengths[rejected])

    def population_loss(
        self, loss: PreferenceLoss, logprobs: Float[Tensor, "N"], *, pairs: PopulationPairs | None = None
    ) -> Float[Tensor, ""]:
        """The expectation of a preference loss over all pairs and both outcomes of each: no sampling noise at all.

        `pairs` may be given to save making them again at every step, or to change preferences (flipped labels).
        """
        first, second, preference, weight = self.pairs() if pairs is None else pairs
        reference = self.ref_logprobs
        won = loss.per_pair(self.pair_logprobs(logprobs, first, second), self.pair_logprobs(reference, first, second))
        lost = loss.per_pair(self.pair_logprobs(logprobs, second, first), self.pair_logprobs(reference, second, first))
        return (weight * (preference * won + (1 - preference) * lost)).sum()

    def sequence_logprobs(self, next_token_logits: Reference) -> Float[Tensor, "N"]:
        """log pi of every response for a policy given by its next-token logits after a prefix, () being the empty one.

        They add up to 1: a response that stops at `max_length` without EOS has no factor for stopping.
        """
        tables: dict[Tokens, Tensor] = {}
        totals = torch.zeros(len(self.responses), dtype=torch.float64)
        for number, tokens in enumerate(self.responses):
            for position, token in enumerate(tokens):
                prefix = tokens[:position]
                if prefix not in tables:
                    logits = torch.as_tensor(next_token_logits(prefix), dtype=torch.float64)
                    tables[prefix] = logits.log_softmax(0)
                totals[number] += tables[prefix][token]
        return totals

    def _policy(self, logprobs: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """`logprobs` in float64, checked to be a distribution: regret means nothing for anything else."""
        if logprobs.shape != self.rewards.shape:
            raise ConfigError(
                f"ExactWorld: log-probs of shape {tuple(logprobs.shape)}, expected one for each of the "
                f"{len(self.responses)} responses"
            )
        total = logprobs.detach().double().exp().sum().item()
        if not abs(total - 1) < _SUM_TOLERANCE:
            raise ConfigError(f"ExactWorld: the probabilities of all responses add up to {total:.6g}, not to 1")
        return logprobs.double()


class TabularPolicy(nn.Module):
    """One free logit per response: the policy that can represent every optimum: its regret is the method's."""

    def __init__(self, logprobs: Float[Tensor, "N"]):
        """Starts as the given distribution, usually `world.ref_logprobs`."""
        super().__init__()
        self.logits = nn.Parameter(logprobs.detach().clone().double())

    def forward(self) -> Float[Tensor, "N"]:
        """log pi of every response."""
        return self.logits.log_softmax(0)


def population_optimum(
    world: ExactWorld, loss: PreferenceLoss, *, pairs: PopulationPairs | None = None, max_iterations: int = 200
) -> Float[Tensor, "N"]:
    """log pi of the policy that minimises `world.population_loss(loss, ...)`: what the loss aims at, without noise.

    L-BFGS on log-ratios to the reference, scaled by mu^(-1/2): a response's curvature is about proportional to its
    weight mu, so rare ones would otherwise take thousands of steps. A loss that has no minimum is followed for
    `max_iterations`.
    """
    pairs = world.pairs() if pairs is None else pairs
    scale = (-0.5 * world.ref_logprobs).exp()
    scaled = torch.zeros_like(scale, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [scaled],
        max_iter=max_iterations,
        max_eval=10 * max_iterations,
        tolerance_grad=1e-16,
        tolerance_change=0.0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = world.population_loss(loss, (world.ref_logprobs + scale * scaled).log_softmax(0), pairs=pairs)
        value.backward()
        return value

    optimizer.step(closure)
    return (world.ref_logprobs + scale * scaled.detach()).log_softmax(0)


class _PeakyReference:
    """Next-token logits drawn once per prefix; a pure function of (seed, prefix), whatever the order of the calls."""

    def __init__(self, vocab_size: int, seed: int, peakedness: float):
        self.vocab_size, self.seed, self.peakedness = vocab_size, seed, peakedness

    def __call__(self, prefix: Tokens) -> Sequence[float]:
        # the prefix as a number in base vocab_size, with a leading 1 so that () and (0,) differ
        number = 1
        for token in prefix:
            number = number * self.vocab_size + token
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        draws = torch.randn(self.vocab_size, generator=generator, dtype=torch.float64)
        return (self.peakedness * draws).tolist()


def _responses(vocab_size: int, max_length: int, eos_id: int) -> Iterator[Tokens]:
    """By length, then in the order of their token ids; at the greatest length the unfinished ones come last."""
    words = [token for token in range(vocab_size) if token != eos_id]
    for length in range(max_length):
        for prefix in itertools.product(words, repeat=length):
            yield (*prefix, eos_id)
    yield from itertools.product(words, repeat=max_length)


def _kl(logprobs: Float[Tensor, "N"], other: Float[Tensor, "N"]) -> Float[Tensor, ""]:
    # what is never sampled adds nothing: 0 * (-inf) is 0 here
    return (logprobs.exp() * (logprobs - other).masked_fill(logprobs == -math.inf, 0.0)).sum()


def _check(vocab_size: int, max_length: int, beta: float, eos_id: int) -> None:
    if not beta > 0:
        raise ConfigError(f"ExactWorld: beta={beta} must be a positive number")
    if vocab_size < 2 or max_length < 1 or not 0 <= eos_id < vocab_size:
        raise ConfigError(
            f"ExactWorld: vocab_size={vocab_size}, max_length={max_length}, eos_id={eos_id}; there must be at least "
            "two tokens and one place, and eos_id must be one of the tokens"
        )
    words = vocab_size - 1
    number = sum(words**length for length in range(max_length)) + words**max_length
    if number > _MAX_RESPONSES:
        raise ConfigError(
            f"ExactWorld: vocab_size={vocab_size} and max_length={max_length} make {number} responses, more than "
            f"{_MAX_RESPONSES}; make one of them smaller"
        )
