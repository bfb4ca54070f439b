"""A world small enough to be solved: every response is listed, so the optimum is known and regret is exact.

With reference mu, reward r and beta over the N responses (Rafailov et al. 2023, eq. 3-5):

    J(pi) = E_pi[r] - beta KL(pi || mu)        pi* = mu exp(r / beta) / Z        J(pi*) = beta log Z
    regret(pi) = J(pi*) - J(pi) = beta KL(pi || pi*)

"It trains" is never mistaken for "it is right": a method is scored by its regret. All numbers are float64. A world has
one prompt, or K of them that count alike; then every tensor over responses has a leading axis K, and the scalars are
means over the prompts.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.losses.preference import PairLogprobs, PreferenceLoss
from alignlab.worlds.exact.tree import PrefixTree, PrefixValues, Tables, Tokens

Reward = Callable[..., float]
"""tokens -> reward; in a world of several prompts (tokens, prompt number) -> reward."""
Reference = Callable[..., Sequence[float]]
"""prefix -> logits of the next token; in a world of several prompts (prefix, prompt number) -> logits."""

_MAX_RESPONSES = 200_000
_MAX_IN_PAIRS = 3_000  # responses whose pairs are listed: 4.5 million of them
_SUM_TOLERANCE = 1e-3  # float32 log-probs of a network add up to 1 within about 1e-5


class PopulationPairs(NamedTuple):
    """All unordered pairs of different responses to each prompt: what endless preference data would show."""

    first: Int[Tensor, "P"]  # response numbers, first < second
    second: Int[Tensor, "P"]
    preference: Float[Tensor, "*K P"]  # Bradley-Terry probability that `first` is preferred
    weight: Float[Tensor, "*K P"]  # how often two draws from the behaviour policy make this pair; adds up to 1


class ExactWorld:
    """The responses are all token strings that end with their first EOS or stop at `max_length`.

    `reward(tokens)` scores a response, its EOS included. `reference(prefix)` gives the logits of the next token; the
    default draws them from a normal distribution with standard deviation `peakedness`, the same for the same seed.
    With `num_prompts` both are called with the number of the prompt too. A policy is a vector of log-probs in the
    order of `responses` ([N], or [K, N]). ConfigError for a world that cannot be listed.
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        reward: Reward,
        beta: float,
        eos_id: int = 0,
        *,
        num_prompts: int | None = None,
        reference: Reference | None = None,
        seed: int = 0,
        peakedness: float = 2.0,
    ):
        _check(vocab_size, max_length, beta, eos_id, num_prompts)
        self.vocab_size, self.max_length, self.beta, self.eos_id = vocab_size, max_length, float(beta), eos_id
        self.num_prompts = num_prompts
        self.tree = PrefixTree(vocab_size, max_length, eos_id)
        self.rewards = self._for_each_prompt(lambda *prompt: [float(reward(t, *prompt)) for t in self.responses])
        self.ref_logprobs = self.sequence_logprobs(reference or _PeakyReference(vocab_size, seed, peakedness))

    @property
    def responses(self) -> list[Tokens]:
        """All responses, EOS included where it ends them."""
        return self.tree.responses

    @property
    def lengths(self) -> Int[Tensor, "N"]:
        """Tokens of each response, EOS included."""
        return self.tree.lengths

    def with_reference(self, ref_logprobs: Float[Tensor, "*K N"]) -> "ExactWorld":
        """The same world with another reference policy: the one a run really started from."""
        other = copy.copy(self)
        other.ref_logprobs = self._policy(ref_logprobs)
        return other

    def with_rewards(self, rewards: Float[Tensor, "*K N"], beta: float) -> "ExactWorld":
        """The same responses and reference under another reward: a reward model's scores, or IPO's win rates."""
        _check(self.vocab_size, self.max_length, beta, self.eos_id, self.num_prompts)
        other = copy.copy(self)
        other.rewards, other.beta = rewards.double().reshape(self.rewards.shape), float(beta)
        return other

    # -- what is optimal ---------------------------------------------------------------------------------------------
    @property
    def log_partition(self) -> Float[Tensor, "*K"]:
        """log Z, Z = E_mu[exp(r / beta)]."""
        return (self.ref_logprobs + self.rewards / self.beta).logsumexp(-1)

    def optimum(self) -> Float[Tensor, "*K N"]:
        """log pi*: what reinforcement learning under a KL penalty, and DPO with endless data, converge to."""
        return self.ref_logprobs + self.rewards / self.beta - self.log_partition.unsqueeze(-1)

    def ipo_optimum(self, tau: float, *, behaviour: Float[Tensor, "*K N"] | None = None) -> Float[Tensor, "*K N"]:
        """log of ref exp(p(y > mu) / tau) / Z: IPO's optimum, p(y > mu) the chance to beat a draw from mu.

        mu is the `behaviour` policy (log-probs; the reference if None), by which pairs must be weighted,
        w(y, y') = mu(y) mu(y'): with another weighting the closed form does not hold. Azar et al. 2023, sec. 4, with
        the identity for Psi.
        """
        mu = (self.ref_logprobs if behaviour is None else self._policy(behaviour)).exp()
        return (self.ref_logprobs + self.win_rates(mu) / tau).log_softmax(-1)

    def win_rates(self, mu: Float[Tensor, "*K N"]) -> Float[Tensor, "*K N"]:
        """p(y > mu): how often each response is preferred to a draw from probabilities `mu`."""
        if self.num_prompts is not None:
            return torch.stack([_win_rates(r, m) for r, m in zip(self.rewards, mu, strict=True)])
        return _win_rates(self.rewards, mu)

    # -- how good a policy is ----------------------------------------------------------------------------------------
    def expected_reward(self, logprobs: Float[Tensor, "*K N"]) -> Float[Tensor, ""]:
        """E_pi[r]."""
        return (self._policy(logprobs).exp() * self.rewards).sum(-1).mean()

    def objective(self, logprobs: Float[Tensor, "*K N"]) -> Float[Tensor, ""]:
        """J(pi): expected reward less beta times the KL to the reference. Its gradient is the exact policy gradient."""
        return self.expected_reward(logprobs) - self.beta * self.kl(logprobs)

    def regret(self, logprobs: Float[Tensor, "*K N"]) -> Float[Tensor, ""]:
        """J(pi*) - J(pi), at least 0 (up to rounding, about 1e-15)."""
        return self.beta * self.log_partition.mean() - self.objective(logprobs)

    def share_of_optimum(self, logprobs: Float[Tensor, "*K N"]) -> Float[Tensor, ""]:
        """(J(pi) - J(ref)) / (J* - J(ref)): the share of the achievable improvement; 1 at the optimum."""
        achievable = self.regret(self.ref_logprobs)
        return (achievable - self.regret(logprobs)) / achievable

    def kl(self, logprobs: Float[Tensor, "*K N"]) -> Float[Tensor, ""]:
        """KL(pi || ref) in nats per response."""
        return _kl(self._policy(logprobs), self.ref_logprobs).mean()

    def values(self, logprobs: Float[Tensor, "*K N"], *, penalised: bool = True) -> PrefixValues:
        """V^pi after every prefix and Q^pi of every next token, by backward recursion (undiscounted).

        The reward comes with a response's last token; with `penalised` every token also costs
        beta (log pi - log ref), so that the value of the empty prefix is J(pi). A token's own cost is in its Q.
        """
        conditionals = self.tree.conditionals(self._policy(logprobs))
        reference = self.tree.conditionals(self.ref_logprobs)
        cost = self.beta if penalised else 0.0
        steps = [
            -cost * torch.where(own.exp() > 0, own - ref, 0.0) for own, ref in zip(conditionals, reference, strict=True)
        ]
        return self.tree.backward(conditionals, self.rewards, steps)

    # -- preferences -------------------------------------------------------------------------------------------------
    def preferences(self) -> Float[Tensor, "*K N N"]:
        """Bradley-Terry: entry [i, j] is the probability that response i is preferred to response j."""
        self._check_pairs()
        return (self.rewards.unsqueeze(-1) - self.rewards.unsqueeze(-2)).sigmoid()

    def pairs(self, *, behaviour: Float[Tensor, "*K N"] | None = None) -> PopulationPairs:
        """All pairs, weighted by how often two draws from `behaviour` (the reference if None) make them.

        N (N - 1) / 2 for each prompt. ConfigError for a world with too many.
        """
        self._check_pairs()
        drawn = self.ref_logprobs if behaviour is None else self._policy(behaviour)
        first, second = torch.triu_indices(len(self.responses), len(self.responses), offset=1)
        logits = drawn[..., first] + drawn[..., second]
        weight = (logits - logits.logsumexp(-1, keepdim=True)).exp() / (self.num_prompts or 1)
        return PopulationPairs(first, second, (self.rewards[..., first] - self.rewards[..., second]).sigmoid(), weight)

    def pair_logprobs(
        self, logprobs: Float[Tensor, "*K N"], chosen: Int[Tensor, "P"], rejected: Int[Tensor, "P"]
    ) -> PairLogprobs:
        """A policy's log-probs of given pairs of response numbers, as the preference losses take them.

        Of several prompts: the pairs of the first, then those of the second, ...
        """
        lengths = self.lengths.expand(self.rewards.shape)
        taken = (x[..., pair].flatten() for x in (logprobs, lengths) for pair in (chosen, rejected))
        return PairLogprobs(*taken)

    def population_loss(
        self, loss: PreferenceLoss, logprobs: Float[Tensor, "*K N"], *, pairs: PopulationPairs | None = None
    ) -> Float[Tensor, ""]:
        """The expectation of a preference loss over all pairs and both outcomes of each: no sampling noise at all.

        `pairs` may be given to save making them again at every step, or to change preferences (flipped labels).
        """
        first, second, preference, weight = self.pairs() if pairs is None else pairs
        reference, preference, weight = self.ref_logprobs, preference.flatten(), weight.flatten()
        won = loss.per_pair(self.pair_logprobs(logprobs, first, second), self.pair_logprobs(reference, first, second))
        lost = loss.per_pair(self.pair_logprobs(logprobs, second, first), self.pair_logprobs(reference, second, first))
        return (weight * (preference * won + (1 - preference) * lost)).sum()

    def likelihood_gap(self, scores: Float[Tensor, "*K N"]) -> Float[Tensor, ""]:
        """What a reward model's Bradley-Terry likelihood of all pairs lacks: E[KL(p || sigmoid(s - s'))], nats a pair.

        Over pairs of different draws from the reference. 0 exactly where `scores` are the rewards plus a number for
        each prompt. Works in pieces: any world will do, though 20,000 responses take some seconds.
        """
        size = len(self.responses)
        rows = zip(*(x.double().reshape(-1, size) for x in (self.rewards, scores, self.ref_logprobs)), strict=True)
        gaps = [_likelihood_gap(rewards, scored, mu.exp()) for rewards, scored, mu in rows]
        return torch.stack(gaps).mean()

    # -- policies ----------------------------------------------------------------------------------------------------
    def sequence_logprobs(self, next_token_logits: Reference) -> Float[Tensor, "*K N"]:
        """log pi of every response for a policy given by its next-token logits after a prefix, () being the empty one.

        They add up to 1: a response that stops at `max_length` without EOS has no factor for stopping.
        """

        def table(depth: int) -> Tensor:
            prefixes = list(self.tree.prefixes(depth))
            logits = self._for_each_prompt(lambda *prompt: [list(next_token_logits(p, *prompt)) for p in prefixes])
            return logits.log_softmax(-1)

        tables: Tables = [table(depth) for depth in range(self.max_length)]
        return self.tree.on_responses(tables).sum(-1)

    def _for_each_prompt(self, make: Callable[..., list]) -> Tensor:
        """float64 of `make()`, or of `make(k)` for each prompt, stacked."""
        if self.num_prompts is None:
            return torch.tensor(make(), dtype=torch.float64)
        return torch.tensor([make(prompt) for prompt in range(self.num_prompts)], dtype=torch.float64)

    def _policy(self, logprobs: Float[Tensor, "*K N"]) -> Float[Tensor, "*K N"]:
        """`logprobs` in float64, checked to be a distribution: regret means nothing for anything else."""
        if logprobs.shape != self.rewards.shape:
            prompts = "" if self.num_prompts is None else f" to each of the {self.num_prompts} prompts"
            raise ConfigError(
                f"ExactWorld: log-probs of shape {tuple(logprobs.shape)}, expected one for each of the "
                f"{len(self.responses)} responses{prompts}"
            )
        totals = logprobs.detach().double().exp().sum(-1)
        worst = totals.flatten()[(totals - 1).abs().argmax()].item()
        if not abs(worst - 1) < _SUM_TOLERANCE:
            raise ConfigError(f"ExactWorld: the probabilities of all responses add up to {worst:.6g}, not to 1")
        return logprobs.double()

    def _check_pairs(self) -> None:
        if len(self.responses) > _MAX_IN_PAIRS:
            raise ConfigError(
                f"ExactWorld: all pairs of {len(self.responses)} responses do not fit; up to {_MAX_IN_PAIRS} can be "
                "listed. Make the world smaller, or draw pairs (data.source.pairs=fresh)"
            )


