"""NamedTuples that carry tensors between rooms. B sequences, P pairs, T token positions.

Masks: True counts. `labels` stand at the position of the token they name (not shifted): labels[b, t] is
input_ids[b, t] where that token is scored, and IGNORE elsewhere. The shift happens in one function,
`kernels.logprobs.shift_labels`; per-token results (log-probs, values, rewards) are in *shifted* coordinates:
entry [b, t] belongs to the token at t + 1, predicted from position t, and the last column never counts.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignlab.rows import Prompt

IGNORE = -100
"""The label of a token that is not scored."""


class Sequences(NamedTuple):
    """Token sequences of one batch, padded to a common length (either side; `attention_mask` says which)."""

    input_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]  # True: a real token
    labels: Int[Tensor, "B T"]  # the token's own id where it is scored, IGNORE elsewhere; position 0 is never scored

    @property
    def num_rows(self) -> int:
        """B."""
        return self.input_ids.shape[0]

    def take(self, index: "Tensor | slice") -> "Sequences":
        """Some of the rows, with columns that are padding in all of them cut off."""
        ids, mask, labels = self.input_ids[index], self.attention_mask[index], self.labels[index]
        used = mask.any(0).nonzero().flatten()
        if used.numel() == 0:
            return Sequences(ids, mask, labels)
        first, last = int(used[0]), int(used[-1]) + 1
        return Sequences(ids[:, first:last], mask[:, first:last], labels[:, first:last])

    @property
    def num_scored(self) -> Int[Tensor, ""]:
        """Number of scored tokens in the whole batch."""
        return (self.labels != IGNORE).sum()


class SFTBatch(NamedTuple):
    """One optimizer step's rows for SFT (on this process)."""

    sequences: Sequences  # (B, T)
    rows: Int[Tensor, "B"]  # row numbers in the data set, for messages and caches

    def take(self, index: Int[Tensor, "b"]) -> "SFTBatch":
        """Some of the rows."""
        return SFTBatch(self.sequences.take(index), self.rows[index])

    def sequence_rows(self, index: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
        """Which of `sequences` those rows are."""
        return index

    def split(self, size: int) -> "Iterator[SFTBatch]":
        """Micro-batches of at most `size` sequences."""
        for index in torch.arange(len(self.rows), device=self.rows.device).split(size):
            yield self.take(index)


class PreferenceBatch(NamedTuple):
    """P pairs as 2P sequences: first all chosen, then all rejected, so that one forward pass serves both."""

    sequences: Sequences  # (2P, T)
    rows: Int[Tensor, "P"]
    preference: Float[Tensor, "P"] | None = None  # probability that chosen is the better one; None: certain, all 1
    weight: Float[Tensor, "P"] | None = None  # of each pair in a mean over pairs; None: all 1
    ref_logprobs: Float[Tensor, "2P"] | None = None  # what the reference says of each sequence, once it was asked

    @property
    def total_weight(self) -> Float[Tensor, ""]:
        """What a mean over the pairs divides by: the sum of their weights, P where they count alike; float64."""
        if self.weight is None:
            return torch.tensor(float(len(self.rows)), dtype=torch.float64, device=self.rows.device)
        return self.weight.double().sum()

    def take(self, index: Int[Tensor, "p"]) -> "PreferenceBatch":
        """Some of the pairs."""
        rows = self.sequence_rows(index)
        preference = None if self.preference is None else self.preference[index]
        weight = None if self.weight is None else self.weight[index]
        reference = None if self.ref_logprobs is None else self.ref_logprobs[rows]
        return PreferenceBatch(self.sequences.take(rows), self.rows[index], preference, weight, reference)

    def likelier(self) -> "PreferenceBatch":
        """The pairs as an evaluation takes them: the likelier better reply as the chosen one, each label for certain.

        A pair of preference 1/2 says nothing and is left out; weights, and what a reference said, are dropped.
        """
        if self.preference is None:
            return PreferenceBatch(self.sequences, self.rows)
        told = (self.preference != 0.5).nonzero()[:, 0]
        other = len(self.rows) * (self.preference[told] < 0.5).long()  # how far down its chosen reply stands
        both = torch.cat([told + other, told + len(self.rows) - other])
        return PreferenceBatch(self.sequences.take(both), self.rows[told])

    def sequence_rows(self, index: Int[Tensor, "p"]) -> Int[Tensor, "2p"]:
        """Which of `sequences` those pairs are: their chosen replies, then their rejected ones."""
        return torch.cat([index, index + len(self.rows)])

    def split(self, size: int) -> "Iterator[PreferenceBatch]":
        """Micro-batches of at most `size` pairs."""
        for index in torch.arange(len(self.rows), device=self.rows.device).split(size):
            yield self.take(index)


class UnpairedBatch(NamedTuple):
    """Replies judged one by one, and the same prompts with replies that were given to others.

    The mismatched pairs are what KTO estimates its KL from: prompt i with the reply of row i + s of the same batch
    (cyclic), for the least shift s that gives the fewest prompts a reply of their own; s = 1 where prompts differ.
    """

    sequences: Sequences  # (B, T)
    rows: Int[Tensor, "B"]
    desirable: Bool[Tensor, "B"]
    kl_sequences: Sequences | None  # (B, T'): prompt of row i, somebody else's reply; None in a batch of one row

    def split(self, size: int) -> "Iterator[UnpairedBatch]":
        """Micro-batches of at most `size` rows; the mismatched pairs stay those of the whole batch."""
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            mismatched = None if self.kl_sequences is None else self.kl_sequences.take(part)
            yield UnpairedBatch(self.sequences.take(part), self.rows[part], self.desirable[part], mismatched)


class PromptBatch(NamedTuple):
    """Prompts to generate from, padded on the left so that every reply starts in the same column."""

    input_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    rows: Int[Tensor, "B"]
    prompts: tuple[Prompt, ...]  # as they stand in the data, for reward functions and logs


class Rollout(NamedTuple):
    """Replies sampled from a policy: left-padded prompt, reply, right padding, in one tensor.

    Scored tokens (`sequences.labels`) are the reply's, its stop token included where there is one.
    """

    sequences: Sequences  # (B, T)
    sampler_logprobs: Float[
        Tensor, "B T"
    ]  # of each reply token as the sampler saw it; shifted coordinates, 0 elsewhere
    complete: Bool[Tensor, "B"]  # True: the reply ended with a stop token
    prompts: tuple[Prompt, ...]
    responses: tuple[str, ...]  # decoded up to, not including, the stop token
