"""From replies to one score each: the reward, and what a reply that never ended costs.

Two published recipes, not to be mixed up: subtracting a penalty from the score (TRL), and replacing the score by a
fixed one (Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO", -1). A reply has ended when it contains
a stop token of the policy, whichever one.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.batches import Rollout
from alignlab.errors import ConfigError, ModelError, NonFiniteError
from alignlab.rows import Prompt

Reward = Callable[[Sequence[Prompt], Sequence[str]], Tensor]
"""A reward: (prompts, responses) -> float32 [B], larger is better. Anything callable that way will do."""


def score(
    reward: Reward,
    rollout: Rollout,
    *,
    missing_eos_penalty: float | None = None,
    missing_eos_score: float | None = None,
) -> Float[Tensor, "B"]:
    """The score of each reply, in float32 on the rollout's device.

    `missing_eos_penalty` (>= 0) is subtracted where the reply was cut off at its longest; `missing_eos_score` stands
    there instead of the reward. ConfigError for both at once, ModelError or NonFiniteError for a reward that answers
    with the wrong number of scores or with one that is no number.
    """
    if missing_eos_penalty is not None and missing_eos_score is not None:
        raise ConfigError("missing_eos_penalty subtracts and missing_eos_score replaces: set one of them")
    if missing_eos_penalty is not None and missing_eos_penalty < 0:
        raise ConfigError(f"missing_eos_penalty={missing_eos_penalty} is subtracted: it must not be negative")
    scores = checked_scores(reward, rollout.prompts, rollout.responses).to(rollout.complete.device)
    if missing_eos_penalty is not None:
        return scores - missing_eos_penalty * (~rollout.complete).float()
    if missing_eos_score is not None:
        return scores.masked_fill(~rollout.complete, missing_eos_score)
    return scores


@torch.no_grad()
def checked_scores(reward: Reward, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, "B"]:
    """What the reward answers, checked: one finite number per reply, as float32."""
    scores = reward(prompts, responses)
    name = type(reward).__name__
    if not isinstance(scores, Tensor) or scores.shape != (len(responses),):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ModelError(f"reward {name}: gave {shape} for {len(responses)} replies; expected a tensor of that length")
    scores = scores.detach().float()
    if not bool(scores.isfinite().all()):
        at = int((~scores.isfinite()).nonzero()[0])
        raise NonFiniteError(f"reward {name}: gave {scores[at].item()} for the reply {responses[at][:60]!r}")
    return scores
