"""What one iteration learns from: a rollout with everything that is fixed while the policy moves.

All per-token tensors are in shifted coordinates (entry t belongs to the token at t + 1); `mask` is True on reply
tokens, the stop token included. Outside it everything is 0.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignlab.batches import PromptBatch, Rollout, Sequences
from alignlab.kernels.divergence import kl_estimate


class Experience(NamedTuple):
    """B replies of up to T positions. Without a critic there are no values and returns."""

    sequences: Sequences  # (B, T)
    mask: Bool[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"]  # of the policy that sampled, recomputed by the training forward
    values: Float[Tensor, "B T"] | None
    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"] | None
    rows: Int[Tensor, "B"]
    ref_logprobs: Float[Tensor, "B T"] | None = None  # where a KL penalty is part of the loss
    weights: Float[Tensor, "B"] | None = None  # of each of a reply's tokens in the mean over tokens; None: 1

    def take(self, index: Tensor) -> "Experience":
        """Some of the replies; columns that are padding in all of them are cut off everywhere alike."""
        used = self.sequences.attention_mask[index].any(0).nonzero().flatten()
        columns = slice(int(used[0]), int(used[-1]) + 1)

        def cut(x: Tensor | None) -> Any:
            return None if x is None else x[index] if x.ndim == 1 else x[index][:, columns]

        return Experience(Sequences(*(cut(x) for x in self.sequences)), *(cut(x) for x in self[1:]))

    def sequence_rows(self, index: Tensor) -> Tensor:
        """Which of `sequences` those replies are."""
        return index


class Part(Protocol):
    """What can be cut into minibatches: N replies (or pairs) with their row numbers."""

    @property
    def rows(self) -> Int[Tensor, "N"]:
        """Row numbers in the data set."""
        ...

    def take(self, index: Tensor) -> Self:
        """Some of the N."""
        ...


PartT = TypeVar("PartT", bound=Part)


def minibatches(whole: PartT, number: int, generator: torch.Generator) -> Iterator[PartT]:
    """All of `whole` once, in an order drawn from `generator`, in `number` parts whose sizes differ by at most one.

    A number, not a size: processes whose shares differ by a reply must still make equally many updates.
    """
    order = torch.randperm(len(whole.rows), generator=generator)
    for part in order.tensor_split(number):
        yield whole.take(part.to(whole.rows.device))


def split(whole: PartT, size: int) -> Iterator[PartT]:
    """Micro-batches in order."""
    for part in torch.arange(len(whole.rows), device=whole.rows.device).split(size):
        yield whole.take(part)


def repeated(batch: PromptBatch, times: int) -> PromptBatch:
    """Every prompt `times` in a row: the replies to one prompt are then a contiguous group."""
    index = torch.arange(len(batch.rows), device=batch.rows.device).repeat_interleave(times)
    tensors = (x[index] for x in (batch.input_ids, batch.attention_mask, batch.rows))
    return PromptBatch(*tensors, prompts=tuple(prompt for prompt in batch.prompts for _ in range(times)))


def token_rewards(
    scores: Float[Tensor, "B"], logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coefficient: float
) -> Float[Tensor, "B T"]:
    """The reward of each reply token: -kl_coefficient (log pi - log pi_ref), and the reply's score on its last token.

    Eq. 2 of Ouyang et al. 2022 spread over tokens (Ziegler et al. 2019). The penalty is the k1 estimate, whose
    gradient through the return is exact; the score stands on the last real token, not on the pad after it (P27).
    """
    rewards = -kl_coefficient * (logprobs - ref_logprobs) * mask
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (positions * mask).amax(-1)
    has_any = mask.any(-1)
    rows = torch.arange(len(scores), device=mask.device)
    rewards[rows, last] += scores.to(rewards.dtype) * has_any
    return rewards


class Judged(NamedTuple):
    """A rollout read by policy, reference and critic (if any), before it is scored; shifted, 0 outside `mask`."""

    mask: Bool[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"]
    ref_logprobs: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"] | None
    entropy: Float[Tensor, "B T"]

    @staticmethod
    def cat(parts: "list[Judged]") -> "Judged":
        """Micro-batches of rows, back in one piece."""

        def joined(column: tuple[Any, ...]) -> Any:
            return None if column[0] is None else torch.cat(column)

        return Judged(*(joined(column) for column in zip(*parts, strict=True)))


def rollout_sums(
    rollout: Rollout, judged: Judged, scores: Tensor, rewards: Tensor, returns: Tensor | None = None
) -> dict[str, Float[Tensor, ""]]:
    """Sums over one process's replies (float64), which may be added over processes; see `rollout_metrics`.

    `rewards`: what is maximised, of replies or of tokens. `returns`: of a critic's targets, where there is one.
    """
    mask = judged.mask
    gap = (judged.logprobs - rollout.sampler_logprobs).abs() * mask
    sums = {
        "sequences": torch.tensor(len(scores), device=mask.device),
        "tokens": mask.sum(),
        "score": scores,
        "reward": rewards,
        "kl": kl_estimate(judged.logprobs, judged.ref_logprobs, kind="k1"),
        "kl_k3": kl_estimate(judged.logprobs, judged.ref_logprobs, kind="k3") * mask,
        "eos_rate": rollout.complete,
        "entropy": judged.entropy,
        "sampler_gap": gap,
    }
    if returns is not None and judged.values is not None:
        errors = (returns - judged.values) * mask
        sums |= {"returns": returns, "returns_squared": returns.double() ** 2}
        sums |= {"errors": errors, "errors_squared": errors.double() ** 2}
    return {name: value.double().sum() for name, value in sums.items()}


def rollout_metrics(total: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means from the sums over all processes.

    Per sequence: score, reward, kl and kl_k3 (nats), eos_rate, response_length (tokens). Per token: entropy,
    sampler_gap. With a critic explained_variance: 1 - Var(return - value) / Var(return), over tokens.
    """
    sequences, tokens = total["sequences"].clamp(min=1), total["tokens"].clamp(min=1)
    metrics = {
        **{name: total[name] / sequences for name in ("score", "reward", "kl", "kl_k3", "eos_rate")},
        "response_length": total["tokens"] / sequences,
        "entropy": total["entropy"] / tokens,
        "sampler_gap": total["sampler_gap"] / tokens,
    }
    if "returns" not in total:
        return metrics
    variance = total["returns_squared"] / tokens - (total["returns"] / tokens) ** 2
    unexplained = total["errors_squared"] / tokens - (total["errors"] / tokens) ** 2
    # 1e-12: returns that are all alike leave nothing to explain
    return metrics | {"explained_variance": 1.0 - unexplained / variance.clamp(min=1e-12)}