class _PeakyReference:
    """Next-token logits drawn once per prefix: a pure function of (seed, prompt, prefix)."""

    def __init__(self, vocab_size: int, seed: int, peakedness: float):
        self.vocab_size, self.seed, self.peakedness = vocab_size, seed, peakedness

    def __call__(self, prefix: Tokens, prompt: int = 0) -> Sequence[float]:
        # the prefix as a number in base vocab_size, with a leading 1 so that () and (0,) differ
        number = 1
        for token in prefix:
            number = number * self.vocab_size + token
        mixed = self.seed * 1_000_003 + prompt * 15_485_863_000_003 + number
        generator = torch.Generator().manual_seed(mixed % 2**63)
        draws = torch.randn(self.vocab_size, generator=generator, dtype=torch.float64)
        return (self.peakedness * draws).tolist()


def _win_rates(rewards: Float[Tensor, "N"], mu: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Over different rewards only: there are far fewer of them than responses, as a rule."""
    levels, which = rewards.unique(return_inverse=True)
    mass = mu.new_zeros(len(levels)).index_add(0, which, mu)
    wins = torch.cat([(part.unsqueeze(1) - levels).sigmoid() @ mass for part in levels.split(1024)])
    return wins[which]


def _likelihood_gap(rewards: Float[Tensor, "N"], scores: Float[Tensor, "N"], mu: Float[Tensor, "N"]) -> Tensor:
    """Identical draws make no pair: their KL is 0 anyhow, so only the weights know."""
    total = mu.new_zeros(())
    for part in torch.arange(len(mu)).split(1024):
        true, given = rewards[part].unsqueeze(1) - rewards, scores[part].unsqueeze(1) - scores
        wins = true.sigmoid()
        # KL of two coins by their logits: p (t - g) + log(1 - p) - log(1 - q)
        gap = wins * (true - given) + torch.nn.functional.softplus(given) - torch.nn.functional.softplus(true)
        total = total + mu[part] @ (gap @ mu)
    return total / (1 - mu.square().sum())


def _kl(logprobs: Float[Tensor, "*K N"], other: Float[Tensor, "*K N"]) -> Float[Tensor, "*K"]:
    # what is never sampled adds nothing: 0 * (-inf) is 0 here
    return (logprobs.exp() * (logprobs - other).masked_fill(logprobs == -math.inf, 0.0)).sum(-1)


def _check(vocab_size: int, max_length: int, beta: float, eos_id: int, num_prompts: int | None) -> None:
    if not beta > 0:
        raise ConfigError(f"ExactWorld: beta={beta} must be a positive number")
    if vocab_size < 2 or max_length < 1 or not 0 <= eos_id < vocab_size:
        raise ConfigError(
            f"ExactWorld: vocab_size={vocab_size}, max_length={max_length}, eos_id={eos_id}; there must be at least "
            "two tokens and one place, and eos_id must be one of the tokens"
        )
    if num_prompts is not None and num_prompts < 1:
        raise ConfigError(f"ExactWorld: num_prompts={num_prompts} must be at least 1 (None: a world of one prompt)")
    words = vocab_size - 1
    number = sum(words**length for length in range(max_length + 1)) * (num_prompts or 1)
    if number > _MAX_RESPONSES:
        raise ConfigError(
            f"ExactWorld: vocab_size={vocab_size}, max_length={max_length} and {num_prompts or 1} prompts make "
            f"{number} responses, more than {_MAX_RESPONSES}; make one of them smaller"
        )
