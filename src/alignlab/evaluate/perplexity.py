"""How likely a policy finds responses that people (or the data's own author) wrote: does it still speak the language?

Perplexity is exp of minus the mean log-prob per scored token, all rows' tokens alike, at temperature 1.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from alignlab.batches import Sequences
from alignlab.models.backbone import evaluating
from alignlab.statistics import Interval, clustered_interval

if TYPE_CHECKING:
    from alignlab.evaluate.policy import Reference
    from alignlab.models.policy import Policy


@torch.no_grad()
def heldout_perplexity(
    policy: "Policy", batches: Iterable[Sequences], *, reference: "Reference | None" = None
) -> dict[str, float]:
    """perplexity_heldout (+ _low, _high) of the scored tokens, and num_heldout, the rows that have any.

    With a reference also perplexity_drift (+ _low, _high): the policy's perplexity over the reference's, on the same
    tokens. 1 is no change; above 1 the policy has moved away from the data. Intervals are t intervals over rows of the
    mean log-prob (or log-ratio) per token, then exponentiated. Empty where nothing is scored.
    """
    logprobs: list[float] = []
    ratios: list[float] = []
    row_of: list[int] = []
    rows = 0
    with evaluating(policy):
        for batch in batches:
            sequences = Sequences(*(each.to(policy.device) for each in batch))
            output = policy(sequences, temperature=1.0)
            own = output.logprobs[output.mask].double()  # (scored tokens,)
            logprobs += own.tolist()
            row_of += (rows + output.mask.nonzero()[:, 0]).tolist()
            rows += sequences.num_rows
            if reference is not None:
                ratios += (reference(sequences)[output.mask].double() - own).tolist()
    if not logprobs:
        return {}
    figures = _exponentiated("perplexity_heldout", clustered_interval([-each for each in logprobs], row_of))
    if ratios:
        figures |= _exponentiated("perplexity_drift", clustered_interval(ratios, row_of))
    return figures | {"num_heldout": float(len(set(row_of)))}


def _exponentiated(name: str, interval: Interval) -> dict[str, float]:
    figures = {name: math.exp(interval.mean)}
    if math.isfinite(interval.low):
        figures |= {f"{name}_low": math.exp(interval.low), f"{name}_high": math.exp(interval.high)}
    return figures
