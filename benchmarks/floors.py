"""How fast a step could be at all: the least arithmetic that it needs, at the machine's own speed of matrix products.

    python -m benchmarks.floors            # GFLOP/s of one thread, float32

Counted per optimizer step: 6 FLOP per weight of the body and needed token (2 forward, 4 backward; 4 in all where the
weights are frozen, as under LoRA), a prompt that both replies share once; causal attention; 6 x vocabulary x width per
reply token in the LM head (4 where it is frozen), none for prompts and padding. The reference is cached: free.
"""

import json
import time
from typing import NamedTuple

from benchmarks.workloads import Pair, Workload, load_batches


class Floor(NamedTuple):
    """FLOP of one optimizer step, the mean over the counted ones."""

    body: float
    head: float

    def seconds(self, gflops: float) -> float:
        """At that many GFLOP/s."""
        return (self.body + self.head) / gflops / 1e9


def body_weights(of: Workload) -> int:
    """Weights in the matrices of all layers."""
    if of.architecture == "gpt2":
        return of.layers * 12 * of.width**2
    kv_width = of.kv_heads * of.width // of.heads
    return of.layers * (2 * of.width**2 + 2 * of.width * kv_width + 3 * of.width * of.mlp)


def attention(tokens: int, of: Workload) -> int:
    """FLOP of causal attention forward over that many tokens: query x key and weight x value, each pair once."""
    return of.layers * 2 * tokens * (tokens + 1) * of.width


def pair_work(pair: Pair, of: Workload, *, both: bool) -> tuple[int, int, int]:
    """Tokens of the body, FLOP of attention forward, tokens of the head: of one pair, or of its chosen side alone."""
    prompt, chosen = len(pair.prompt_ids), len(pair.chosen_ids)
    rejected = len(pair.rejected_ids) if both else 0
    scores = attention(prompt + chosen, of)
    scores += attention(prompt + rejected, of) - attention(prompt, of) if both else 0
    return prompt + chosen + rejected, scores, chosen + rejected


def floor(kind: str, of: Workload, steps: int) -> Floor:
    """`kind`: sft, reward, dpo or dpo_lora."""
    counted = load_batches(of, steps)[-steps:]
    work = [pair_work(pair, of, both=kind != "sft") for batch in counted for pair in batch]
    tokens, scores, scored = (sum(column) / steps for column in zip(*work, strict=True))
    per_weight = 4 if kind == "dpo_lora" else 6
    head = 0.0 if kind == "reward" else per_weight * of.vocabulary * of.width * scored
    return Floor(per_weight * body_weights(of) * tokens + 3 * scores, head)


def measure_gflops(rounds: int = 20) -> float:
    """The best of torch's two float32 routes on one thread, in process CPU time, for a (1024 x 768) x (768 x 3072)."""
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(1024, 768, generator=generator), torch.randn(768, 3072, generator=generator)
    exact = a.double() @ b.double()
    best = 0.0
    for route in ("highest", "medium"):
        torch.set_float32_matmul_precision(route)
        error = float(((a @ b) - exact).abs().max() / exact.abs().max())
        if error > 1e-5:  # some machines round to bfloat16 on the second route
            continue
        times = []
        for _ in range(rounds):
            started = time.process_time()
            _ = a @ b
            times.append(time.process_time() - started)
        best = max(best, 2 * 1024 * 768 * 3072 / min(times) / 1e9)
    return best


if __name__ == "__main__":
    print(json.dumps({"gflops": measure_gflops()}))
