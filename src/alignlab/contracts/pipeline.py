"""Collator, network and loss together: padding, its side, its tokens and batch-mates never reach value or gradient."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from alignlab.batches import IGNORE, Sequences
from alignlab.contracts.finding import Finding, difference
from alignlab.contracts.networks import END, PAD, VOCAB_SIZE, Networks, Positions, tiny_networks
from alignlab.contracts.pairs import Pairs
from alignlab.contracts.scores import Scores
from alignlab.contracts.subjects import Subject
from alignlab.contracts.tokens import PolicyTokens, ReplyTokens, ValueTokens
from alignlab.contracts.unpaired import Replies
from alignlab.data.collate import collate
from alignlab.data.encoded import EncodedRows, TokenTable
from alignlab.losses.base import LossOutput
from alignlab.losses.unpaired import UnpairedLogprobs
from alignlab.methods.dpo import pair_logprobs
from alignlab.rows import PreferenceRow, SFTRow, UnpairedRow

Batch = Any
"""A NamedTuple of `alignlab.batches` that holds `Sequences`."""

_ROWS = ((5, 3, 9), (2, 7, 1), (3, 2, 4), (4, 12, 2))  # tokens of prompt, chosen and rejected reply
_POSITIONS: dict[Positions, str] = {"gpt2": "learned", "llama": "rotary"}
_ALLOWED = 1e-8
_ALLOWED_FLOAT32 = 1e-4


class Reader(NamedTuple):
    """How a method hands a batch to a loss of this kind."""

    row_type: type
    read: Callable[[Any, Batch, Networks], LossOutput]
    trained: Callable[[Networks], nn.Module]
    allowed: float


def padding(subject: Subject) -> Iterator[Finding]:
    """From collator to gradient, padding and batch-mates do not matter.

    Masked positions, the side that is padded, with what, and how far: on learned and on rotary positions.
    """
    reader = READERS[type(subject)]
    rows = encoded(reader.row_type)
    plain = collate(rows, range(len(rows)), pad_id=PAD)
    varied = _variations(rows, plain, cut=not subject.is_coupled)
    for positions, kind in _POSITIONS.items():
        expected = _measured(subject, reader, [plain], positions)
        for what, parts in varied.items():
            yield Finding(
                f"{what} ({kind} positions): loss or gradient changes by",
                _apart(_measured(subject, reader, parts, positions), expected),
                reader.allowed,
                "a mean over all positions, a length counted with padding, labels or positions that count padding, or "
                "a statistic over the padded batch",
            )


def encoded(row_type: type) -> EncodedRows:
    """Four rows of different lengths, ids drawn at random (none of them pad or end), each reply closed by the end."""
    generator = np.random.default_rng(0)

    def ids(length: int) -> np.ndarray:
        return generator.integers(2, VOCAB_SIZE, length, dtype=np.int32)

    tables: list[list[tuple[np.ndarray, int]]] = [[], []]
    for prompt_length, *reply_lengths in _ROWS:
        prompt = ids(prompt_length)
        for table, length in zip(tables, reply_lengths, strict=True):
            table.append((np.concatenate([prompt, ids(length - 1), np.array([END], dtype=np.int32)]), prompt_length))
    kept = tables if row_type is PreferenceRow else tables[:1]
    names = tuple(f"prompt {i}" for i in range(len(_ROWS)))
    labels = {"desirable": np.array([True, False, True, False])} if row_type is UnpairedRow else {}
    groups = np.arange(len(_ROWS), dtype=np.uint64)
    return EncodedRows(row_type, tuple(TokenTable.from_rows(table) for table in kept), names, groups, labels)


def _variations(rows: EncodedRows, plain: Batch, *, cut: bool) -> dict[str, Sequence[Batch]]:
    """The same rows, written otherwise: each a list of batches whose losses are weighed by their counts."""
    varied = {
        "padded by five columns more, of random tokens": [_each(plain, _longer)],
        "padded on the left": [_each(plain, _left)],
        "padded with the id of the end token": [collate(rows, range(len(rows)), pad_id=END)],
        "random tokens where the attention mask is off": [_each(plain, _scrambled)],
        "a label on the first token, which nothing predicts": [_each(plain, _first_labelled)],
    }
    if cut:
        varied["each row alone, without longer batch-mates"] = [
            collate(rows, [i], pad_id=PAD) for i in range(len(rows))
        ]
    return varied


def _measured(subject: Subject, reader: Reader, parts: Sequence[Batch], positions: Positions) -> list[Tensor]:
    """The loss of all parts together, weighed by their counts, and its gradient for every trained weight."""
    networks, loss = tiny_networks(positions), subject.fresh()
    weights = [p for p in reader.trained(networks).parameters() if p.requires_grad]
    counts = [_count(part, reader) for part in parts]
    total = torch.zeros((), dtype=torch.float64)
    for part, count in zip(parts, counts, strict=True):
        total = total + reader.read(loss, part, networks).loss.double() * count / sum(counts)
    found = torch.autograd.grad(total, weights, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(weights, found, strict=True)]
    return [total.detach(), *gradients]


def _apart(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference of losses, and of gradients relative to the largest of all weights' gradients."""
    scale = max(x.abs().max().item() for x in other[1:]) or 1.0
    gradients = (difference(x / scale, y / scale) for x, y in zip(one[1:], other[1:], strict=True))
    return max(difference(one[0], other[0]), *gradients)


