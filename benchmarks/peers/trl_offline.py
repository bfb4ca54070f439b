"""TRL's SFT, reward and DPO trainers on our workloads. One JSON line on stdout.

    python -m benchmarks.peers.trl_offline {sft,reward,dpo,dpo_cached,dpo_lora} S [--steps 4] [--threads 1] [--compact]

float32 and no gradient checkpointing (TRL's defaults are bfloat16 and checkpointing), AdamW, constant rate, rows in
order. `--compact` makes the LM head skip prompt and pad positions on a CPU too, as it does on CUDA: the fair peer.
"""

import argparse
import logging
import tempfile
from typing import Any

from benchmarks.meter import Meter
from benchmarks.worker import answer, parse
from benchmarks.workloads import (
    BETA,
    LEARNING_RATE,
    SEED,
    WARM_STEPS,
    Workload,
    load_batches,
    make_tokenizer,
    network_folder,
)


def main() -> None:
    """Measure what the arguments say."""
    arguments = parse(__doc__, cases=["sft", "reward", "dpo", "dpo_cached", "dpo_lora"])
    answer("trl-compact" if arguments.compact else "trl", arguments, lambda: measure(arguments))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time, memory and losses of one trainer."""
    from transformers import TrainerCallback

    be_quiet()
    if arguments.compact:
        skip_unscored_positions()
    of: Workload = arguments.workload
    steps = arguments.steps or of.steps
    batches = load_batches(of, steps)
    sides = ("chosen",) if arguments.case == "sft" else ("chosen", "rejected")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(arguments, batches, scratch)
        meter = Meter(WARM_STEPS, threads=arguments.threads, device=arguments.device)

        class Clock(TrainerCallback):
            def on_train_begin(self, *given: Any, **named: Any) -> None:
                meter.skip()

            def on_step_end(self, *given: Any, **named: Any) -> None:
                meter.tick()

        trainer.add_callback(Clock())
        trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    tokens = [sum(sum(pair.lengths(*sides)) for pair in batch) for batch in batches]
    told = {"loss": "loss", "chosen_logprob": "logps/chosen", "rejected_logprob": "logps/rejected"}
    curves = {ours: [entry[theirs] for entry in history if theirs in entry] for ours, theirs in told.items()}
    return {**meter.summary(tokens[WARM_STEPS:]), **{name: curve for name, curve in curves.items() if curve}}


def be_quiet() -> None:
    """No bars and no advice: stdout and time belong to the measurement."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)


def skip_unscored_positions() -> None:
    """TRL's chunked LM head picks the scored positions out where it believes it runs on Triton."""
    from trl.trainer import utils

    assert hasattr(utils, "_use_triton"), "this TRL decides otherwise where its head is compact; see trl/trainer/utils"
    utils._use_triton = lambda device: True


def make_trainer(arguments: argparse.Namespace, batches: list[list[Any]], scratch: str) -> Any:
    """The trainer of the case, on the rows of all steps."""
    import trl
    from datasets import Dataset

    of, case, uses_bf16 = arguments.workload, arguments.case, arguments.precision == "bf16"
    settings: dict[str, Any] = {
        "output_dir": scratch,
        "per_device_train_batch_size": of.pairs,
        "max_steps": len(batches),
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": uses_bf16,
        "fp16": False,
        "gradient_checkpointing": False,
        "use_cpu": arguments.device == "cpu",
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": SEED,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
        "max_length": of.context,
    }
    texts = [pair.texts() for batch in batches for pair in batch]
    common: dict[str, Any] = {"processing_class": make_tokenizer(of)}
    if case == "sft":
        rows = [{"prompt": text["prompt"], "completion": text["chosen"]} for text in texts]
        common |= {"model": load(of, "policy"), "train_dataset": Dataset.from_list(rows)}
        return trl.SFTTrainer(args=trl.SFTConfig(**settings), **common)
    common["train_dataset"] = Dataset.from_list(texts)
    if case == "reward":
        return trl.RewardTrainer(model=load(of, "classifier"), args=trl.RewardConfig(**settings), **common)
    if case == "dpo_cached":
        settings |= {"precompute_ref_log_probs": True, "precompute_ref_batch_size": of.pairs}
    if case == "dpo":
        common["ref_model"] = load(of, "policy")
    if case == "dpo_lora":
        common["peft_config"] = lora_config(of)
    trainer = trl.DPOTrainer(model=load(of, "policy"), args=trl.DPOConfig(beta=BETA, **settings), **common)
    if case == "dpo_lora":
        start_like_ours(trainer.model, of)
    return trainer


def load(of: Workload, network: Any) -> Any:
    """A saved network of the workload, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM if network in ("policy", "talker") else AutoModelForSequenceClassification
    return kind.from_pretrained(network_folder(of, network), dtype=torch.float32)


def lora_config(of: Workload) -> Any:
    """LoRA on every linear layer of the body."""
    from peft import LoraConfig

    gpt2, qwen2 = ["c_attn", "c_fc", "c_proj"], ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj"]
    names = gpt2 if of.architecture == "gpt2" else [*qwen2, "up_proj", "v_proj"]
    return LoraConfig(
        r=of.rank,
        lora_alpha=2 * of.rank,
        lora_dropout=0.0,
        target_modules=names,
        fan_in_fan_out=of.architecture == "gpt2",
        task_type="CAUSAL_LM",
    )


def start_like_ours(adapted: Any, of: Workload) -> None:
    """Give the fresh adapter the values that ours starts from: those that seed 0 makes."""
    import torch
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    base = load(of, "policy")
    torch.manual_seed(0)
    twin = get_peft_model(base, lora_config(of))
    set_peft_model_state_dict(adapted, get_peft_model_state_dict(twin))


if __name__ == "__main__":
    main()
