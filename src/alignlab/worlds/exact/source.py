"""The exact world as a source of rows: what real data modules, methods and networks are trained on.

How preference data come about is chosen freely, because that is what is studied: every pair at once, fresh ones at
each step, or a given number of them; with the true probabilities as soft labels, with labels drawn from them, or with
labels that never err; with a share of labels flipped, and with judges that like long replies.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignlab.errors import ConfigError, DataError
from alignlab.rows import PreferenceRow, PromptRow, Row, RowT, SFTRow, Split, UnpairedRow
from alignlab.worlds.exact.network import response_logprobs
from alignlab.worlds.exact.text import Script
from alignlab.worlds.exact.world import ExactWorld

_MAX_POPULATION = 1_000  # responses whose pairs are written out as rows: half a million
_SPLIT_SEEDS: dict[Split, int] = {"train": 1, "validation": 2, "test": 3}


class _Pairs(NamedTuple):
    """Drawn pairs: of each the prompt and two response numbers, and the probability that the first is chosen."""

    prompt: Int[Tensor, "P"]
    first: Int[Tensor, "P"]
    second: Int[Tensor, "P"]
    preference: Float[Tensor, "P"]
    weight: Float[Tensor, "P"]


class ExactSource:
    """`RowSource` of an exact world; responses are drawn from the world's reference.

    `reference` is a policy that takes that place: a network that is called with sequences and answers with log-probs,
    so that pairs come from the very policy that training starts from.

    pairs   fresh       new ones at every training step, forever (set method.max_steps); so are prompts and SFT rows
            sampled     `num_pairs` of them; another `seed`, other pairs
            population  every pair once, weighted by how often two draws make it (up to 1,000 responses)
    labels  soft           the probability that the first is preferred, as a soft label
            bradley_terry  drawn from it: P(first) = sigmoid(r(first) - r(second))
            deterministic  the greater reward wins; a tie is soft
    Before a label is given, `length_bias` nats are added for each token that a reply is longer, and then a share
    `flip_rate` of the labels is turned round. ConfigError for settings that do not go together.
    """

    def __init__(
        self,
        world: ExactWorld,
        *,
        reference: Any = None,
        pairs: Literal["fresh", "sampled", "population"] = "fresh",
        labels: Literal["soft", "bradley_terry", "deterministic"] = "soft",
        num_pairs: int | None = None,
        num_held_out: int = 512,
        flip_rate: float = 0.0,
        length_bias: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.world = world if reference is None else world.with_reference(_logprobs_of(reference, world))
        self.script = Script(world)
        self.pairs, self.labels = pairs, labels
        self.num_pairs, self.num_held_out = num_pairs, num_held_out
        self.flip_rate, self.length_bias, self.seed = flip_rate, length_bias, seed
        self._mu = self.world.ref_logprobs.exp().reshape(-1, len(world.responses))
        self._texts = [self.script.response(tokens) for tokens in world.responses]
        self._check()

    @property
    def fresh_rows(self) -> Callable[..., Sequence[Any]] | None:
        """Makes the rows of a training step where they are always new; None where they are a fixed set."""
        return self._fresh_rows if self.pairs == "fresh" else None

    def rows(self, row_type: type[RowT], split: Split) -> Iterator[RowT]:
        """The fixed rows of a split: each prompt once, or pairs (or SFT rows) drawn once for all."""
        generator = self._generator(_SPLIT_SEEDS[split], 0)
        if row_type is PromptRow:
            yield from self._make(row_type, len(self.script.prompts), 0, generator)
        elif split == "train" and self.pairs == "fresh":
            return
        elif self.pairs == "population" and row_type is PreferenceRow:
            yield from self._pair_rows(self._population())
        else:
            number = self.num_pairs if split == "train" else self.num_held_out
            yield from self._make(row_type, number or self.num_held_out, 0, generator)

    def _fresh_rows(self, row_type: type[RowT], *, step: int, batch_size: int, seed: int) -> Sequence[RowT]:
        return self._make(row_type, batch_size, step * batch_size, self._generator(seed, step + 1))

    def _make(self, row_type: type[Any], number: int, start: int, generator: torch.Generator) -> list[Any]:
        """`number` rows; prompts take turns, the first row's being the prompt of row `start`."""
        makers: dict[type[Row], Callable[[Tensor, torch.Generator], list[Row]]] = {
            PromptRow: self._prompt_rows,
            SFTRow: self._sft_rows,
            PreferenceRow: self._preference_rows,
            UnpairedRow: self._unpaired_rows,
        }
        if row_type not in makers:
            allowed = ", ".join(known.__name__ for known in makers)
            raise DataError(f"exact world: no rows of type {row_type.__name__}; it has {allowed}")
        return makers[row_type](torch.arange(start, start + number) % len(self.script.prompts), generator)

    # -- rows of each kind -------------------------------------------------------------------------------------------
    def _prompt_rows(self, prompts: Tensor, generator: torch.Generator) -> list[Row]:
        return [PromptRow(self.script.prompts[prompt]) for prompt in prompts.tolist()]

    def _sft_rows(self, prompts: Tensor, generator: torch.Generator) -> list[Row]:
        drawn = self._draw(prompts, generator).tolist()
        return [SFTRow(self.script.prompts[p], self._texts[n]) for p, n in zip(prompts.tolist(), drawn, strict=True)]

    def _preference_rows(self, prompts: Tensor, generator: torch.Generator) -> list[Row]:
        return list(self._pair_rows(self._drawn_pairs(prompts, generator), generator))

    def _unpaired_rows(self, prompts: Tensor, generator: torch.Generator) -> list[Row]:
        """A drawn pair gives one row: its chosen reply, desirable, or its rejected one, undesirable, by a coin."""
        made, coins = [], torch.rand(len(prompts), generator=generator)
        drawn = self._drawn_pairs(prompts, generator)
        for row, coin in zip(self._pair_rows(self._decided(drawn, generator)), coins.tolist(), strict=True):
            desirable = coin < 0.5
            made.append(UnpairedRow(row.prompt, row.chosen if desirable else row.rejected, desirable))
        return made

    def _pair_rows(self, pairs: _Pairs, generator: torch.Generator | None = None) -> Iterator[Any]:
        if self.labels == "bradley_terry" and generator is not None:
            pairs = self._decided(pairs, generator)
        for prompt, first, second, preference, weight in zip(*(column.tolist() for column in pairs), strict=True):
            chosen, rejected = self._texts[first], self._texts[second]
            yield PreferenceRow(self.script.prompts[prompt], chosen, rejected, preference, weight)

    # -- drawing -----------------------------------------------------------------------------------------------------
    def _draw(self, prompts: Tensor, generator: torch.Generator) -> Int[Tensor, "P"]:
        drawn = torch.empty_like(prompts)
        for prompt in prompts.unique().tolist():
            at = prompts == prompt
            drawn[at] = torch.multinomial(self._mu[prompt], int(at.sum()), replacement=True, generator=generator)
        return drawn

    def _drawn_pairs(self, prompts: Tensor, generator: torch.Generator) -> _Pairs:
        """Two different draws each; both are drawn again where they are the same, so that w(y, y') = mu(y) mu(y')."""
        first, second = self._draw(prompts, generator), self._draw(prompts, generator)
        while bool((same := first == second).any()):
            first[same], second[same] = self._draw(prompts[same], generator), self._draw(prompts[same], generator)
        preference = self._preference(prompts, first, second)
        return _Pairs(prompts, first, second, preference, torch.ones_like(preference))

    def _decided(self, pairs: _Pairs, generator: torch.Generator) -> _Pairs:
        """Labels drawn: the chosen reply first, for certain."""
        draws = torch.rand(len(pairs.first), generator=generator, dtype=torch.float64)
        keeps = draws < pairs.preference
        first, second = torch.where(keeps, pairs.first, pairs.second), torch.where(keeps, pairs.second, pairs.first)
        return pairs._replace(first=first, second=second, preference=torch.ones_like(pairs.preference))

    def _population(self) -> _Pairs:
        listed = self.world.pairs()
        parts = []
        for prompt in range(len(self.script.prompts)):
            prompts = torch.full_like(listed.first, prompt)
            preference = self._preference(prompts, listed.first, listed.second)
            weight = listed.weight.reshape(-1, len(listed.first))[prompt]
            parts.append(_Pairs(prompts, listed.first, listed.second, preference, weight * listed.weight.numel()))
        return _Pairs(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _preference(self, prompts: Tensor, first: Tensor, second: Tensor) -> Float[Tensor, "P"]:
        """The probability that the first of two responses is labelled the better one."""
        rewards, lengths = self.world.rewards.reshape(-1, len(self.world.responses)), self.world.lengths
        logit = rewards[prompts, first] - rewards[prompts, second]
        logit = logit + self.length_bias * (lengths[first] - lengths[second])
        if self.labels == "deterministic":
            wins = torch.where(logit > 0, 1.0, torch.where(logit < 0, 0.0, 0.5)).double()
        else:
            wins = logit.sigmoid()
        return (1 - self.flip_rate) * wins + self.flip_rate * (1 - wins)

    def _generator(self, *numbers: int) -> torch.Generator:
        mixed = self.seed
        for number in numbers:
            mixed = (mixed * 1_000_003 + number + 1) % 2**62
        return torch.Generator().manual_seed(mixed)

    def _check(self) -> None:
        faults = []
        if self.pairs not in ("fresh", "sampled", "population"):
            faults.append(f"data.source.pairs={self.pairs}: allowed are fresh, sampled and population")
        if self.labels not in ("soft", "bradley_terry", "deterministic"):
            faults.append(f"data.source.labels={self.labels}: allowed are soft, bradley_terry and deterministic")
        if (self.pairs == "sampled") != (self.num_pairs is not None):
            faults.append(f"data.source.num_pairs={self.num_pairs}: a number for pairs=sampled, null for the others")
        if self.pairs == "population" and self.labels == "bradley_terry":
            faults.append("data.source.labels=bradley_terry: every pair is there once (pairs=population); choose soft")
        if self.pairs == "population" and len(self._texts) > _MAX_POPULATION:
            faults.append(
                f"data.source.pairs=population: {len(self._texts)} responses make too many pairs, the most is "
                f"{_MAX_POPULATION} responses; choose fresh"
            )
        if (self.num_pairs is not None and self.num_pairs < 1) or self.num_held_out < 0:
            faults.append(f"data.source.num_pairs={self.num_pairs}, num_held_out={self.num_held_out}: at least 1 and 0")
        if not 0 <= self.flip_rate < 0.5:
            faults.append(f"data.source.flip_rate={self.flip_rate}: from 0 to below 0.5")
        if faults:
            raise ConfigError("\n".join(faults))


@torch.no_grad()
def _logprobs_of(reference: Any, world: ExactWorld) -> Float[Tensor, "*K N"]:
    """log pi of every response for a network; made to add up to 1, which float32 misses by about 1e-6."""
    logprobs = response_logprobs(lambda sequences: reference(sequences).logprobs, world, device=reference.device)
    world.kl(logprobs)  # refuses what is no distribution over the responses
    return logprobs.log_softmax(-1)
