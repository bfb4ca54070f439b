"""The real command on a tiny world: two processes train like one, and a killed run goes on to the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alignlab.app.cli import main
from tests.test_readme import SMALL

SFT = [
    "experiments=quickstart/sft",
    *SMALL,
    "data.batch_size=4",
    "task.samples.final_prompts=4",
    "hardware.progress=false",
]


def folder_of(runs: Path, name: str = "quickstart-sft") -> Path:
    [folder] = [path.parent for path in runs.glob(f"{name}-*/run.json")]
    return folder


def weights(runs: Path) -> dict[str, torch.Tensor]:
    return load_file(folder_of(runs) / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts; its runs folder."""
    runs = tmp_path_factory.mktemp("whole")
    assert main([*SFT, f"paths.runs={runs}"]) == 0
    return runs


def start(runs: Path) -> subprocess.Popen[bytes]:
    """The same command in a process of its own, stopped at its first checkpoint at the earliest."""
    command = [sys.executable, "-m", "alignlab", *SFT, f"paths.runs={runs}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # threads change how sums round
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(3000):
        if list(runs.glob("*/checkpoints/last.ckpt")) or process.poll() is not None:
            break
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_a_stopped_command_goes_on_to_the_same_bits(number: int, code: int, whole: Path, tmp_path: Path):
    process = start(tmp_path)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    assert json.loads((folder_of(tmp_path) / "run.json").read_text())["status"] == "running"
    assert not (folder_of(tmp_path) / "model").exists()
    assert main([*SFT, f"paths.runs={tmp_path}"]) == 0
    assert folder_of(tmp_path).name == folder_of(whole).name
    ours, theirs = weights(tmp_path), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    files = [(folder_of(runs) / "metrics.jsonl").read_text() for runs in (tmp_path, whole)]
    assert files[0] == files[1]


def test_two_processes_train_like_one(whole: Path, tmp_path: Path):
    """24 steps of 4 rows of different lengths: a mean of two means would be another number at the first step."""
    assert main([*SFT, f"paths.runs={tmp_path}", "hardware=cpu_ddp", "hardware.progress=false"]) == 0
    assert folder_of(tmp_path).name == folder_of(whole).name, "the number of processes is not in the key"
    ours, theirs = (
        [json.loads(line) for line in (folder_of(runs) / "metrics.jsonl").open()] for runs in (tmp_path, whole)
    )
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name in ("train/loss", "train/grad_norm", "validation/loss"):
            if name in other:
                assert mine[name] == pytest.approx(other[name], rel=2e-3), (mine["step"], name)
    assert ours[0]["train/loss"] == pytest.approx(theirs[0]["train/loss"], rel=1e-5)
    assert ours[0]["train/grad_norm"] == pytest.approx(theirs[0]["train/grad_norm"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reward", "dpo", "ppo"])
def test_every_method_trains_on_two_processes(name: str, tmp_path: Path):
    words = [f"experiments=quickstart/{name}", *SMALL, "hardware=cpu_ddp", "hardware.progress=false"]
    assert main([*words, f"paths.runs={tmp_path}"]) == 0


@pytest.mark.parametrize(
    "extra",
    [
        ["hardware.precision=bf16-mixed"],
        ["hardware.gradient_checkpointing=true", "hardware.micro_batch_size=2"],
        ["adapter=lora", "adapter.rank=4", "method.reference=cached"],
        ["adapter=qlora", "adapter.rank=4", "adapter.compute_dtype=float32"],
        ["method.reference=copy", "logger=tensorboard", "task.patience=1", "task.export=best"],
    ],
    ids=lambda extra: extra[0],
)
def test_dpo_runs_in_every_way(extra: list[str], whole: Path):
    small = [word for word in SMALL if "hidden_size" not in word] + ["model.architecture.hidden_size=64"]
    words = ["experiments=quickstart/dpo", *small, f"paths.runs={whole}", *extra, "hardware.progress=false"]
    assert main(words) == 0


def test_a_reward_model_is_evaluated_on_a_file_of_styles(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One step of training, then other data: the figures and the report are of the file, not of the run's own split."""
    path = tmp_path / "bench.jsonl"
    record = {"chosen": ["yes", "yes, so", "**yes**, so"], "rejected": ["no", "no, not so", "**no**, not so"]}
    lines = [json.dumps({"prompt": f"is it {i}?", "domain": name, **record}) for i, name in enumerate(("chat", "code"))]
    path.write_text("\n".join(lines))
    run = ["method=reward", "method.max_steps=1", *SMALL, f"paths.runs={tmp_path}", "hardware.progress=false"]
    bench = ["task=evaluate", "data@evaluation.data=rmbench", f"evaluation.data.source.test={path}"]
    assert main([*run, *bench]) == 0
    folder = folder_of(tmp_path, "reward.evaluate")
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    assert metrics["test/num_pairs"] == 18
    thirds = [metrics[f"test/{name}_accuracy"] for name in ("easy", "normal", "hard")]
    assert metrics["test/accuracy"] == pytest.approx(sum(thirds) / 3)
    assert metrics["test/accuracy_over_subsets"] == pytest.approx(
        (metrics["test/accuracy/chat"] + metrics["test/accuracy/code"]) / 2
    )
    capsys.readouterr()
    assert main(["report", str(folder)]) == 0
    page = capsys.readouterr().out
    assert "Styles of the replies" in page and "Parts of the pairs" in page and "| style 2 |" in page
