"""What a policy is worth: fresh replies to held-out prompts, scored by gold, by proxy and by the reference.

Symbols: y a sampled reply, pi the policy, pi_ref the reference. Per reply, summed over its tokens:
KL estimate = sum_t log pi(y_t) - log pi_ref(y_t), the k1 estimate of KL(pi || pi_ref) in nats per sequence. Both
log-probs come from the training forward at the sampling temperature, not from the sampler. With top_k or top_p the
samples are not from pi and the estimate is biased: compare KLs of untruncated sampling only.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.batches import PromptBatch, Rollout, Sequences
from alignlab.errors import ConfigError, DataError
from alignlab.evaluate.quality import PROBLEMS, QualityFilter
from alignlab.evaluate.text_metrics import rouge, variety
from alignlab.models.backbone import evaluating
from alignlab.rollout.generate import generate
from alignlab.rollout.scoring import checked_scores
from alignlab.rows import Prompt
from alignlab.statistics import Interval, mean_interval, share_interval

if TYPE_CHECKING:
    from alignlab.models.policy import Policy

SCORES = ("gold_reward", "proxy_reward", "kl")
"""Fields of a sample that are None where nothing measured them."""


class RewardFunction(Protocol):
    """Scores replies in text: gold, or the proxy that training maximised."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, "B"]: ...


class Reference(Protocol):
    """Log-probs of the model that the policy is held close to, in shifted coordinates, 0 where nothing is scored."""

    def __call__(self, sequences: Sequences, *, temperature: float = 1.0) -> Float[Tensor, "B T"]: ...


@dataclass(frozen=True, slots=True)
class PolicyEvaluation:
    """Figures of one policy and the replies that they stand on.

    Args:
        metrics: plain floats; `<name>_low` and `<name>_high` are the 95% interval over prompts. A figure whose input
            was not given (no gold, no reference) is absent, and so is an interval over a single prompt.
        samples: one dict per reply, JSON-ready: row, prompt, response, gold_reward, proxy_reward, kl, length (tokens,
            stop token included), complete (it ended with a stop token), problems (what is wrong with its text, see
            `QualityFilter`). None where not measured.
        settings: how it was sampled; part of what the figures mean.
    """

    metrics: dict[str, float]
    samples: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)


class _Judges(NamedTuple):
    """All that has a say on a reply."""

    policy: "Policy"
    reference: Reference | None
    gold: RewardFunction | None
    proxy: RewardFunction | None
    quality: QualityFilter
    temperature: float


@dataclass
class _Tally:
    """Sums over tokens, kept beside the samples while the prompts stream by."""

    tokens: int = 0
    entropy: float = 0.0  # nats, summed over tokens
    reference_logprob: float = 0.0  # nats at temperature 1, summed over tokens
    samples: list[dict[str, Any]] = field(default_factory=list)
    prompt_of: list[int] = field(default_factory=list)  # which prompt (in order of arrival) a sample answers


def evaluate_policy(
    policy: "Policy",
    *,
    reference: Reference | None,
    prompts: Iterable[PromptBatch],
    gold: RewardFunction | None = None,
    proxy: RewardFunction | None = None,
    targets: Sequence[str] | None = None,
    max_new_tokens: int,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int,
    samples_per_prompt: int = 1,
    quality: QualityFilter | None = None,
) -> PolicyEvaluation:
    """Samples replies with the policy (eval mode, no gradients) and measures them.

    Metrics: gold_reward and proxy_reward (+ _low, _high: t interval), kl and kl_stderr (nats per sequence),
    perplexity_reference (exp of minus the mean token log-prob under the reference, at temperature 1 whatever the
    sampling temperature), entropy (nats per token), response_length (tokens), eos_rate, distinct_1,
    distinct_2, distinct_3, repetition_rate, self_bleu (of two replies or more), quality_rate (share of replies that
    `quality` accepts; Wilson interval over prompts), problem_<name> (share of replies with that problem), num_prompts,
    num_samples; with `targets` (a wanted reply per prompt, in the prompts' order): rouge_1, rouge_2 and rouge_l (t
    intervals over prompts). How the replies fare against others is the work of `comparison.compare`.

    Raises:
        ConfigError: a temperature that is not positive, or samples_per_prompt below 1.
        DataError: there are no prompts.
        ModelError, NonFiniteError: a reward that does not answer with one finite number per reply.
    """
    if temperature <= 0 or samples_per_prompt < 1:
        raise ConfigError(
            f"evaluation: temperature={temperature} and samples_per_prompt={samples_per_prompt} "
            "must be above 0 and at least 1"
        )
    generator = torch.Generator(device=policy.device).manual_seed(seed)
    judges = _Judges(policy, reference, gold, proxy, quality or QualityFilter(), temperature)
    tally = _Tally()
    with torch.no_grad(), evaluating(policy):
        for batch in prompts:
            repeated = _repeat(batch, samples_per_prompt, device=policy.device)
            rollout = generate(
                policy,
                repeated,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                generator=generator,
            )
            _measure(tally, judges, rollout, rows=repeated.rows.tolist(), samples_per_prompt=samples_per_prompt)
    if not tally.samples:
        raise DataError("evaluation: no prompts came; is the split empty, or evaluation.num_prompts 0?")
    metrics = _summary(tally, judges.quality, reference=reference is not None)
    if targets is not None:
        for name, scores in _rouge(tally, targets).items():
            _add_interval(metrics, name, mean_interval(scores))
    return PolicyEvaluation(
        metrics,
        tally.samples,
        {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
            "samples_per_prompt": samples_per_prompt,
        },
    )