def _count(batch: Batch, reader: Reader) -> float:
    return float(batch.sequences.num_scored) if reader.row_type is SFTRow else float(len(batch.rows))


# -- the same rows written otherwise ---------------------------------------------------------------------------------
def _each(batch: Batch, change: Callable[[Sequences], Sequences]) -> Batch:
    """`change` on all sequences of a batch."""
    return batch._replace(**{k: change(x) for k, x in batch._asdict().items() if isinstance(x, Sequences)})


def _random_ids(*shape: int) -> Tensor:
    return torch.randint(2, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(0))


def _longer(sequences: Sequences) -> Sequences:
    ids, mask, labels = sequences
    more = (len(ids), 5)
    return Sequences(
        torch.cat([ids, _random_ids(*more)], dim=1),
        torch.cat([mask, torch.zeros(more, dtype=torch.bool)], dim=1),
        torch.cat([labels, torch.full(more, IGNORE)], dim=1),
    )


def _left(sequences: Sequences) -> Sequences:
    """Each row rolled so that its real tokens end in the last column."""
    shifts = (~sequences.attention_mask).sum(1).tolist()
    return Sequences(*(torch.stack([row.roll(s) for row, s in zip(x, shifts, strict=True)]) for x in sequences))


def _scrambled(sequences: Sequences) -> Sequences:
    ids = torch.where(sequences.attention_mask, sequences.input_ids, _random_ids(*sequences.input_ids.shape))
    return sequences._replace(input_ids=ids)


def _first_labelled(sequences: Sequences) -> Sequences:
    labels = sequences.labels.clone()
    labels[:, 0] = sequences.input_ids[:, 0]
    return sequences._replace(labels=labels)


# -- how each kind of loss is read -----------------------------------------------------------------------------------
def _read_pairs(loss: Any, batch: Batch, networks: Networks) -> LossOutput:
    out = networks.policy(batch.sequences)
    reference = None
    if loss.needs_reference:
        with torch.no_grad():
            reference = pair_logprobs(networks.reference(batch.sequences).logprobs, out.mask)
    return loss(pair_logprobs(out.logprobs, out.mask), reference)


def _read_replies(loss: Any, batch: Batch, networks: Networks) -> LossOutput:
    def summed(policy: Any, sequences: Sequences) -> UnpairedLogprobs:
        out = policy(sequences)
        return UnpairedLogprobs(out.logprobs.sum(-1), out.mask.sum(-1), batch.desirable)

    given = {}
    with torch.no_grad():
        reference = summed(networks.reference, batch.sequences) if loss.needs_reference else None
        if loss.needs_kl:
            given["kl_policy"] = summed(networks.policy, batch.kl_sequences).logprobs
            given["kl_reference"] = summed(networks.reference, batch.kl_sequences).logprobs
    return loss(summed(networks.policy, batch.sequences), reference, **given)


def _read_scores(loss: Any, batch: Batch, networks: Networks) -> LossOutput:
    chosen, rejected = networks.reward_model(batch.sequences).chunk(2)
    return loss(chosen, rejected)


def _read_reply_tokens(loss: Any, batch: Batch, networks: Networks) -> LossOutput:
    out = networks.policy(batch.sequences)
    return loss(out.logprobs, out.mask)


def _read_policy_tokens(loss: Any, batch: Batch, networks: Networks) -> LossOutput:
    out = networks.policy(batch.sequences, entropy=True)
    with torch.no_grad():
        old = networks.reference(batch.sequences).logprobs
    return loss(out.logprobs, old, torch.sin(3 * old) + 0.5, out.mask, entropy=out.entropy)  # any advantages will do


def _read_value_tokens(loss: Any, batch: Batch, networks: Networks) -> LossOutput:
    out = networks.policy(batch.sequences, values=True)
    with torch.no_grad():
        old = networks.reference(batch.sequences, values=True)
    return loss(out.values, old.values, torch.cos(2 * old.logprobs), out.mask)


def _policy(networks: Networks) -> nn.Module:
    return networks.policy


def _reward_model(networks: Networks) -> nn.Module:
    return networks.reward_model


READERS: dict[type[Subject], Reader] = {
    Pairs: Reader(PreferenceRow, _read_pairs, _policy, _ALLOWED),
    Replies: Reader(UnpairedRow, _read_replies, _policy, _ALLOWED),
    Scores: Reader(PreferenceRow, _read_scores, _reward_model, _ALLOWED_FLOAT32),
    ReplyTokens: Reader(SFTRow, _read_reply_tokens, _policy, _ALLOWED),
    PolicyTokens: Reader(SFTRow, _read_policy_tokens, _policy, _ALLOWED),
    ValueTokens: Reader(SFTRow, _read_value_tokens, _policy, _ALLOWED_FLOAT32),
}
