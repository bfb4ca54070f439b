"""The command: verbs, flags, what is printed, and what is not imported."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from alignlab.app.cli import main
from alignlab.app.configs import paths

DPO = "experiments=quickstart/dpo"


def test_plan_says_what_would_be_built_and_builds_nothing(toy):
    assert toy.run(f"plan -m {DPO} method.loss.beta=0.1,0.2 seed=0") == 0
    lines = toy.out.splitlines()
    assert [line.split()[0:2] for line in lines[:3]] == [["to", "build"]] * 3
    assert "needs sft " in lines[1] and lines[1].endswith(
        "alignlab experiments=quickstart/dpo method.loss.beta=0.1 seed=0"
    )
    assert lines[-1] == "3 targets: 1 SFT and 2 DPO to build"
    assert not (toy.root / "runs").exists()
    toy.run(f"{DPO} method.loss.beta=0.2")
    toy.run(f"plan -m {DPO} method.loss.beta=0.1,0.2 seed=0")
    assert toy.out.splitlines()[-1] == "3 targets: 2 done, 1 DPO to build"


def test_the_commands_of_a_plan_are_quoted_for_the_shell(toy):
    assert main(["plan", "name='a b'"]) == 0


def test_zero_jobs_are_an_error(toy):
    assert toy.run("-m experiments=glob(nothing/*)") == 2
    assert "0 runs" in toy.err


def test_ls_lists_runs(toy):
    assert toy.run("ls") == 0 and toy.out == "no runs in runs\n"
    toy.control(fail=["quickstart-dpo"])
    toy.run(DPO)
    assert toy.run("ls") == 0
    rows = [line.split() for line in toy.out.splitlines()]
    assert [row[0] for row in rows] == ["STATE", "done", "failed"]
    assert rows[1][2] == "sft" and "test/accuracy 0.5" in toy.out and "ValueError: loss is nan" in toy.out


def test_describe_shows_the_resolved_config_with_its_needs(toy):
    assert toy.run(f"describe {DPO} seed=3") == 0
    shown = yaml.safe_load(toy.out)
    assert shown["seed"] == 3 and shown["model"]["max_length"] == 16
    assert shown["model"]["init_from"] == shown["needs"]["sft"]["path"]
    assert shown["needs"]["sft"]["path"].startswith("runs/quickstart-sft-")
    toy.run(DPO)
    assert toy.run(f"describe {toy.folder('quickstart-dpo')}") == 0
    assert toy.out.splitlines()[0].split(": ")[1].startswith("done")


def test_eval_evaluates_a_run_and_never_trains_it_again(toy):
    toy.run("experiments=quickstart/ppo seed=1")
    folder = toy.folder("quickstart-ppo")
    assert toy.run(f"eval {folder} evaluation.num_prompts=5") == 0
    assert "test/score 1.5" in toy.out and toy.folders().count("quickstart-ppo.evaluate") == 1
    toy.edit("toylab/losses.py", "self.beta = beta", "self.beta = 2 * beta")
    assert toy.run(f"eval {folder} evaluation.num_prompts=5") == 0 and "already there" in toy.out
    assert toy.run(f"eval {folder} evaluation.num_prompts=6") == 0
    assert toy.folders().count("quickstart-ppo") == 1 and toy.folders().count("quickstart-ppo.evaluate") == 2
    assert toy.run("eval nowhere") == 2 and toy.run("eval") == 2


def test_report_prints_the_report(toy):
    toy.run("experiments=quickstart")
    [folder] = [p for p in (toy.root / "runs").glob("quickstart-*") if (p / "report").exists()]
    assert toy.run(f"report {folder}") == 0 and toy.out == "# the report\n"
    assert toy.run(f"report {toy.folder('quickstart-ppo')}") == 2


def test_an_unknown_verb_gets_the_nearest(toy):
    assert toy.run("plann") == 2 and "did you mean plan?" in toy.err
    assert toy.run("xyz") == 2 and "the verbs are" in toy.err


def test_hydras_flags_work(toy):
    assert toy.run("--cfg job method=dpo") == 0 and yaml.safe_load(toy.out)["method"]["loss"]["beta"] == 0.1
    assert toy.run("--nonsense") == 2
    assert toy.run("plan method=sft -m seed=0,1") == 0 and "2 SFT to build" in toy.out


def test_help_names_verbs_and_experiments(toy):
    assert toy.run("--help") == 0
    for word in ("plan [...]", "experiments: quickstart, quickstart/dpo", "method/loss: dpo, ipo", "-m, --multirun"):
        assert word in toy.out


def test_tab_completes_settings_options_and_verbs(toy, monkeypatch):
    def complete(line):
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        assert toy.run("-sc query=bash") == 0
        return toy.out.split()

    assert "experiments=quickstart/dpo" in complete("alignlab experiments=quickstart/d")
    assert complete("alignlab plan method/loss=i") == ["method/loss=ipo"]
    assert "plan" in complete("alignlab pl")
    assert "method.lr=" in complete("alignlab plan method.l")


def test_argv_is_left_alone(toy, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["alignlab", "method=sft"])
    assert main() == 0
    assert sys.argv == ["alignlab", "method=sft"] and toy.record("sft")["argv"] == sys.argv


def test_a_users_folder_brings_groups_experiments_and_code(toy, tmp_path):
    own = tmp_path / "project"
    (own / "conf" / "method" / "loss").mkdir(parents=True)
    (own / "experiments" / "paper").mkdir(parents=True)
    (own / "mylab").mkdir()
    (own / "mylab" / "__init__.py").touch()
    (own / "mylab" / "losses.py").write_text(
        "from toylab.losses import PreferenceLoss\n"
        "class Mine(PreferenceLoss):\n    def __init__(self, beta: float, tau: float): ...\n"
    )
    (own / "conf" / "method" / "loss" / "mine.yaml").write_text("_target_: mylab.losses.Mine\nbeta: 0.1\ntau: 1.0\n")
    (own / "experiments" / "paper" / "one.yaml").write_text(
        "# @package _global_\ndefaults: [{override /method: dpo}, {override /method/loss: mine}]\n"
    )
    flag = f"--config-dir {own / 'conf'}"
    assert toy.run(f"experiments=paper/one {flag} method.loss.tau=2.0") == 0, toy.err
    before = toy.record("paper-one")["key"]
    assert toy.run(f"plan experiments=paper/one {flag} method.loss.tua=2.0") == 2 and "did you mean tau?" in toy.err
    with open(own / "mylab" / "losses.py", "a") as file:
        file.write("\nX = 1\n")
    assert toy.run(f"plan {flag} experiments=paper/one method.loss.tau=2.0") == 0
    assert "to build" in toy.out and before not in toy.out
    assert toy.run("plan experiments=paper/one") == 2  # without the folder there is no such experiment


def test_a_users_file_that_would_never_be_read_is_refused(toy, tmp_path):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "tiny.yaml").write_text("hidden: 1\n")
    assert toy.run(f"plan --config-dir {tmp_path / 'conf'}") == 2 and "would never be read" in toy.err
    assert toy.run("plan --config-dir nowhere") == 2 and "no such folder" in toy.err


def test_a_checkout_has_its_configs_at_the_top():
    conf, experiments = paths.shipped()
    assert (conf / "config.yaml").is_file() and experiments == conf.parent / "experiments"


def test_the_command_imports_no_heavy_library_and_starts_fast():
    code = (
        "import sys, time\nstarted = time.process_time()\nimport alignlab.app.cli as cli\n"
        "cli.main(['--help'])\ncli.main(['ls', 'nowhere'])\n"
        "heavy = {'torch', 'transformers', 'lightning', 'peft', 'datasets', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\nassert time.process_time() - started < 3, time.process_time() - started\n"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_plan_imports_no_torch(toy):
    pid = os.fork()
    if pid == 0:
        for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
            del sys.modules[name]
        code = main(["plan", "experiments=quickstart"])
        os._exit(code if "torch" not in sys.modules else 77)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_doctor_says_what_is_there(toy, monkeypatch):
    from alignlab.app.commands import verbs

    monkeypatch.setattr(verbs, "_devices", lambda: ["cpu"])
    assert toy.run("doctor") == 0
    for word in ("python", "torch", "devices", "experiments", "writable"):
        assert word in toy.out


@pytest.mark.parametrize("line", ["method=sft", "-m method=sft seed=0,1"])
def test_a_second_start_of_the_same_thing_is_quick(toy, line):
    toy.run(line)
    started = time.process_time()
    assert toy.run(line) == 0 and time.process_time() - started < 3  # seconds of CPU; a training takes more


def test_nothing_is_left_in_the_working_directory(toy):
    before = {p.name for p in Path.cwd().iterdir()}
    toy.run("-m method=sft seed=0,1")
    assert {p.name for p in Path.cwd().iterdir()} - before == {"runs"}


def test_a_job_travels_to_another_process(toy):
    import pickle

    from alignlab.app.commands.launch import Job

    job = Job(paths.roots(), "launch", toy.planner())
    assert pickle.loads(pickle.dumps(job)) == Job(paths.roots(), "launch", None)
