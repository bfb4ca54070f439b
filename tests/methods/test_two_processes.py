"""Two processes make the step that one makes, where rows have weights, labels, or share a baseline."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from alignlab.methods.optimization import AdamW
from alignlab.methods.strategy import make_strategy
from alignlab.rows import PreferenceRow, UnpairedRow
from tests.data.test_streams import Stream
from tests.methods.setting import fit, make_data
from tests.methods.test_kto import moved
from tests.methods.test_soft_labels import SoftRows, make

STEADY = AdamW(schedule="constant", max_grad_norm=None)
CASES = ("dpo", "reward", "stream", "kto")
FIGURES = ("train/loss", "train/grad_norm", "train/accuracy")


def run(case: str, folder: Path, *, rank: int = 0, world_size: int = 1) -> None:
    """Three steps of 5 rows, so that two processes have unequal shares."""
    sources: dict[str, Any] = {"stream": Stream(), "kto": None}
    row_type = UnpairedRow if case == "kto" else PreferenceRow
    data = make_data(row_type, source=sources.get(case, SoftRows(num_rows=15)), batch_size=5)
    data.prepare(world_size=world_size, rank=rank)
    settings: dict[str, Any] = {"max_steps": 3, "optimizer": STEADY}
    method = moved(**settings) if case == "kto" else make("reward" if case == "reward" else "dpo", **settings)
    several = {"devices": 2, "strategy": make_strategy("ddp"), "use_distributed_sampler": False}
    fit(method, folder / case, data=data, validate_every=9, **(several if world_size > 1 else {}))


def one_of_two(rank: int, port: int, folder: Path) -> None:
    """A process as a launcher would start it."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in own.items()})
    torch.set_num_threads(1)
    for case in CASES:
        run(case, folder if rank == 0 else folder / "other", rank=rank, world_size=2)
    dist.barrier()  # a process that ends while the other still talks to it takes it down
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the same runs on one process and on two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for case in CASES:
        run(case, one)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_of_two, (port, two), nprocs=2)
    return one, two


@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_the_steps_that_one_makes(case: str, both: tuple[Path, Path]):
    steps = []
    for folder in both:
        lines = [json.loads(line) for line in (folder / case / "metrics.jsonl").read_text().splitlines()]
        steps.append([[line[name] for name in FIGURES] for line in lines if "train/loss" in line])
    assert len(steps[0]) == len(steps[1]) == 3
    assert steps[1][0] == pytest.approx(steps[0][0], rel=1e-4)
    for one, two in zip(*steps, strict=True):
        assert two == pytest.approx(one, rel=5e-3)
