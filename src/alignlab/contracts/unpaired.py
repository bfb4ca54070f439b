"""Single replies that were called desirable or not, as KTO and its kin see them."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from alignlab.contracts.finding import SAME, Finding, declared, difference, remark
from alignlab.contracts.subjects import EXTREME, Rows, Subject, num_rows, split, take, uniform
from alignlab.losses.base import LossOutput, Normalizer
from alignlab.losses.unpaired import UnpairedLogprobs

_NUM_REPLIES = 24


class Replies(Subject):
    """An `UnpairedLoss`."""

    differentiable = ("policy",)

    def draw(self, num_rows: int, *, seed: int = 0) -> Rows:
        """Replies of 1 to 20 tokens, two of three desirable; mismatched pairs a little likelier than before."""
        generator = torch.Generator().manual_seed(seed)
        length = torch.randint(1, 21, (num_rows,), generator=generator)
        policy, reference, kl_reference = -uniform(generator, 3, num_rows, low=0.05, high=3.0) * length
        return {
            "policy": policy,
            "reference": reference,
            "length": length,
            "desirable": torch.arange(num_rows) % 3 != 1,
            "kl_policy": kl_reference * uniform(generator, num_rows, low=0.2, high=1.1),
            "kl_reference": kl_reference,
        }

    def call(self, loss: Any, rows: Rows, *, normalizer: Normalizer = None, kl: bool | None = None) -> LossOutput:
        """`kl`: whether the mismatched pairs are given (None: where the loss needs them)."""
        given = {name: rows[name] for name in ("kl_policy", "kl_reference") if (loss.needs_kl if kl is None else kl)}
        length, desirable = rows["length"], rows["desirable"]
        reference = UnpairedLogprobs(rows["reference"], length, desirable) if loss.needs_reference else None
        return loss(UnpairedLogprobs(rows["policy"], length, desirable), reference, **given)

    def still(self, rows: Rows) -> Any:
        """The baseline stays what it is on `rows`: the gradient does not see it, so a slope must not either."""
        loss = super().still(rows)
        baseline = self.call(loss, rows).metrics.get("baseline")
        if baseline is not None:
            loss.baseline = lambda *_: baseline.detach()
        return loss

    def extremes(self) -> Iterable[tuple[str, Rows]]:
        """Log-ratios of +-EXTREME, of replies of both kinds and of mismatched pairs."""
        for ratio in (EXTREME, -EXTREME):
            for kl in (EXTREME, 0.0, -EXTREME):
                yield f"log-ratios of {ratio:g}, {kl:g} on mismatched pairs", _two(ratio, kl)

    def unusual(self) -> Iterable[Rows]:
        """One reply; none desirable, and all; policy and reference alike."""
        rows = self.draw(4, seed=5)
        every = torch.ones(4, dtype=torch.bool)
        return [take(rows, slice(1)), rows | {"desirable": every}, rows | {"desirable": ~every}, at_reference(rows)]


def reads_what_it_says(replies: Replies) -> Iterator[Finding]:
    """Labels, reference and mismatched pairs are read as declared."""
    rows, loss = replies.draw(_NUM_REPLIES), replies.loss
    plain = replies.call(replies.fresh(), rows).loss

    def changed_by(**changes: Tensor) -> float:
        return difference(replies.call(replies.fresh(), {**rows, **changes}, kl=True).loss, plain)

    must = "the argument is never read; leave it out of the declaration, and a forward pass is saved"
    yield Finding("the other labels change the loss by", changed_by(desirable=~rows["desirable"]), SAME, must, True)
    if loss.needs_reference:
        moved = changed_by(reference=rows["reference"] * 0.7)
        yield Finding("another reference changes the loss by", moved, SAME, must, True)
    what = f"needs_kl = {loss.needs_kl}, and other mismatched pairs change the loss by"
    cause = must if loss.needs_kl else "kl_policy is read although needs_kl = False: methods would not compute it"
    yield Finding(what, changed_by(kl_policy=rows["kl_policy"] * 0.5), SAME, cause, must_differ=loss.needs_kl)


def coupling(replies: Replies) -> Iterator[Finding]:
    """Given the mismatched pairs of the whole step, the cut does not matter (coupled_by_kl_alone = False: it may)."""
    rows, loss = replies.draw(_NUM_REPLIES), replies.fresh()
    if not (loss.batch_coupled and loss.needs_kl):
        if loss.coupled_by_kl_alone:
            cause = "it is for a coupled loss (batch_coupled) that reads mismatched pairs (needs_kl)"
            yield Finding("coupled_by_kl_alone = True where there is nothing of the kind", 1.0, 0.0, cause)
        else:
            yield remark("no mismatched pairs couple a batch")
        return
    whole, shared = replies.evaluate(rows), {name: rows[name] for name in ("kl_policy", "kl_reference")}
    parts = [replies.evaluate(part | shared, loss=loss) for part in split(rows, (7, 1, 16))]
    weights = [size / _NUM_REPLIES for size in (7, 1, 16)]
    value = torch.stack([w * part.loss for w, part in zip(weights, parts, strict=True)]).sum()
    gradient = torch.cat([w * part.gradients["policy"] for w, part in zip(weights, parts, strict=True)])
    scale = whole.gradients["policy"].abs().max().clamp(min=1e-12)
    yield declared(
        loss.coupled_by_kl_alone,
        "with the mismatched pairs of the whole step, a cut into 7, 1 and 16 replies changes loss or gradient by",
        max(difference(value, whole.loss), difference(gradient / scale, whole.gradients["policy"] / scale)),
        holds_not="something else of the batch is in the baseline (its rewards or labels, running state): then set "
        "coupled_by_kl_alone = False",
        holds_though_denied="the loss may be cut: declare coupled_by_kl_alone = True, and micro-batches are allowed",
    )


def value_at_reference(replies: Replies) -> Iterator[Finding]:
    """What a reply costs where policy and reference agree (None: varies)."""
    rows, claim = at_reference(replies.draw(_NUM_REPLIES)), replies.loss.value_at_reference
    singles = [take(rows, slice(i, i + 1)) for i in range(num_rows(rows))]
    values = torch.stack([replies.call(replies.fresh(), one).loss.detach() for one in singles])
    if claim is not None:
        what = f"where policy and reference agree a reply costs {values[0]:.6g}"
        off = difference(values, torch.full_like(values, float(claim)))
        cause = "the number belongs to another beta or other weights (then set it in __init__)"
        yield Finding(f"{what}, off by", off, SAME, cause)
        return
    spread = (values.max() - values.min()).item()
    if spread <= SAME and not replies.is_said("value_at_reference"):
        yield remark(f"not declared; where policy and reference agree every reply costs {values[0]:.6g}")
        return
    yield Finding(
        "where policy and reference agree the costs of replies differ by",
        spread,
        SAME,
        f"every reply costs {values[0]:.6g} there: declare value_at_reference",
        must_differ=True,
    )


def at_reference(rows: Rows) -> Rows:
    """The same replies read by a policy that is the reference."""
    return rows | {"policy": rows["reference"], "kl_policy": rows["kl_reference"]}


def _two(ratio: float, kl: float) -> Rows:
    """A desirable and an undesirable reply of one token with this log-ratio; every log-prob is below 0."""

    def both(x: float) -> Tensor:
        return torch.full((2,), min(x, 0.0) - 1.0, dtype=torch.float64)

    return {
        "policy": both(ratio),
        "reference": both(-ratio),
        "length": torch.ones(2, dtype=torch.int64),
        "desirable": torch.tensor([True, False]),
        "kl_policy": both(kl),
        "kl_reference": both(-kl),
    }
