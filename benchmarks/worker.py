"""What every measuring process has in common: its arguments, its environment, and the one JSON line that it prints."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.workloads import Workload, workload


def parse(description: str | None, *, cases: list[str]) -> argparse.Namespace:
    """The arguments of a worker; `workload` becomes a Workload with what `--set` changes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=cases)
    parser.add_argument("workload")
    parser.add_argument("--steps", type=int, help="counted steps; the workload's own where not given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=NUMBER", help="change the workload")
    parser.add_argument("--compact", action="store_true", help="TRL: skip prompt and pad positions in the LM head")
    parser.add_argument("--off", help="ours: the switch that is off")
    parser.add_argument("--trl-ppo", help="folder of TRL 1.12, the last release with PPO")
    arguments = parser.parse_args()
    changes = dict(change.split("=") for change in arguments.set)
    arguments.workload = workload(arguments.workload, {name: float(value) for name, value in changes.items()})
    return arguments


def settle(arguments: argparse.Namespace) -> None:
    """Threads and devices, before torch computes anything; no network, no progress bars."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(arguments.threads)


def answer(system: str, arguments: argparse.Namespace, measure: Callable[[], dict[str, Any]]) -> None:
    """Measure, then print one JSON line; whatever else is printed meanwhile goes to stderr."""
    settle(arguments)
    with contextlib.redirect_stdout(sys.stderr):
        result = measure()
    told = {"system": system, "case": arguments.case, "workload": arguments.workload.name, "set": arguments.set}
    told |= {name: getattr(arguments, name) for name in ("threads", "device", "precision", "compact", "off")}
    print(json.dumps({**told, **result, "versions": versions()}))


def versions() -> dict[str, str]:
    """Of the libraries that matter to a speed."""
    found = {}
    for name in ("alignlab", "torch", "transformers", "peft", "lightning", "trl"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def prompt_tokens(of: Workload) -> int:
    """Real tokens of the prompts of one iteration."""
    from benchmarks.workloads import load_prompts

    return sum(len(prompt) for prompt in load_prompts(of))
