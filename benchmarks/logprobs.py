"""`linear_logprobs` against the plain form that materialises [positions, vocabulary] logits.

    python benchmarks/logprobs.py [--positions 1024] [--width 256] [--vocab 50257] [--rounds 5]

Each round times both, forward and backward, one after the other; printed is the median of the rounds' ratios. Peak
memory is the growth of the resident set of a fresh process per form (Linux only).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from alignlab.kernels.logprobs import linear_logprobs

MAKE = {
    "chunked": lambda h, w, y: linear_logprobs(h, w, y).logprobs,
    "plain": lambda h, w, y: torch.log_softmax(h @ w.T, -1).gather(-1, y[:, None])[:, 0],
}


def inputs(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(args.positions, args.width, generator=generator).requires_grad_()
    weight = (0.1 * torch.randn(args.vocab, args.width, generator=generator)).requires_grad_()
    return hidden, weight, torch.randint(args.vocab, (args.positions,), generator=generator)


def seconds(form: str, tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> float:
    hidden, weight, _ = tensors
    hidden.grad = weight.grad = None
    started = time.perf_counter()
    MAKE[form](*tensors).sum().backward()
    return time.perf_counter() - started


def peak_mib() -> float:
    """The largest resident set of this process so far (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peak_growth_mib(form: str, args: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--only", form]
    command += [f"--{name}={getattr(args, name)}" for name in ("positions", "width", "vocab")]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=list(MAKE), help="print the peak memory growth of one form, in MiB")
    args = parser.parse_args()
    tensors = inputs(args)
    if args.only:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
        before = peak_mib()
        seconds(args.only, tensors)
        print(peak_mib() - before)
        return
    for form in MAKE:
        seconds(form, tensors)  # warm up
    ratios = [seconds("chunked", tensors) / seconds("plain", tensors) for _ in range(args.rounds)]
    memory = {form: peak_growth_mib(form, args) for form in MAKE}
    result = {"positions": args.positions, "width": args.width, "vocab": args.vocab, "threads": torch.get_num_threads()}
    result |= {"time_ratio_chunked_over_plain": statistics.median(ratios), "peak_growth_mib": memory}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
