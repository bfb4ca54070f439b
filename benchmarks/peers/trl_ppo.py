"""TRL's PPO trainer on our workloads. One JSON line on stdout.

    python -m benchmarks.peers.trl_ppo ppo S --trl-ppo FOLDER [--steps 4] [--threads 1]

TRL has dropped PPO after 1.12.0: `pip install --no-deps --target FOLDER trl==1.12.0` (`make bench` does it).
Four networks in float32 (policy, value, reward, reference), two epochs of one update in two micro-batches, sampling at
temperature 1. Tokens: prompts, and replies up to their end token.
"""

import argparse
import sys
import tempfile
from typing import Any

from benchmarks.meter import Meter
from benchmarks.peers.trl_offline import be_quiet, load
from benchmarks.worker import answer, parse
from benchmarks.workloads import EOS, PAD, SEED, WARM_STEPS, Workload, load_prompts, make_tokenizer


def main() -> None:
    """Measure what the arguments say."""
    arguments = parse(__doc__, cases=["ppo"])
    if not arguments.trl_ppo:
        raise SystemExit("--trl-ppo: the folder of TRL 1.12.0 is needed")
    sys.path.insert(0, arguments.trl_ppo)
    answer("trl", arguments, lambda: measure(arguments))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time, memory and a check of the stored log-probs."""
    from transformers import TrainerCallback

    be_quiet()
    of: Workload = arguments.workload
    seen = Rollouts()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(arguments, scratch)
        meter = Meter(WARM_STEPS, threads=arguments.threads, device=arguments.device)
        watch(seen, meter)

        class Clock(TrainerCallback):
            def on_train_begin(self, *given: Any, **named: Any) -> None:
                meter.skip()

            def on_step_end(self, *given: Any, **named: Any) -> None:
                meter.tick()

        trainer.add_callback(Clock())
        trainer.train()
    history = trainer.state.log_history
    return {
        **meter.summary(seen.tokens[WARM_STEPS:]),
        "loss": [entry["loss/policy_avg"] for entry in history if "loss/policy_avg" in entry],
        "value_loss": [entry["loss/value_avg"] for entry in history if "loss/value_avg" in entry],
        "kl": [entry["objective/kl"] for entry in history if "objective/kl" in entry],
        "sampler_gap": seen.gaps,
        "response_length": [n / of.rollouts.batch for n in seen.replies],
        "trl": trl_version(),
    }


def trl_version() -> str:
    """Of the release in the folder, which is not the one that is installed."""
    import trl

    return trl.__version__


class Rollouts:
    """What the trainer has sampled."""

    def __init__(self) -> None:
        self.tokens: list[int] = []  # prompts and replies, of each iteration
        self.replies: list[int] = []  # tokens of the replies alone
        self.gaps: list[float] = []  # |stored - plain| log-prob per token, of the first iteration


def watch(seen: Rollouts, meter: Meter) -> None:
    """Count what is sampled; compare the first stored log-probs with an unpadded plain forward pass."""
    import torch
    from trl.experimental.ppo import ppo_trainer  # pyright: ignore[reportMissingImports]

    sample = ppo_trainer.batch_generation

    def counted(model: Any, queries: Any, *more: Any) -> Any:
        sequences, logits = sample(model, queries, *more)
        replies = sequences[:, queries.shape[1] :]
        lengths = [ids.index(EOS) + 1 if EOS in ids else len(ids) for ids in replies.tolist()]
        seen.replies.append(sum(lengths))
        seen.tokens.append(int((queries != PAD).sum()) + sum(lengths))
        if not seen.gaps:
            stored = torch.log_softmax(logits[0].float(), -1).gather(-1, replies[0, :, None])[:, 0]
            prompt = queries[0][queries[0] != PAD]
            whole = torch.cat([prompt, replies[0]])[None]
            plain = torch.log_softmax(model(whole).logits[0, len(prompt) - 1 : -1].double(), -1)
            gap = (plain.gather(-1, replies[0, :, None])[:, 0] - stored).abs()[: lengths[0]]
            seen.gaps.append(float(gap.max()))  # in an uncounted iteration
        return sequences, logits

    ppo_trainer.batch_generation = counted


def make_trainer(arguments: argparse.Namespace, scratch: str) -> Any:
    """PPO on the workload's prompts."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # pyright: ignore[reportMissingImports]

    of: Workload = arguments.workload
    batch, updates = of.rollouts.batch, WARM_STEPS + (arguments.steps or of.rollouts.updates)
    settings: dict[str, Any] = {
        "output_dir": scratch,
        "per_device_train_batch_size": batch // 2,
        "gradient_accumulation_steps": 2,
        "num_mini_batches": 1,
        "num_ppo_epochs": 2,
        "total_episodes": batch * updates,
        "learning_rate": 1e-5,
        "response_length": of.rollouts.response,
        "stop_token": "eos",
        "temperature": 1.0,
        "num_sample_generations": 0,
        "local_rollout_forward_batch_size": batch,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": SEED,
        "use_cpu": arguments.device == "cpu",
        "bf16": arguments.precision == "bf16",
        "fp16": False,
        "gradient_checkpointing": False,
    }
    rows = Dataset.from_list([{"input_ids": ids} for ids in load_prompts(of)])
    return PPOTrainer(
        args=PPOConfig(**settings),
        processing_class=make_tokenizer(of),
        model=load(of, "talker"),
        ref_model=load(of, "talker"),
        reward_model=load(of, "reward"),
        value_model=load(of, "value"),
        train_dataset=rows,
        eval_dataset=rows,
    )


if __name__ == "__main__":
    main()
