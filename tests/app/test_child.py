"""A training of several processes runs as a child from its frozen config."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from alignlab.app.building import child, processes
from alignlab.app.runs import runfolder

SCRIPT = """
import json, os, sys, time
from pathlib import Path
from alignlab.app.building import build, child

def train(cfg, folder, target):
    said = json.loads(Path("said.json").read_text())
    seen = {name: os.environ.get(name) for name in ("LOCAL_RANK", "MASTER_PORT")}
    needs = {name: [str(p.folder) for p in parents] for name, parents in target.needs.items()}
    (folder / f"seen{os.environ.get('LOCAL_RANK', '')}.json").write_text(json.dumps(
        {"env": seen, "needs": needs, "key": target.key, "devices": cfg.hardware.devices, "pid": os.getpid()}))
    time.sleep(said.get("seconds", 0))
    if said.get("fail"):
        raise ValueError("rank 0 says no")
    if said.get("die"):
        os._exit(9)
    return {"test/accuracy": 0.25}

build.work_of = lambda kind: train
sys.exit(child.main(sys.argv[1:]))
"""


@pytest.fixture
def ddp(toy, monkeypatch):
    (toy.root / "script.py").write_text(SCRIPT)
    (toy.root / "said.json").write_text("{}")
    monkeypatch.setattr(processes, "ENTRY", (str(toy.root / "script.py"),))
    return toy


def seen(toy):
    return json.loads((toy.folder("sft") / "seen.json").read_text())


@pytest.mark.parametrize(
    ("devices", "several"),
    [
        (1, False),
        ("1", False),
        (None, False),
        ([1], False),
        (2, True),
        ("2", True),
        ([0, 1], True),
        (-1, True),
        ("auto", True),
    ],
)
def test_which_devices_need_a_child(devices, several):
    assert processes.needs_several_processes(devices) == several


def test_the_command_is_not_for_torchrun(toy, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert toy.run("method=sft") == 2 and "without torchrun" in toy.err


def test_the_childs_result_comes_back(ddp, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")  # left over from something else
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert ddp.run("method=sft hardware=cpu_ddp") == 0
    record = ddp.record("sft")
    assert record["metrics"] == {"test/accuracy": 0.25} and record["status"] == "done"
    assert seen(ddp)["env"] == {"LOCAL_RANK": None, "MASTER_PORT": None} and seen(ddp)["devices"] == 2
    assert seen(ddp)["key"] == record["key"] and seen(ddp)["pid"] != os.getpid()


def test_the_child_knows_its_needs(ddp):
    assert ddp.run("experiments=quickstart/dpo") == 0
    assert ddp.run("experiments=quickstart/dpo hardware=cpu_ddp seed=3") == 0
    found = json.loads(next((ddp.root / "runs").glob("quickstart-dpo-*/seen.json")).read_text())
    assert found["needs"]["sft"][0].startswith("runs/quickstart-sft-")


def test_the_childs_failure_is_the_runs(ddp):
    (ddp.root / "said.json").write_text('{"fail": true}')
    assert ddp.run("method=sft hardware=cpu_ddp") == 1
    assert ddp.record("sft")["error"] == "ValueError: rank 0 says no"
    (ddp.root / "said.json").write_text('{"die": true}')
    assert ddp.run("method=sft hardware=cpu_ddp") == 1
    assert "ended with exit code 9 and left no result" in ddp.record("sft")["error"]


def test_another_rank_works_and_leaves_no_result(ddp, monkeypatch):
    from alignlab.app.building import build
    from tests.app import toywork

    assert ddp.run("method=sft") == 0
    folder = ddp.folder("sft")
    (folder / processes.RESULT).unlink(missing_ok=True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(build, "work_of", lambda kind: toywork.train)
    before = (folder / "run.json").read_text()
    assert child.main([str(folder)]) == 0
    assert not (folder / processes.RESULT).exists() and (folder / "run.json").read_text() == before


def test_a_stopped_parent_ends_its_child(ddp):
    (ddp.root / "said.json").write_text('{"seconds": 30}')
    pid = ddp.fork("method=sft hardware=cpu_ddp")
    worker = _pid_of_worker(ddp)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143
    assert not _alive(worker) and runfolder.state(ddp.folder("sft")) == "interrupted"


def test_the_child_of_a_killed_parent_does_not_go_on(ddp):
    (ddp.root / "said.json").write_text('{"seconds": 30}')
    pid = ddp.fork("method=sft hardware=cpu_ddp")
    worker = _pid_of_worker(ddp)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    end = time.monotonic() + 5
    while _alive(worker) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _alive(worker)


def _pid_of_worker(toy) -> int:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for path in Path(toy.root / "runs").glob("*/seen.json"):
            if path.read_text():
                return json.loads(path.read_text())["pid"]
        time.sleep(0.05)
    raise AssertionError("the child never started")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
