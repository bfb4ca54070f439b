"""The verbs: plan, describe, check, ls, eval, chat, export, report, doctor.

Each takes the words after it and gives an exit code.
"""

import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from alignlab.app.commands.chat import chat_verb
from alignlab.app.commands.check import check_verb
from alignlab.app.commands.export import export_verb
from alignlab.app.commands.launch import command
from alignlab.app.commands.show import columns, describe_time, plan_text, runs_text
from alignlab.app.configs.compose import parse_args
from alignlab.app.configs.content import saved
from alignlab.app.configs.paths import roots
from alignlab.app.configs.spell import spell
from alignlab.app.planning.asked import ask
from alignlab.app.planning.targets import Planner, plan
from alignlab.app.runs import record, runfolder
from alignlab.errors import ConfigError


def plan_verb(words: list[str]) -> int:
    """What would be built and what is there, parents first; nothing is run and nothing is written."""
    asked = ask(parse_args(words))
    print(plan_text(plan(asked.targets)))
    return 0


def describe(words: list[str]) -> int:
    """The composed config of each target asked for, resolved, with the folders of its needs; or a run folder's own."""
    from omegaconf import OmegaConf

    folders = [Path(word) for word in words if (Path(word) / runfolder.RUN_JSON).is_file()]
    if folders:
        for folder in folders:
            print(f"# {folder}: {runfolder.state(folder)}, {describe_time(folder)}")
            print((folder / "config.yaml").read_text(), end="")
        return 0
    for target in ask(parse_args(words)).targets:
        print(f"# {target.folder}: {target.state}")
        print(OmegaConf.to_yaml(OmegaConf.create(saved(target.filled(paths=True)))), end="")
    return 0


def ls(words: list[str]) -> int:
    """The runs below a folder (./runs, or paths.runs=...), the latest last."""
    for word in words or ["runs"]:
        print(runs_text(Path(word.removeprefix("paths.runs=")).expanduser()))
    return 0


def eval_verb(words: list[str]) -> int:
    """Evaluate run folders: the command of each with task=evaluate, and the settings given after them.

    A run whose config, data or code has changed since is evaluated as it is, never trained again for it.
    """
    flags = (
        words.index(next((w for w in words if w.startswith("-")), ""))
        if any(w.startswith("-") for w in words)
        else len(words)
    )
    folders = [Path(word) for word in words[:flags] if "=" not in word]
    settings = [word for word in words[:flags] if "=" in word]
    if not folders:
        raise ConfigError("eval: which run? alignlab eval runs/<name>-<key> ...")
    asked = [_evaluation(folder, settings, words[flags:]) for folder in folders]
    return max(command(one) for one in asked)


def report(words: list[str]) -> int:
    """Print the report of a run."""
    if not words:
        raise ConfigError("report: of which run? alignlab report runs/<name>-<key>")
    for word in words:
        page = Path(word) / "report" / "report.md"
        if not page.is_file():
            raise ConfigError(
                f"{word}: there is no {page}; a report is written by a table: alignlab experiments=quickstart"
            )
        print(page.read_text(), end="")
    return 0


def doctor(words: list[str]) -> int:
    """Versions, devices, folders: what to look at, and to send along, when something is odd."""
    args = parse_args(words)
    found = roots(args.config_dir)
    runs = Path("runs")
    writable = os.access(runs if runs.exists() else Path.cwd(), os.W_OK)
    rows = [[name, version] for name, version in record.versions().items()]
    rows += [["platform", platform.platform()], ["executable", sys.executable], ["cores", str(os.cpu_count())]]
    rows += [["devices", ", ".join(_devices())], ["git", str(record.git_sha())]]
    rows += [["conf", str(found.conf)], ["experiments", ", ".join(map(str, found.experiments))]]
    rows += [
        ["config-dir", str(found.user or "-")],
        ["runs", f"{runs.resolve()} ({'writable' if writable else 'NOT WRITABLE'})"],
    ]
    missing = [name for name in ("tensorboard", "wandb") if importlib.util.find_spec(name) is None]
    rows += [["extras missing", ", ".join(missing) or "none"]]
    print(columns(rows))
    return 0 if writable else 3


def _evaluation(folder: Path, settings: list[str], flags: list[str]) -> list[str]:
    found = runfolder.read(folder)
    if runfolder.state(folder) not in ("done", "stale"):
        raise ConfigError(f"{folder}: there is no finished run here ({runfolder.state(folder)})")
    if found.get("task") != "train":
        raise ConfigError(f"{folder}: this is a {found.get('task')}, and only a training can be evaluated")
    asked = [text for text in found["overrides"] if text != "fresh=true"] + settings + ["task=evaluate"]
    planner = Planner(roots(parse_args(flags).config_dir))
    [trained] = planner.target(asked).needs["of"]
    if trained.folder.resolve() != folder.resolve():
        asked.append(f"task.run={spell(str(folder))}")
    return asked + flags


def _devices() -> list[str]:
    import torch

    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ["cpu", *cuda]


VERBS: dict[str, Callable[[list[str]], int]] = {
    "plan": plan_verb,
    "describe": describe,
    "check": check_verb,
    "ls": ls,
    "eval": eval_verb,
    "chat": chat_verb,
    "export": export_verb,
    "report": report,
    "doctor": doctor,
}
