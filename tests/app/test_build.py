"""Building: the same command leads to the same folder, whatever happened in between."""

import json
import os
import signal
import time

import pytest

from alignlab.app.runs import runfolder

DPO = "experiments=quickstart/dpo"


def test_needs_are_built_first_and_the_folder_tells_all(toy):
    assert toy.run(f"{DPO} method.loss.beta=0.3 hardware.num_workers=1") == 0
    folder = toy.folder("quickstart-dpo")
    record, parent = toy.record("quickstart-dpo"), toy.record("quickstart-sft")
    assert (
        record["status"] == "done" and record["task"] == "train" and record["method"] == "dpo" and record["seed"] == 0
    )
    assert record["metrics"] == {"train/loss": 1.0, "test/accuracy": 0.5, "tokens": 10} and record["tokens"] == 10
    assert record["overrides"] == [DPO, "method.loss.beta=0.3", "hardware.num_workers=1"]
    assert record["parents"] == {
        "sft": [{"folder": f"runs/{toy.folder('quickstart-sft').name}", "key": parent["key"], "stamp": parent["stamp"]}]
    }
    assert {"argv", "git", "versions", "host", "wall_seconds", "peak_memory_mb", "started", "ended"} <= set(record)
    assert record["versions"]["torch"]
    assert (folder / "overrides.txt").read_text().split() == record["overrides"]
    assert f"init_from: runs/{toy.folder('quickstart-sft').name}" in (folder / "config.yaml").read_text()
    assert "building" in (folder / "train.log").read_text()
    assert toy.out.splitlines() == [f"runs/{folder.name}", "  test/accuracy 0.5  train/loss 1  tokens 10"]


def test_what_is_done_is_returned_at_once(toy):
    toy.run(DPO)
    before = [toy.record(name)["stamp"] for name in ("quickstart-sft", "quickstart-dpo")]
    assert toy.run(DPO) == 0
    assert toy.out.startswith("already there: runs/quickstart-dpo-") and toy.err == ""
    assert [toy.record(name)["stamp"] for name in ("quickstart-sft", "quickstart-dpo")] == before


def test_a_shared_need_is_built_once(toy):
    assert toy.run(f"-m {DPO} method.loss.beta=0.05,0.1 adapter.rank=4,8") == 0
    assert toy.folders().count("quickstart-sft") == 1 and toy.folders().count("quickstart-dpo") == 4
    assert "4 jobs: 4 done" in toy.out


def test_the_whole_quickstart_runs_bare_and_again(toy):
    assert toy.run("") == 0
    assert toy.folders().count("quickstart-dpo.evaluate") == 8 and "rows/dpo 8  rows/ppo 1" in toy.out
    assert "report: runs/quickstart-" in toy.out
    started = time.process_time()
    assert toy.run("") == 0 and "already there" in toy.out
    assert time.process_time() - started < 10  # building it takes half a minute


def test_a_failure_is_recorded_and_tried_again_by_the_next_command_only(toy):
    toy.control(fail=["quickstart-sft"])
    assert toy.run(f"-m {DPO} seed=0 adapter.rank=4,8") == 1
    failed = toy.record("quickstart-sft")
    assert failed["status"] == "failed" and failed["error"] == "ValueError: loss is nan at step 1"
    assert "Traceback" in (toy.folder("quickstart-sft") / "train.log").read_text()
    assert (toy.folder("quickstart-sft") / "steps.log").read_text().count("from") == 1  # not once for each job
    assert toy.err.count("not built, for it needs quickstart-sft") == 2 and "Traceback" not in toy.err
    toy.control()
    assert toy.run(f"-m {DPO} seed=0 adapter.rank=4,8") == 0
    assert (toy.folder("quickstart-sft") / "steps.log").read_text() == "from 0\nfrom 1\n"  # it went on


def test_a_failing_job_does_not_stop_the_others(toy):
    toy.control(fail_seeds=[1])
    assert toy.run("-m seed=0,1,2 data.size=1,2") == 1
    assert "6 jobs: 4 done, 2 not" in toy.out
    assert toy.out.count("ValueError: loss is nan") == 2
    states = [runfolder.state(p) for p in (toy.root / "runs").glob("*-*")]
    assert (states.count("done"), states.count("failed")) == (4, 2)


def test_missing_hardware_ends_with_3(toy):
    toy.control(hardware=True)
    assert toy.run("method=sft") == 3
    assert "hardware=gpu: no device here" in toy.err and toy.record("sft")["status"] == "failed"
    assert toy.run(DPO) == 3 and "not built, for it needs" in toy.err


def test_fresh_builds_the_named_target_anew_and_drops_the_old_one_when_done(toy):
    toy.run(DPO)
    before = {name: toy.record(name)["stamp"] for name in ("quickstart-sft", "quickstart-dpo")}
    assert toy.run(f"{DPO} fresh=true") == 0
    assert toy.record("quickstart-sft")["stamp"] == before["quickstart-sft"]
    assert toy.record("quickstart-dpo")["stamp"] != before["quickstart-dpo"]
    assert not list((toy.root / "runs").glob("*.old-*"))


def test_a_fresh_build_that_fails_keeps_the_old_folder(toy):
    toy.run("method=sft")
    stamp = toy.record("sft")["stamp"]
    toy.control(fail=["sft"])
    assert toy.run("method=sft fresh=true") == 1
    [old] = (toy.root / "runs").glob("*.old-1")
    assert runfolder.read(old)["stamp"] == stamp
    toy.control()
    assert toy.run("method=sft fresh=true") == 0  # goes on with the fresh build
    assert (toy.folder("sft") / "steps.log").read_text() == "from 0\nfrom 1\n" and not old.exists()


