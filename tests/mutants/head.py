"""Bugs in the output head, which is run a tile of rows at a time, and in losses that are taken inside it."""

from tests.mutants.mutant import Mutant

LOGPROBS = ("kernels/test_logprobs.py",)
CHUNKED = ("kernels/test_chunked_loss.py",)

MUTANTS = (
    # -- the output head, a tile at a time ---------------------------------------------------------------------------
    Mutant(
        "gradient of the softmax without its normalisation (1 / s left out)",
        "kernels/head.py",
        "inverse = torch.exp(-softmax.log_sum)",
        "inverse = torch.ones_like(softmax.log_sum)",
        LOGPROBS,
    ),
    Mutant(
        "gradient of a log-prob without the label's own logit",
        "kernels/head.py",
        "grad.scatter_add_(1, labels.unsqueeze(1), upstream.unsqueeze(1))",
        "pass",
        LOGPROBS,
    ),
    Mutant(
        "entropy's gradient as if the exponentials were normalised (log s missing)",
        "kernels/head.py",
        "(softmax.entropy - softmax.log_sum)",
        "softmax.entropy",
        LOGPROBS,
    ),
    Mutant(
        "sign of one of the two terms of the entropy's gradient",
        "kernels/head.py",
        "grad += self._scratch",
        "grad -= self._scratch",
        LOGPROBS,
    ),
    Mutant(
        "entropy is NaN where a token is forbidden (0 log 0)",
        "kernels/head.py",
        "torch.special.entr(logits, out=self._entr(len(logits)))",
        "torch.mul(logits, -logits.log(), out=self._entr(len(logits)))",
        LOGPROBS,
    ),
    Mutant(
        "exponentials of the logits themselves: large ones overflow",
        "kernels/head.py",
        "shifted = logits.sub_(logits.amax(-1, keepdim=True))",
        "shifted = logits",
        (*CHUNKED, *LOGPROBS),
    ),
    Mutant(
        "products of half-precision factors summed in half precision",
        "kernels/head.py",
        "torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)",
        "torch.promote_types(hidden.dtype, weight.dtype)",
        (*CHUNKED, *LOGPROBS),
    ),
    Mutant(
        "gradients of a chunk's hidden states written to the first rows",
        "kernels/head.py",
        "self.hidden[index] = ",
        "self.hidden[: len(index)] = ",
        LOGPROBS,
    ),
    Mutant(
        "bias of the head gets the gradient of the last chunk alone",
        "kernels/head.py",
        "self.bias.add_(grad.sum(0))",
        "self.bias.copy_(grad.sum(0))",
        LOGPROBS,
    ),
    Mutant(
        "weight of the head gets the gradient of the last chunk alone",
        "kernels/head.py",
        "total.addmm_(grad.T, rows)",
        "total.copy_(grad.T @ rows)",
        LOGPROBS,
    ),
    # -- the loss inside the head ------------------------------------------------------------------------------------
    Mutant(
        "what stands above the loss ignored in its gradient",
        "kernels/chunked_loss.py",
        "grad.mul_(upstream)",
        "pass",
        CHUNKED,
    ),
    Mutant(
        "gradients kept in half precision before the loss scaler's factor is there",
        "kernels/head.py",
        "torch.zeros_like(head.hidden, dtype=head.dtype)",
        "torch.zeros_like(head.hidden)",
        CHUNKED,
    ),
    Mutant(
        "a tile that has held other rows since taken for a part's own",
        "kernels/chunked_loss.py",
        "if len(pieces) > 1:",
        "if len(pieces) < 1:",
        CHUNKED,
    ),
    Mutant(
        "a part in pieces: each piece gets the gradient of the first",
        "kernels/chunked_loss.py",
        "softmax, upstream[where], of_entropy)",
        "softmax, upstream[: len(piece)], of_entropy)",
        CHUNKED,
    ),
    Mutant(
        "entropy bonus of the loss inside the head without a gradient",
        "kernels/chunked_loss.py",
        "return by_logprob, by_entropy[0] if by_entropy else None",
        "return by_logprob, None",
        CHUNKED,
    ),
    Mutant(
        "loss inside the head computed under autocast",
        "kernels/chunked_loss.py",
        "with autocast_off(hidden):",
        "if True:",
        CHUNKED,
    ),
    Mutant(
        "metrics of the last part alone",
        "kernels/chunked_loss.py",
        "metrics[name] = metrics[name] + share if name in metrics else share",
        "metrics[name] = share",
        CHUNKED,
    ),
    Mutant(
        "last units of a batch in no part",
        "kernels/chunked_loss.py",
        "return [*runs, range(start, len(lengths))] if len(lengths) else []",
        "return runs or ([range(start, len(lengths))] if len(lengths) else [])",
        CHUNKED,
    ),
    # -- scaled and capped logits ------------------------------------------------------------------------------------
    Mutant(
        "slope of the soft cap left out of the gradient",
        "kernels/head.py",
        "grad *= self._slope[: len(grad)]",
        "pass",
        CHUNKED,
    ),
    Mutant(
        "scale of the logits left out of the gradient",
        "kernels/head.py",
        "grad *= scale",
        "pass",
        CHUNKED,
    ),
    Mutant(
        "temperature before the soft cap",
        "kernels/head.py",
        "tile.div_(softcap).tanh_()",
        "tile.div_(softcap * temperature).tanh_().mul_(temperature)",
        LOGPROBS,
    ),
    Mutant(
        "scale and soft cap of the head forgotten while replies are sampled",
        "models/decoding/logits.py",
        "return head.logits_of(_product(hidden.to(head.weight.dtype), head.weight, head.bias))",
        "return _product(hidden.to(head.weight.dtype), head.weight, head.bias)",
        ("rollout/test_generate.py",),
    ),
    Mutant(
        "logits multiplied where the network divides",
        "models/backbone.py",
        "(times or 1.0) / (over or 1.0)",
        "(times or 1.0) * (over or 1.0)",
        ("models/test_policy.py",),
    ),
)
