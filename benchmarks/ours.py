"""One measurement of ours: the real method, driven by Lightning as `alignlab` drives it. One JSON line on stdout.

    python -m benchmarks.ours {sft,reward,dpo,...} S [--steps 4] [--threads 1] [--off SWITCH]

The config is composed as on the command line and handed to the same function that builds a run; a logger reads the
clock at each step. The rows go into a file in the order that the loader's shuffle undoes, so that they are trained on
in the order of the workload.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Case
from benchmarks.meter import Meter
from benchmarks.step_log import Measured
from benchmarks.switches import SWITCHES
from benchmarks.worker import answer, parse, prompt_tokens
from benchmarks.workloads import (
    BETA,
    LEARNING_RATE,
    SEED,
    WARM_STEPS,
    Workload,
    load_batches,
    load_prompts,
    network_folder,
    spelled,
)

SHOWN = 16  # tokens that a rollout is compared by


def main() -> None:
    """Measure what the arguments say."""
    arguments = parse(__doc__, cases=list(CASES))
    answer("alignlab", arguments, lambda: measure(arguments))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time, memory and losses of one case."""
    from alignlab.app.runs.quiet import quiet

    quiet()
    case, of = CASES[arguments.case], arguments.workload
    case.prepare(of)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        words = overrides(case, of, folder, arguments)
        if arguments.off is not None:
            words += SWITCHES[arguments.off].overrides
        if arguments.case == "rollout":
            return rollouts(words, of, folder, arguments)
        meter, metrics = train(words, folder, arguments)
    losses = {name: [m[f"train/{name}"] for m in metrics if f"train/{name}" in m] for name in CURVES}
    tokens = sampled_tokens(case, of, metrics) if case.is_sampled else offline_tokens(case, of, arguments)
    return {**meter.summary(tokens[WARM_STEPS:]), **{name: curve for name, curve in losses.items() if curve}}


CURVES = ("loss", "chosen_logprob", "rejected_logprob", "sampler_gap", "kl", "response_length", "value_loss")
"""Metrics that are kept for the comparison with the peer."""


def train(words: list[str], folder: Path, arguments: argparse.Namespace) -> tuple[Meter, list[dict[str, float]]]:
    """Run the training that `words` say, up to its last step; the clock's readings and each step's metrics."""
    from omegaconf import OmegaConf

    import alignlab
    from alignlab.app.work.kinds import train as run

    cfg = alignlab.compose(words)
    steps = {"warm": WARM_STEPS, "steps": counted_steps(arguments)}
    told = {"threads": arguments.threads, "device": arguments.device}
    cfg.logger = {"steps": {"_target_": "benchmarks.step_log.StepLog", "_partial_": True, **steps, **told}}
    OmegaConf.resolve(cfg)
    try:
        run(cfg, folder, None)
    except Measured as measured:
        return measured.meter, measured.metrics
    raise RuntimeError(f"{arguments.case}: the training ended before its last step was logged")


def counted_steps(arguments: argparse.Namespace) -> int:
    """Steps or iterations that count."""
    of = arguments.workload
    usual = of.rollouts.updates if CASES[arguments.case].is_sampled else of.steps
    return arguments.steps or usual


