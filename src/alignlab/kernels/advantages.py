"""How much better than expected: generalised advantages over time (GAE), or against the rest of a group.

B sequences, T time steps. Time runs over *counted* steps alone (mask True): between two of them there may be prompt,
padding or a tool's output, none of which is a step of the policy.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.kernels.plain import is_plain
from alignlab.kernels.precision import autocast_off, upcast

_GRPO_STD_FLOOR = 1e-4  # as in DeepSeekMath's code: a group of equal scores must not divide by 0


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    gamma: float,
    gae_lambda: float,
    bootstrap: Float[Tensor, "B"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """(advantages, returns), both 0.0 where the mask is False. Schulman et al. 2016, eq. 16.

    Backwards over the counted steps, next(t) being the next counted one:
        delta_t = r_t + gamma * V_next(t) - V_t,    A_t = delta_t + gamma * lambda * A_next(t),    R_t = A_t + V_t
    After the last counted step the advantage is 0 and the value is `bootstrap` (0 if None: the episode ended there).
    What stands at uncounted steps, NaN included, is never read. A row without counted steps is all 0.

    No loop over time: counted steps are moved to the front of their row, where next(t) is t + 1, and the sums over
    the future are built by doubling, in log2 of the longest row's number of them.
    """
    with autocast_off(values):
        rewards, values = upcast(rewards), torch.where(mask, upcast(values), 0.0)
        place, count = mask.cumsum(1) - 1, mask.sum(1, keepdim=True)  # each step's column at the front; (B, 1)
        length = int(count.max()) if len(count) else 0
        place = torch.where(mask, place, length + 1)
        # columns: the counted steps, one for what follows the last of them, and one where all uncounted steps end up
        step_rewards, step_values = (x.new_zeros(len(x), length + 2).scatter(1, place, x) for x in (rewards, values))
        if bootstrap is not None:
            step_values = step_values.scatter(1, count, bootstrap.to(values).unsqueeze(1))
        deltas = step_rewards[:, :length] + gamma * step_values[:, 1 : length + 1] - step_values[:, :length]
        deltas = torch.where(torch.arange(length, device=mask.device) < count, deltas, 0.0)
        discounted_sums = _sums_step_by_step if is_plain("gae") else _discounted_sums
        advantages = F.pad(discounted_sums(deltas, gamma * gae_lambda), (0, 2)).gather(1, place)
        return advantages, advantages + values  # values are 0 where nothing counts


def _discounted_sums(x: Float[Tensor, "B L"], discount: float) -> Float[Tensor, "B L"]:
    """y_t = sum_k discount^k x_(t + k), in place.

    After a pass with a span of s, each entry is the sum of its next 2s terms: two neighbouring sums of s, the later one
    discounted by s steps. The tree of sums is also exacter than adding one term at a time.
    """
    span = 1
    while span < x.shape[1]:
        x[:, :-span] += discount * x[:, span:]
        span, discount = 2 * span, discount * discount
    return x


def _sums_step_by_step(x: Float[Tensor, "B L"], discount: float) -> Float[Tensor, "B L"]:
    """The same as the recursion that defines it: y_t = x_t + discount y_(t + 1), in place."""
    for t in reversed(range(x.shape[1] - 1)):
        x[:, t] += discount * x[:, t + 1]
    return x


def group_advantages(
    scores: Float[Tensor, "B"], group_size: int, *, kind: Literal["rloo", "grpo"]
) -> Float[Tensor, "B"]:
    """Each score against the other replies to its prompt; groups are contiguous runs of `group_size` scores.

    rloo: score - mean of the *other* scores of its group (Kool et al. 2019; Ahmadian et al. 2024).
    grpo: (score - group mean) / (unbiased group std + 1e-4) (Shao et al. 2024).
    ConfigError if `group_size` is below 2 or does not divide B.
    """
    if group_size < 2 or scores.shape[0] % group_size:
        raise ConfigError(
            f"group_advantages: group_size={group_size} for {scores.shape[0]} scores; a reply is compared with "
            "others, so it must be at least 2, and it must divide their number"
        )
    if kind not in ("rloo", "grpo"):
        raise ConfigError(f"group_advantages: kind={kind!r} is none of 'rloo', 'grpo'")
    with autocast_off(scores):
        groups = upcast(scores).view(-1, group_size)  # (prompts, replies)
        centered = groups - groups.mean(1, keepdim=True)
        if kind == "rloo":
            # score - (sum - score) / (g - 1) = (score - mean) * g / (g - 1)
            return (centered * (group_size / (group_size - 1))).flatten()
        return (centered / (groups.std(1, keepdim=True) + _GRPO_STD_FLOOR)).flatten()
