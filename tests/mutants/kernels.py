"""Bugs in the ground floor: log-probs, advantages, divergences, masked statistics."""

from tests.mutants.mutant import Mutant

LOGPROBS = ("kernels/test_logprobs.py",)
ADVANTAGES = ("kernels/test_advantages.py",)
DIVERGENCE = ("kernels/test_divergence.py",)
MASKED = ("kernels/test_masked.py",)

MUTANTS = (
    # -- log-probs ---------------------------------------------------------------------------------------------------
    Mutant(
        "labels not shifted: each position is scored on the token it has just read",
        "kernels/logprobs.py",
        "shifted[:, :-1] = labels[:, 1:]",
        "shifted[:, :-1] = labels[:, :-1]",
        LOGPROBS,
    ),
    Mutant(
        "labels shifted twice",
        "kernels/logprobs.py",
        "shifted[:, :-1] = labels[:, 1:]",
        "shifted[:, :-2] = labels[:, 2:]",
        LOGPROBS,
    ),
    Mutant(
        "log-softmax in half precision",
        "kernels/logprobs.py",
        "safe = upcast(logits).masked_fill(",
        "safe = logits.masked_fill(",
        LOGPROBS,
    ),
    Mutant(
        "NaN at an ignored position masked after the softmax: 0 * NaN in the gradient",
        "kernels/logprobs.py",
        "safe = upcast(logits).masked_fill(~counted.unsqueeze(-1), 0.0)",
        "safe = upcast(logits)",
        LOGPROBS,
    ),
    Mutant(
        "temperature forgotten in the log-probs",
        "kernels/logprobs.py",
        "return logits if self.temperature == 1.0 else logits.div_(self.temperature)",
        "return logits",
        LOGPROBS,
    ),
    Mutant(
        "temperature forgotten in the gradient of the log-probs",
        "kernels/logprobs.py",
        "grad /= ctx.temperature",
        "grad /= 1.0",
        LOGPROBS,
    ),
    Mutant(
        "bias of the output head forgotten",
        "kernels/logprobs.py",
        "logits += self.bias",
        "logits += 0 * self.bias",
        LOGPROBS,
    ),
    Mutant(
        "last, partial chunk of positions dropped",
        "kernels/logprobs.py",
        "for index in scored.split(chunk_size):",
        "for index in scored.split(chunk_size)[: max(1, len(scored) // chunk_size)]:",
        LOGPROBS,
    ),
    Mutant(
        "sign of the entropy's gradient",
        "kernels/logprobs.py",
        "sub_(probs.mul_(entropy.unsqueeze(1))).mul_(upstream.unsqueeze(1))",
        "sub_(probs.mul_(entropy.unsqueeze(1))).mul_(-upstream.unsqueeze(1))",
        LOGPROBS,
    ),
    Mutant(
        "half precision never upcast",
        "kernels/precision.py",
        "return x if x.dtype in (torch.float32, torch.float64) else x.float()",
        "return x",
        ("kernels/test_masked.py", "kernels/test_logprobs.py"),
    ),
    # -- advantages --------------------------------------------------------------------------------------------------
    Mutant(
        "GAE bootstraps from the last value although the reply has ended",
        "kernels/advantages.py",
        "next_value = advantage if bootstrap is None",
        "next_value = values[:, -1] if bootstrap is None",
        ADVANTAGES,
    ),
    Mutant(
        "GAE without lambda",
        "kernels/advantages.py",
        "delta + gamma * gae_lambda * advantage, advantage)",
        "delta + gamma * advantage, advantage)",
        ADVANTAGES,
    ),
    Mutant(
        "GAE takes the value of an uncounted step for the next one",
        "kernels/advantages.py",
        "next_value = torch.where(counted, values[:, t], next_value)",
        "next_value = values[:, t]",
        ADVANTAGES,
    ),
    Mutant(
        "advantages taken for value targets (returns without the value)",
        "kernels/advantages.py",
        "return advantages, advantages + values",
        "return advantages, advantages",
        ADVANTAGES,
    ),
    Mutant(
        "leave-one-out mean that leaves nothing out",
        "kernels/advantages.py",
        "return (centered * (group_size / (group_size - 1))).flatten()",
        "return centered.flatten()",
        ADVANTAGES,
    ),
    Mutant(
        "GRPO's standard deviation over the whole batch",
        "kernels/advantages.py",
        "groups.std(1, keepdim=True)",
        "groups.std()",
        ADVANTAGES,
    ),
    Mutant(
        "GRPO's standard deviation is the biased one",
        "kernels/advantages.py",
        "groups.std(1, keepdim=True)",
        "groups.std(1, keepdim=True, correction=0)",
        ADVANTAGES,
    ),
    Mutant(
        "groups taken across prompts instead of along them",
        "kernels/advantages.py",
        "upcast(scores).view(-1, group_size)",
        "upcast(scores).view(group_size, -1).T",
        ADVANTAGES,
    ),
    # -- divergences -------------------------------------------------------------------------------------------------
    Mutant(
        "sign of the KL estimate (reference less policy)",
        "kernels/divergence.py",
        "difference = upcast(logprobs) - upcast(ref_logprobs)",
        "difference = upcast(ref_logprobs) - upcast(logprobs)",
        DIVERGENCE,
    ),
    Mutant(
        "k3 of the other direction",
        "kernels/divergence.py",
        "return (-difference).expm1() + difference",
        "return difference.expm1() - difference",
        DIVERGENCE,
    ),
    Mutant(
        "k2 without its half",
        "kernels/divergence.py",
        "return 0.5 * difference.square()",
        "return difference.square()",
        DIVERGENCE,
    ),
    Mutant(
        "full KL with the expectation under the reference",
        "kernels/divergence.py",
        "probs = logprobs.exp()",
        "probs = upcast(ref_logits).softmax(-1)",
        DIVERGENCE,
    ),
    # -- masked statistics -------------------------------------------------------------------------------------------
    Mutant(
        "mean over padding",
        "kernels/masked.py",
        "count = counted.sum() if dim is None",
        "count = torch.tensor(x.numel()) if dim is None",
        MASKED,
    ),
    Mutant(
        "variance divided by n",
        "kernels/masked.py",
        "/ (counted.sum() - 1).clamp(min=1)",
        "/ counted.sum().clamp(min=1)",
        MASKED,
    ),
    Mutant(
        "whitening over padding",
        "kernels/masked.py",
        "mean, var = masked_mean(x, counted), masked_var(x, counted)",
        "mean, var = upcast(x).mean(), upcast(x).var()",
        MASKED,
    ),
    Mutant(
        "whitening adds the mean back (shift_mean the wrong way round)",
        "kernels/masked.py",
        "(0.0 if shift_mean else mean)",
        "(mean if shift_mean else 0.0)",
        MASKED,
    ),
)
