"""Which contracts a loss has to keep, by its kind. To add one: write a function over a subject, and name it here.

A contract is a generator `(subject) -> Iterator[Finding]`; what it promises is the first line of its docstring.
"""

import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from alignlab.contracts.batch import batches, normalizers
from alignlab.contracts.declarations import (
    antisymmetric,
    monotone,
    needs_reference,
    per_pair_is_forward,
    shift_invariant,
    value_at_reference,
)
from alignlab.contracts.finding import Finding, Violation
from alignlab.contracts.labels import labels
from alignlab.contracts.metrics import metrics
from alignlab.contracts.numerics import finite, gradcheck, precision
from alignlab.contracts.pairs import Pairs
from alignlab.contracts.pipeline import padding
from alignlab.contracts.scores import Scores
from alignlab.contracts.subjects import Subject
from alignlab.contracts.tokens import PolicyTokens, ReplyTokens, ValueTokens, masked_positions
from alignlab.contracts.unpaired import Replies, coupling, reads_what_it_says
from alignlab.contracts.unpaired import value_at_reference as value_of_replies
from alignlab.contracts.world import optimum
from alignlab.errors import AlignlabError, ConfigError
from alignlab.losses.policy import PPOPolicyLoss, ValueLoss
from alignlab.losses.preference import PreferenceLoss
from alignlab.losses.reward import BradleyTerryLoss
from alignlab.losses.sft import SFTLoss
from alignlab.losses.unpaired import UnpairedLoss

Measure = Callable[[Any], Iterator[Finding]]

_EVERY: dict[str, Measure] = {
    "gradcheck": gradcheck,
    "precision": precision,
    "finite": finite,
    "batch": batches,
    "metrics": metrics,
    "padding": padding,
}
_TOKENS = {**_EVERY, "normalizer": normalizers, "masked positions": masked_positions}
_PAIRS = {
    **_EVERY,
    "labels": labels,
    "per_pair": per_pair_is_forward,
    "needs_reference": needs_reference,
    "shift_invariant": shift_invariant,
    "antisymmetric": antisymmetric,
    "monotone": monotone,
    "value_at_reference": value_at_reference,
    "optimum": optimum,
}
_REPLIES = {
    **_EVERY,
    "declared inputs": reads_what_it_says,
    "coupling": coupling,
    "value_at_reference": value_of_replies,
}

KINDS: dict[type[nn.Module], tuple[type[Subject], dict[str, Measure]]] = {
    PreferenceLoss: (Pairs, _PAIRS),
    UnpairedLoss: (Replies, _REPLIES),
    BradleyTerryLoss: (Scores, {**_EVERY, "labels": labels}),
    SFTLoss: (ReplyTokens, _TOKENS),
    PPOPolicyLoss: (PolicyTokens, _TOKENS),
    ValueLoss: (ValueTokens, _TOKENS),
}
"""The kind of a loss is its class, or a parent of it: what it is called with, and the contracts it keeps."""


@dataclass(frozen=True)
class Outcome:
    """A contract with what was measured."""

    contract: str
    promise: str
    findings: Sequence[Finding]

    @property
    def violations(self) -> list[Violation]:
        """The findings that do not hold."""
        broken = [finding for finding in self.findings if not finding.holds]
        return [Violation(self.contract, f.what, f.amount, f.limit, f.usual_cause) for f in broken]

    @property
    def closest(self) -> Finding | None:
        """The finding that comes nearest to its limit; None where nothing is a matter of size."""
        sized = [finding for finding in self.findings if finding.allowed > 0]
        return max(sized, key=lambda f: f.strain, default=None)

    @property
    def remark(self) -> str:
        """What was found where there was nothing to hold the loss to."""
        return "; ".join(finding.what for finding in self.findings if not finding.usual_cause)


@dataclass(frozen=True)
class Contract:
    """One property of one kind of loss."""

    name: str
    measure: Measure

    @property
    def promise(self) -> str:
        """What is promised, in a sentence."""
        return (inspect.getdoc(self.measure) or self.name).splitlines()[0]

    def hold(self, subject: Subject) -> Outcome:
        """Measure it. A loss that raises has broken the contract."""
        findings = []
        try:
            findings.extend(self.measure(subject))
        except Exception as error:
            findings.append(_raised(error))
        return Outcome(self.name, self.promise, findings)


def contracts_of(loss: nn.Module) -> list[Contract]:
    """The contracts of a loss's kind. ConfigError for a loss of no known kind."""
    return [Contract(name, measure) for name, measure in _kind_of(loss)[1].items()]


def subject_of(loss: nn.Module) -> Subject:
    """The loss as its contracts see it. ConfigError for a loss of no known kind."""
    return _kind_of(loss)[0](loss)


def check(loss: nn.Module) -> list[Outcome]:
    """All contracts of a loss, in order. ConfigError for a loss of no known kind."""
    subject = subject_of(loss)
    return [contract.hold(subject) for contract in contracts_of(loss)]


def _kind_of(loss: nn.Module) -> tuple[type[Subject], dict[str, Measure]]:
    for kind, found in KINDS.items():
        if isinstance(loss, kind):
            return found
    names = ", ".join(kind.__name__ for kind in KINDS)
    raise ConfigError(f"{type(loss).__name__}: there are contracts for {names} and their subclasses, and it is none")


def _raised(error: Exception) -> Finding:
    """What went wrong and where, as a finding that never holds."""
    frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    own = [frame for frame in frames if not any(part in frame for part in ("/torch/", "/alignlab/contracts/"))]
    where = f" ({own[-1].rpartition('/')[2]})" if own else ""
    said = (str(error).splitlines() or [""])[0]
    name = "" if isinstance(error, AlignlabError) else f"{type(error).__name__}: "
    cause = "forward does not take what methods hand it (preference, weight), or an input that training gives was not "
    return Finding(f"exceptions raised{where}, {name}{said}", 1.0, 0.0, f"{cause}thought of: a single row, float64")
