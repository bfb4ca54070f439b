"""The likelihood of the chosen reply as a term beside a preference loss.

What it is divided by differs between papers. Here a term is a mean over *pairs*, and `per` says what a pair gives:
    token     -log pi(c) / |c|: nats per token of that reply, each reply alike
    sequence  -log pi(c): nats per reply, so long replies count more
Libraries that average over all chosen tokens of a batch weigh each reply by its length: "token" with weights |c|.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.losses.base import LossOutput, require_positive
from alignlab.losses.preference import PairLogprobs, PreferenceLoss

Per = Literal["token", "sequence"]


def chosen_nll(policy: PairLogprobs, per: Per) -> Float[Tensor, "P"]:
    """-log pi(c) of each pair, per token or per sequence; the length counts scored tokens, the end token included."""
    return -policy.chosen / policy.chosen_length if per == "token" else -policy.chosen


def require_per(loss: object, per: str) -> None:
    """ConfigError if `per` is neither "token" nor "sequence"."""
    if per not in ("token", "sequence"):
        raise ConfigError(f"{type(loss).__name__}: per={per!r} must be token or sequence")


class ChosenNLL(PreferenceLoss):
    """-log pi(c) / |c| (per="token") or -log pi(c) (per="sequence").

    The term by itself, as a loss of pairs: supervised fine-tuning on the chosen replies. `beta` scales metrics only.
    """

    needs_reference = False
    shift_invariant = False
    antisymmetric = False

    def __init__(self, beta: float, per: Per = "token"):
        super().__init__(beta)
        require_per(self, per)
        self.per: Per = per

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None = None) -> Float[Tensor, "P"]:
        return chosen_nll(policy, self.per)


class WithSFT(PreferenceLoss):
    """loss + coefficient * NLL, NLL = -log pi(c) / |c| (per="token") or -log pi(c) (per="sequence").

    For any preference loss; its beta, reference, metrics and running state are used as they are. On DPO with
    per="token" it is the loss of iterative RPO (Pang et al. 2024, sec. 2), the coefficient being its alpha; TRL's "sft"
    term averages over all chosen tokens of the batch instead. A soft label mixes the NLL of both replies as it mixes
    the losses. A loss with a target margin still has one, unless the coefficient drowns it.
    """

    shift_invariant = False
    antisymmetric = False

    def __init__(self, loss: PreferenceLoss, coefficient: float, per: Per = "token"):
        super().__init__(loss.beta)
        require_positive(self, coefficient=coefficient)
        self.loss, self.coefficient = loss, coefficient
        self.term = ChosenNLL(loss.beta, per)
        self.needs_reference, self.batch_coupled = loss.needs_reference, loss.batch_coupled
        self.monotone = loss.monotone

    @property
    def is_separable(self) -> bool:
        return self.loss.is_separable

    def forward(
        self,
        policy: PairLogprobs,
        reference: PairLogprobs | None = None,
        *,
        preference: Float[Tensor, "P"] | None = None,
        weight: Float[Tensor, "P"] | None = None,
    ) -> LossOutput:
        loss, metrics = self.loss(policy, reference, preference=preference, weight=weight)
        nll = self.term(policy, preference=preference, weight=weight).loss
        return LossOutput(loss + self.coefficient * nll, metrics)

    def per_pair(self, policy: PairLogprobs, reference: PairLogprobs | None) -> Float[Tensor, "P"]:
        return self.loss.per_pair(policy, reference) + self.coefficient * self.term.per_pair(policy)

    def implied_rewards(
        self, policy: PairLogprobs, reference: PairLogprobs | None
    ) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        return self.loss.implied_rewards(policy, reference)