def _measure(tally: _Tally, judges: _Judges, rollout: Rollout, *, rows: list[int], samples_per_prompt: int) -> None:
    """Adds one batch of replies to the tally."""
    output = judges.policy(rollout.sequences, temperature=judges.temperature, entropy=True)
    assert output.entropy is not None
    lengths = output.mask.sum(1).tolist()  # (sequences,) tokens, the stop token included
    tally.tokens += sum(lengths)
    tally.entropy += float(output.entropy.double().sum())
    columns: dict[str, list[float]] = {}
    if judges.reference is not None:
        columns["kl"], plain = _sequence_kl(judges.reference, output.logprobs, rollout.sequences, judges.temperature)
        tally.reference_logprob += plain
    if judges.gold is not None:
        columns["gold_reward"] = checked_scores(judges.gold, rollout.prompts, rollout.responses).tolist()
    if judges.proxy is not None:
        columns["proxy_reward"] = checked_scores(judges.proxy, rollout.prompts, rollout.responses).tolist()
    first = tally.prompt_of[-1] + 1 if tally.prompt_of else 0
    for index, prompt in enumerate(rollout.prompts):
        response, complete = rollout.responses[index], bool(rollout.complete[index])
        tally.prompt_of.append(first + index // samples_per_prompt)
        tally.samples.append(
            {
                "row": rows[index],
                "prompt": prompt if isinstance(prompt, str) else [dict(message) for message in prompt],
                "response": response,
                **{name: columns[name][index] if name in columns else None for name in SCORES},
                "length": lengths[index],
                "complete": complete,
                "problems": list(judges.quality.problems(response, complete=complete)),
            }
        )


def _sequence_kl(
    reference: Reference, logprobs: Tensor, sequences: Sequences, temperature: float
) -> tuple[list[float], float]:
    """Per reply log pi - log pi_ref in nats, and the batch's summed log-prob under the reference at temperature 1."""
    ref_logprobs = reference(sequences, temperature=temperature)  # (sequences, time)
    # Summed, not averaged: a KL of sequences. In float64, because it is a small difference of large sums.
    kl = (logprobs.double() - ref_logprobs.double()).sum(1)
    plain = ref_logprobs if temperature == 1 else reference(sequences, temperature=1.0)
    return kl.tolist(), float(plain.double().sum())


def _summary(tally: _Tally, quality: QualityFilter, *, reference: bool) -> dict[str, float]:
    samples = tally.samples
    metrics: dict[str, float] = {}
    for name in ("gold_reward", "proxy_reward"):
        if samples[0][name] is not None:
            _add_interval(metrics, name, mean_interval(_per_prompt(tally, [sample[name] for sample in samples])))
    if reference:
        kl = mean_interval(_per_prompt(tally, [sample["kl"] for sample in samples]))
        metrics["kl"] = kl.mean
        if kl.count > 1:
            metrics["kl_stderr"] = kl.stderr
        metrics["perplexity_reference"] = math.exp(-tally.reference_logprob / max(1, tally.tokens))
    eos = share_interval(sum(sample["complete"] for sample in samples), len(samples))
    metrics |= {
        "entropy": tally.entropy / max(1, tally.tokens),
        "response_length": tally.tokens / len(samples),
        "eos_rate": eos.mean,
        **variety([sample["response"] for sample in samples]),
        **{f"problem_{name}": sum(name in each["problems"] for each in samples) / len(samples) for name in PROBLEMS},
        "num_prompts": float(tally.prompt_of[-1] + 1),
        "num_samples": float(len(samples)),
    }
    accepted = [float(not set(quality.faults) & set(sample["problems"])) for sample in samples]
    shares = _per_prompt(tally, accepted)
    _add_interval(metrics, "quality_rate", share_interval(math.fsum(shares), len(shares)))
    return metrics


def _rouge(tally: _Tally, targets: Sequence[str]) -> dict[str, list[float]]:
    """The three kinds of ROUGE, per prompt."""
    if len(targets) != tally.prompt_of[-1] + 1:
        raise DataError(f"evaluation: {len(targets)} targets for {tally.prompt_of[-1] + 1} prompts; one each is needed")
    wanted = [targets[prompt] for prompt in tally.prompt_of]
    scores = rouge([sample["response"] for sample in tally.samples], wanted)
    return {name: _per_prompt(tally, found) for name, found in scores.items()}


def _per_prompt(tally: _Tally, values: Sequence[float]) -> list[float]:
    """Averages over the replies to each prompt: these are independent, replies to one prompt are not."""
    found: list[list[float]] = [[] for _ in range(tally.prompt_of[-1] + 1)]
    for prompt, value in zip(tally.prompt_of, values):
        found[prompt].append(value)
    return [math.fsum(replies) / len(replies) for replies in found]


def _add_interval(metrics: dict[str, float], name: str, interval: Interval) -> None:
    metrics[name] = interval.mean
    if math.isfinite(interval.low):  # a single prompt has no interval
        metrics |= {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _repeat(batch: PromptBatch, times: int, *, device: torch.device) -> PromptBatch:
    """Each prompt `times` times in a row, on the policy's device."""
    prompts = tuple(prompt for prompt in batch.prompts for _ in range(times))
    ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
    rows = batch.rows.repeat_interleave(times)
    return PromptBatch(ids.repeat_interleave(times, 0), mask.repeat_interleave(times, 0), rows, prompts)
