"""The responses as a tree of prefixes: what is asked of every prefix is one tensor per depth, not a walk in Python.

Let w be the number of words (tokens other than EOS) and L the greatest length. At depth d, from 0 to L - 1, there are
w^d prefixes without EOS, in the order of their token ids, and each is continued by one of the w + 1 = V tokens. So a
function of (prefix, next token) is a *table* per depth, of shape [..., w^d, V]. The responses, in their order, are
blocks: those that end with EOS after d words (w^d of them, d = 0, ..., L - 1), then the w^L that never end.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Tokens = tuple[int, ...]
Tables = list[Float[Tensor, "*prompts prefixes V"]]
"""One tensor per depth: a number for each prefix of that length and each next token."""


class PrefixValues(NamedTuple):
    """What a policy can expect, after every prefix and for every next token."""

    values: list[Float[Tensor, "*prompts prefixes"]]  # V(prefix), one tensor per depth
    action_values: Tables  # Q(prefix, token)

    @property
    def advantages(self) -> Tables:
        """Q - V."""
        return [q - v.unsqueeze(-1) for v, q in zip(self.values, self.action_values, strict=True)]


class PrefixTree:
    """The shape of a world: its responses, their tokens, and how they hang together."""

    def __init__(self, vocab_size: int, max_length: int, eos_id: int):
        self.vocab_size, self.max_length, self.eos_id = vocab_size, max_length, eos_id
        self.words = [token for token in range(vocab_size) if token != eos_id]
        self.block_sizes = [len(self.words) ** depth for depth in range(max_length + 1)]

    @cached_property
    def responses(self) -> list[Tokens]:
        """By length, then in the order of their token ids; at the greatest length the unfinished ones come last."""
        return list(self._responses())

    @cached_property
    def lengths(self) -> Int[Tensor, "N"]:
        """Tokens of each response, EOS included."""
        ends = [min(depth + 1, self.max_length) for depth in range(self.max_length + 1)]
        return torch.repeat_interleave(torch.tensor(ends), torch.tensor(self.block_sizes))

    @cached_property
    def tokens(self) -> Int[Tensor, "N L"]:
        """The responses as one rectangle; EOS after their end."""
        padded = [(*tokens, *[self.eos_id] * (self.max_length - len(tokens))) for tokens in self.responses]
        return torch.tensor(padded)

    def number(self, tokens: Sequence[int]) -> int:
        """The place of a response among `responses`; ValueError if it is none."""
        has_ended = len(tokens) > 0 and tokens[-1] == self.eos_id
        words = list(tokens[:-1] if has_ended else tokens)
        is_whole = len(words) < self.max_length if has_ended else len(words) == self.max_length
        if not is_whole or any(token not in self.words for token in words):
            raise ValueError(f"{tuple(tokens)} is no response")
        within = 0
        for token in words:
            within = within * len(self.words) + self.words.index(token)
        return sum(self.block_sizes[: len(words)]) + within

    def prefixes(self, depth: int) -> Iterator[Tokens]:
        """All prefixes of `depth` words, in the order of the tables."""
        return itertools.product(self.words, repeat=depth)

    def on_responses(self, tables: Tables) -> Float[Tensor, "*prompts N L"]:
        """A table's number for each token of each response; 0 after its end. Differentiable."""
        columns = []
        for depth in range(self.max_length):
            table, parts = tables[depth], []
            for words, size in enumerate(self.block_sizes):
                if words < depth:  # already ended
                    parts.append(table.new_zeros((*table.shape[:-2], size)))
                elif words == depth:  # ends here
                    parts.append(table[..., self.eos_id])
                else:  # goes on with its word number `depth`; the words after it repeat
                    inner = table[..., self.words].flatten(-2)
                    parts.append(inner.repeat_interleave(size // inner.shape[-1], -1))
            columns.append(torch.cat(parts, -1))
        return torch.stack(columns, -1)

    def conditionals(self, logprobs: Float[Tensor, "*prompts N"]) -> Tables:
        """log pi(token | prefix) of the policy that gives the responses these log-probs."""
        masses, blocks = self._masses(logprobs)
        tables = []
        for depth in range(self.max_length):
            table = self._join(blocks[depth], self._by_parent(masses[depth + 1]))
            tables.append(table - masses[depth].unsqueeze(-1))
        return tables

    def backward(self, conditionals: Tables, ends: Float[Tensor, "*prompts N"], steps: Tables) -> PrefixValues:
        """Values by recursion from the ends: Q = step + (end of the response, or V after it), V = E_pi[Q].

        `ends` is received with the last token of a response, `steps` with each token.
        """
        blocks = ends.split(self.block_sizes, -1)
        ahead, values, action_values = blocks[self.max_length], [], []
        for depth in reversed(range(self.max_length)):
            action_value = self._join(blocks[depth], self._by_parent(ahead)) + steps[depth]
            weights = conditionals[depth].exp()
            ahead = torch.where(weights > 0, weights * action_value, 0.0).sum(-1)
            values.insert(0, ahead)
            action_values.insert(0, action_value)
        return PrefixValues(values, action_values)

    def reach(self, logprobs: Float[Tensor, "*prompts N"]) -> list[Float[Tensor, "*prompts prefixes"]]:
        """log of the probability that a response begins with each prefix, one tensor per depth."""
        return self._masses(logprobs)[0][: self.max_length]

    def _responses(self) -> Iterator[Tokens]:
        for depth in range(self.max_length):
            for prefix in self.prefixes(depth):
                yield (*prefix, self.eos_id)
        yield from self.prefixes(self.max_length)

    def _masses(self, logprobs: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """log-probability of all responses below each prefix, depths 0 to L, and the blocks of `logprobs`."""
        blocks = logprobs.split(self.block_sizes, -1)
        masses = [blocks[self.max_length]]
        for depth in reversed(range(self.max_length)):
            masses.insert(0, self._join(blocks[depth], self._by_parent(masses[0])).logsumexp(-1))
        return masses, blocks

    def _by_parent(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, len(self.words)))

    def _join(self, at_eos: Tensor, at_words: Tensor) -> Tensor:
        """[..., prefixes] and [..., prefixes, w] as one table [..., prefixes, V], tokens in the order of their ids."""
        before, after = at_words[..., : self.eos_id], at_words[..., self.eos_id :]
        return torch.cat([before, at_eos.unsqueeze(-1), after], -1)
