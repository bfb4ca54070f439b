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
        "kernels/head.py",
        "return tile if temperature == 1.0 else tile.div_(temperature)",
        "return tile",
        LOGPROBS,
    ),
    Mutant(
        "temperature forgotten in the gradient of the log-probs",
        "kernels/head.py",
        "return grad if temperature == 1.0 else grad.div_(temperature)",
        "return grad",
        LOGPROBS,
    ),
    Mutant(
        "bias of the output head forgotten",
        "kernels/head.py",
        "tile += self.bias",
        "tile += 0 * self.bias",
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
        "upstream_entropy = None if grad_entropy is None else grad_entropy[index]",
        "upstream_entropy = None if grad_entropy is None else -grad_entropy[index]",
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
        "        if bootstrap is not None:\n            step",
        "        bootstrap = values[:, -1] if bootstrap is None else bootstrap\n"
        "        if bootstrap is not None:\n            step",
        ADVANTAGES,
    ),
    Mutant(
        "GAE without lambda",
        "kernels/advantages.py",
        "discounted_sums(deltas, gamma * gae_lambda)",
        "discounted_sums(deltas, gamma)",
        ADVANTAGES,
    ),
    Mutant(
        "GAE takes the value of an uncounted step for the next one",
        "kernels/advantages.py",
        "place = torch.where(mask, place, length + 1)",
        "place = place.clamp(min=0)",
        ADVANTAGES,
    ),
    Mutant(
        "GAE's later sums discounted as if they were one step away",
        "kernels/advantages.py",
        "span, discount = 2 * span, discount * discount",
        "span, discount = 2 * span, discount",
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