def test_children_notice_a_parent_that_was_built_anew(toy):
    toy.run(DPO)
    stamp = toy.record("quickstart-dpo")["stamp"]
    toy.run("experiments=quickstart/sft fresh=true")
    toy.run(f"plan {DPO}")
    assert [line.split("  ")[0] for line in toy.out.splitlines()] == [
        "done",
        "to build",
        "2 targets: 1 done, 1 DPO to build",
    ]
    assert toy.run(DPO) == 0
    assert toy.record("quickstart-dpo")["stamp"] != stamp
    assert toy.run(DPO) == 0 and "already there" in toy.out


def test_a_parent_that_is_gone_does_not_matter_to_a_child_that_is_done(toy):
    import shutil

    toy.run(DPO)
    shutil.rmtree(toy.folder("quickstart-sft"))
    assert toy.run(DPO) == 0 and "already there" in toy.out


def test_of_several_builders_one_builds_and_the_others_wait(toy):
    toy.control(seconds=0.5)
    pids = [toy.fork(f"{DPO} adapter.rank={rank}") for rank in (4, 4, 8)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
    assert toy.folders().count("quickstart-dpo") == 2
    for folder in (toy.root / "runs").glob("*-*"):
        assert (folder / "steps.log").read_text() == "from 0\n"


def test_a_killed_build_goes_on_where_it_stopped(toy):
    toy.control(seconds=2)
    pid = toy.fork("method=sft")
    _wait_for(lambda: list((toy.root / "runs").glob("*/last.json")))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert runfolder.state(toy.folder("sft")) == "interrupted"
    toy.run("plan method=sft")
    assert toy.out.startswith("interrupted")
    toy.control()
    assert toy.run("method=sft") == 0
    start = int((toy.folder("sft") / "steps.log").read_text().splitlines()[1].split()[1])
    assert 1 <= start < 5 and toy.record("sft")["status"] == "done" and "going on" in toy.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_sweep_ends_with_the_signals_code_and_tells_what_did_not_run(toy, number, code):
    toy.control(seconds=1)
    pid = toy.fork("-m method=sft seed=0,1,2")
    _wait_for(lambda: len(list((toy.root / "runs").glob("*/last.json"))) == 2)  # the second job is under way
    os.kill(pid, number)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    states = sorted(runfolder.state(folder) for folder in (toy.root / "runs").glob("*-*"))
    assert states == ["done", "interrupted"]


def test_a_stopped_sweep_reports_each_job(toy, monkeypatch):
    from alignlab.app.building import build
    from tests.app import toywork

    def train(cfg, folder, target):
        if cfg.seed == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        return toywork.train(cfg, folder, target)

    monkeypatch.setattr(build, "work_of", lambda kind: train)
    assert toy.run("-m method=sft seed=0,1,2") == 143
    words = [line.split("  ")[0] for line in toy.out.splitlines()[1:4]]
    assert words == ["done", "interrupted", "not run"]


def test_a_library_that_turns_ctrl_c_into_an_exit_is_seen_through(toy, monkeypatch):
    """Lightning answers KeyboardInterrupt with sys.exit(1)."""
    from alignlab.app.building import build

    def train(cfg, folder, target):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise SystemExit(1) from None

    monkeypatch.setattr(build, "work_of", lambda kind: train)
    assert toy.run("method=sft") == 130
    assert toy.record("sft")["status"] == "running"
    monkeypatch.setattr(build, "work_of", lambda kind: lambda *_: exit(4))
    assert toy.run("method=sft") == 1 and toy.record("sft")["status"] == "failed"


def test_run_json_is_never_half_written(toy, monkeypatch):
    toy.run("method=sft")
    folder = toy.folder("sft")
    before = (folder / "run.json").read_text()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        runfolder.write(folder, {"status": "running"})
    assert (folder / "run.json").read_text() == before


def test_secrets_from_the_environment_stay_out_of_the_folder(toy, monkeypatch):
    monkeypatch.setenv("TOY_SECRET", "hunter2")
    monkeypatch.setenv("TOY_SEED", "7")
    line = "data.template=${oc.env:TOY_SECRET} +data.train=x-${data.template} seed='${oc.decode:${oc.env:TOY_SEED}}'"
    assert toy.run(line) == 0
    assert toy.record("sft")["seed"] == 7
    for path in toy.folder("sft").iterdir():
        assert "hunter2" not in path.read_text()
    assert "template: ${oc.env:TOY_SECRET}" in (toy.folder("sft") / "config.yaml").read_text()


def test_other_library_versions_are_shown_not_keyed(toy):
    toy.run("method=sft")
    path = toy.folder("sft") / "run.json"
    record = json.loads(path.read_text())
    record["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    assert toy.run("plan method=sft") == 0
    assert toy.out.startswith("done") and "made with other versions: torch 1.0 -> " in toy.out


def test_a_stale_lock_file_stops_nobody(toy):
    target = toy.target("method=sft")
    runfolder.lock(toy.root / "runs", target.key)
    (toy.root / "runs" / ".locks" / target.key).touch()
    assert toy.run("method=sft") == 0


def _wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
