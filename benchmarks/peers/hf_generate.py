"""transformers' `generate` on our prompts, with the scores that an on-policy method needs. One JSON line on stdout.

    python -m benchmarks.peers.hf_generate rollout S [--steps 4] [--threads 1]

As TRL's PPO uses it: scores of every step are kept and stacked, log-probs are taken from them afterwards. Tokens: the
replies' own, up to their end token.
"""

import argparse
from typing import Any

from benchmarks.meter import Meter
from benchmarks.peers.trl_offline import load
from benchmarks.worker import answer, parse
from benchmarks.workloads import EOS, PAD, SEED, WARM_STEPS, Workload, load_prompts

SHOWN = 16


def main() -> None:
    """Measure what the arguments say."""
    arguments = parse(__doc__, cases=["rollout"])
    answer("transformers", arguments, lambda: measure(arguments))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time and memory per produced token, and the greedy replies."""
    import torch

    of: Workload = arguments.workload
    model = load(of, "talker").to(arguments.device).eval()
    prompts = load_prompts(of)
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts], device=arguments.device)
    torch.manual_seed(SEED)
    tokens = []
    meter = Meter(WARM_STEPS, threads=arguments.threads, device=arguments.device)
    for _ in range(WARM_STEPS + (arguments.steps or of.rollouts.updates)):
        replies, logprobs = sample(model, ids, of.rollouts.response, do_sample=True)
        meter.tick()
        assert logprobs.shape == replies.shape
        tokens.append(sum(len(reply) for reply in ended(replies)))
        meter.skip()
    replies, logprobs = sample(model, ids, SHOWN, do_sample=False)
    shown = ended(replies)
    total = sum(float(row[: len(reply)].double().sum()) for row, reply in zip(logprobs, shown))
    lengths = [n / of.rollouts.batch for n in tokens]
    return {
        **meter.summary(tokens[WARM_STEPS:]),
        "greedy": shown,
        "greedy_logprob": total,
        "response_length": lengths,
    }


def sample(model: Any, ids: Any, most: int, *, do_sample: bool) -> tuple[Any, Any]:
    """Replies and the log-probs of their tokens."""
    import torch

    untempered = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if do_sample else {}
    out = model.generate(
        input_ids=ids,
        attention_mask=(ids != PAD).long(),
        max_new_tokens=most,
        do_sample=do_sample,
        **untempered,
        eos_token_id=EOS,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
    )
    replies = out.sequences[:, ids.shape[1] :]
    scores = torch.stack(out.scores, 1)
    return replies, torch.log_softmax(scores, -1).gather(-1, replies[..., None])[..., 0]


def ended(replies: Any) -> list[list[int]]:
    """Each reply up to its end token."""
    return [ids[: ids.index(EOS) + 1] if EOS in ids else ids for ids in replies.tolist()]


if __name__ == "__main__":
    main()
