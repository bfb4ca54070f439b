"""Rewards of exact worlds: functions of the response's tokens. Any callable will do in their place."""

import math
import random
from collections.abc import Sequence

from alignlab.errors import ConfigError
from alignlab.worlds.exact.tree import Tokens


class TokenCounts:
    """The sum of a weight for each token: order does not matter. `weights[token]`, 0 for tokens past its end.

    With several prompts the weights are turned by one token for each, so that no two prompts want the same.
    """

    def __init__(self, weights: Sequence[float], eos_id: int = 0):
        self.weights, self.eos_id = [float(weight) for weight in weights], eos_id

    def __call__(self, tokens: Tokens, prompt: int = 0) -> float:
        """The reward of a response."""
        return sum(self._weight(token, prompt) for token in tokens)

    def _weight(self, token: int, prompt: int) -> float:
        others = [index for index in range(len(self.weights)) if index != self.eos_id]
        if token in others:
            token = others[(others.index(token) + prompt) % len(others)]
        return self.weights[token] if token < len(self.weights) else 0.0


class Automaton:
    """A finite automaton reads the response, and each step it takes pays: order matters, and so does the past.

    In state s it reads a token, pays `pay[s][token]` and goes on to state `(s + token + 1) % num_states`. What is
    paid is drawn once from a normal distribution with standard deviation `scale`, from the seed (and the prompt).
    """

    def __init__(self, vocab_size: int, num_states: int = 3, scale: float = 1.0, seed: int = 0):
        if num_states < 1 or vocab_size < 2:
            raise ConfigError(f"Automaton: num_states={num_states}, vocab_size={vocab_size}: at least 1 and 2")
        self.vocab_size, self.num_states, self.scale, self.seed = vocab_size, num_states, scale, seed
        self._pay: dict[int, list[list[float]]] = {}

    def __call__(self, tokens: Tokens, prompt: int = 0) -> float:
        """The reward of a response."""
        pay, state, total = self.pay(prompt), 0, 0.0
        for token in tokens:
            total += pay[state][token]
            state = (state + token + 1) % self.num_states
        return total

    def pay(self, prompt: int = 0) -> list[list[float]]:
        """What each token pays in each state."""
        if prompt not in self._pay:
            rng = random.Random(f"automaton/{self.seed}/{prompt}")
            self._pay[prompt] = [
                [rng.gauss(0.0, self.scale) for _ in range(self.vocab_size)] for _ in range(self.num_states)
            ]
        return self._pay[prompt]


class RandomTable:
    """A number for each response, drawn from a normal distribution: nothing to generalise from."""

    def __init__(self, scale: float = 1.0, seed: int = 0):
        self.scale, self.seed = scale, seed

    def __call__(self, tokens: Tokens, prompt: int = 0) -> float:
        """The reward of a response."""
        return random.Random(f"table/{self.seed}/{prompt}/{tokens}").gauss(0.0, self.scale)


class Bandit:
    """A reward for each token; a response of several gets the sum. With max_length 1: the bandits papers argue with."""

    def __init__(self, rewards: Sequence[float]):
        self.rewards = [float(reward) for reward in rewards]
        if any(not math.isfinite(reward) for reward in self.rewards):
            raise ConfigError(f"Bandit: rewards={self.rewards}: each must be a finite number")

    def __call__(self, tokens: Tokens, prompt: int = 0) -> float:
        """The reward of a response."""
        return sum(self.rewards[token] for token in tokens)