def overrides(case: Case, of: Workload, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """What would be typed after `alignlab` to train this."""
    total = WARM_STEPS + counted_steps(arguments)
    words = [
        *case.overrides,
        "model=pretrained",
        f"model.init_from={network_folder(of, case.networks[0])}",
        "data.validation_fraction=0",
        f"data.max_length={of.context}",
        f"method.max_steps={total}",
        f"method.lr={1e-5 if case.is_sampled else LEARNING_RATE}",
        "method.optimizer.betas=[0.9,0.999]",
        "method.optimizer.eps=1e-8",
        "method.optimizer.weight_decay=0",
        "method.optimizer.max_grad_norm=1.0",
        "method.optimizer.schedule=constant",
        "method.optimizer.warmup=0",
        "task.validations=0",
        "task.checkpoints=1",
        "task.samples.num_prompts=0",
        f"task.log_points={total}",
        f"hardware={'gpu' if arguments.device == 'cuda' else 'cpu'}",
        f"hardware.precision={'bf16-mixed' if arguments.precision == 'bf16' else 32}",
        "hardware.progress=false",
        f"hardware.threads={arguments.threads}",
        f"paths.runs={folder}",
    ]
    if "adapter=lora" in words:
        words += [f"adapter.rank={of.rank}", f"adapter.alpha={2 * of.rank}"]
    if "method=dpo" in words:
        words += [f"method.loss.beta={BETA}"]
    return words + (sampled_data(case, of, folder) if case.is_sampled else offline_data(case, of, folder, total))


def offline_data(case: Case, of: Workload, folder: Path, total: int) -> list[str]:
    """Pairs or demonstrations as a file; the overrides that read it."""
    rows = [pair.texts() for batch in load_batches(of, total - WARM_STEPS) for pair in batch]
    name = "preference"
    if case.sides == ("chosen",):
        name, rows = "demonstrations", [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows]
    write_rows(folder / "train.jsonl", rows)
    return [f"data={name}", f"data.source.train={folder / 'train.jsonl'}", f"data.batch_size={of.pairs}"]


def sampled_data(case: Case, of: Workload, folder: Path) -> list[str]:
    """Prompts as a file; the overrides that read it, score replies and cut an iteration as the peer does."""
    write_rows(folder / "train.jsonl", [{"prompt": f"{spelled(ids)} "} for ids in load_prompts(of)])
    batch = of.rollouts.batch
    words = [
        "data=prompts",
        f"data.source.train={folder / 'train.jsonl'}",
        f"data.batch_size={batch}",
        f"data.max_new_tokens={of.rollouts.response}",
        f"method.reward.path={reward_run(of)}",
        "method.reward._target_=benchmarks.step_log.loaded_reward",
    ]
    if "method=ppo" in case.overrides:  # two epochs of one update, each in two micro-batches
        words += [f"method.minibatch_size={batch}", f"hardware.micro_batch_size={max(batch // 2, 1)}"]
    if "method=rloo" in case.overrides:
        words += [f"method.group_size={of.group}"]
    return words


def write_rows(file: Path, rows: list[dict[str, str]]) -> None:
    """Rows as a file whose shuffle, with seed 0, gives them back in their order."""
    from alignlab.data.loader import epoch_order

    shuffled = [rows[0]] * len(rows)
    for row, place in zip(rows, epoch_order(len(rows), 0, 0), strict=True):
        shuffled[place] = row
    file.write_text("".join(json.dumps(row) + "\n" for row in shuffled))


def reward_run(of: Workload) -> Path:
    """The reward network as alignlab saves one: with its scale and the format of its texts."""
    from alignlab.models.origins import REWARD_FILE
    from alignlab.models.reward_model import RewardModel, write_notes
    from alignlab.models.source import ModelSource

    folder = network_folder(of, "reward")
    if not (folder / REWARD_FILE).exists():
        reward_model: RewardModel = ModelSource(init_from=str(folder)).load_reward_model()
        write_notes(reward_model, folder)
    return folder


# -- tokens ----------------------------------------------------------------------------------------------------------
def offline_tokens(case: Case, of: Workload, arguments: argparse.Namespace) -> list[int]:
    """Real tokens of each step: every prompt with every reply that is trained on."""
    batches = load_batches(of, counted_steps(arguments))
    return [sum(sum(pair.lengths(*case.sides)) for pair in batch) for batch in batches]


def sampled_tokens(case: Case, of: Workload, metrics: list[dict[str, float]]) -> list[int]:
    """Real tokens of each iteration: prompts and the replies to them."""
    group = of.group if "method=rloo" in case.overrides else 1
    replies = of.rollouts.batch * group
    return [round(prompt_tokens(of) * group + replies * m["train/response_length"]) for m in metrics]


# -- rollouts alone --------------------------------------------------------------------------------------------------
def rollouts(words: list[str], of: Workload, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Sampling without any training: time and memory per produced token, and what the policy says greedily."""
    import torch
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    import alignlab
    from alignlab.app.work.training import make_data
    from alignlab.methods import on_policy
    from alignlab.rows import PromptRow

    cfg = alignlab.compose(words)
    OmegaConf.resolve(cfg)
    source = instantiate(cfg.model)(seed=0)
    policy = source.load_policy().to(arguments.device)
    policy.decoder = cfg.hardware.decoder
    data = make_data(cfg, folder, source, PromptRow)
    batch = data.train_batch(0)
    generator = torch.Generator(arguments.device).manual_seed(SEED)
    tokens = []
    meter = Meter(WARM_STEPS, threads=arguments.threads, device=arguments.device)
    for _ in range(WARM_STEPS + counted_steps(arguments)):
        rollout = on_policy.generate(policy, batch, max_new_tokens=of.rollouts.response, generator=generator)
        meter.tick()
        tokens.append(int(rollout.sequences.num_scored))
        meter.skip()
    greedy = on_policy.generate(policy, batch, max_new_tokens=SHOWN, greedy=True)
    width = batch.input_ids.shape[1]
    return {
        **meter.summary(tokens[WARM_STEPS:]),
        "greedy": [
            row[mask].tolist()
            for row, mask in zip(greedy.sequences.input_ids[:, width:], greedy.sequences.attention_mask[:, width:])
        ],
        "greedy_logprob": float(greedy.sampler_logprobs.double().sum()),
        "response_length": [n / of.rollouts.batch for n in tokens],
    }


if __name__ == "__main__":
    main()
