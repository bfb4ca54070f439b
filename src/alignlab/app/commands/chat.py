"""`alignlab chat RUN [RUN2] [setting=value ...] [--flag ...]`: talk to one run, or to two that answer the same.

Everything that can be told from the words and the run folders is checked before weights are loaded.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignlab.app.commands.chat_lines import COMMANDS, as_message, is_command
from alignlab.app.configs.nearest import hint
from alignlab.app.configs.paths import make_importable, roots
from alignlab.app.runs import runfolder
from alignlab.errors import AlignlabError, ConfigError

if TYPE_CHECKING:
    from alignlab.app.commands.console import Session
    from alignlab.evaluate.policy import Reference
    from alignlab.evaluate.speaker import Asking
    from alignlab.models.policy import Policy

_EPILOG = f"""\
settings (setting=value):
  temperature=1.0      of the samples; 1 is the policy itself
  top_k=0, top_p=1.0   truncate the distribution; 0 and 1 are off
  greedy=false         the most likely token each time
  max_new_tokens=N     longest reply, in tokens; else what the run was trained with (data.max_new_tokens)
  seed=0               the same seed and messages give the same replies
  device=auto          cpu or cuda; auto: cuda where there is one

in the chat (and as a --prompt):
{COMMANDS}

After each reply: its length, the reward (with --reward), and in nats, at the sampling temperature, the KL to what the
run was trained from (log pi - log pi_ref of this one reply) and with two runs the gap (its log-prob less the other's).
"""


@dataclass(frozen=True)
class Settings:
    """What may be typed as setting=value."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    max_new_tokens: int | None = None
    seed: int = 0
    device: str = "auto"


class Listed(NamedTuple):
    """A finished training: its folder, its config, its method's class."""

    folder: Path
    trained: Any
    method: Any


def chat_verb(words: list[str]) -> int:
    """Talk to a run, or give it `--prompt`s; two runs answer side by side."""
    args = _parser().parse_intermixed_args(words)
    folders = [Path(word) for word in args.words if "=" not in word]
    settings = read_settings([word for word in args.words if "=" in word])
    if not 1 <= len(folders) <= 2:
        found = f"{len(folders)} runs" if folders else "which run?"
        raise ConfigError(f"chat: {found}; alignlab chat runs/<name>-<key>, or two of them side by side")
    make_importable(roots(args.config_dir))
    session = _session(args, folders, settings)
    return session.run(args.prompt)


def read_settings(words: Sequence[str]) -> Settings:
    """`setting=value` words as settings. ConfigError naming every one that does not fit."""
    kinds = {field.name: field for field in fields(Settings)}
    values: dict[str, Any] = {}
    faults = []
    for word in words:
        name, _, text = word.partition("=")
        if name not in kinds:
            faults.append(f"chat: {name}: there is no such setting{hint(name, kinds)}")
            continue
        try:
            values[name] = _value(name, text)
        except ValueError:
            faults.append(f"chat: {word}: expected {_EXPECTED[name]}")
    if faults:
        raise ConfigError("\n".join(faults))
    return Settings(**values)


_EXPECTED = {
    **dict.fromkeys(("temperature", "top_p"), "a number"),
    **dict.fromkeys(("top_k", "max_new_tokens", "seed"), "a whole number"),
    "greedy": "true or false",
    "device": "auto, cpu or cuda",
}


def _value(name: str, text: str) -> Any:
    if _EXPECTED[name] == "a number":
        return float(text)
    if _EXPECTED[name] == "a whole number":
        return int(text)
    choices: dict[str, Any] = {"true": True, "false": False} if name == "greedy" else {d: d for d in _DEVICES}
    if text not in choices:
        raise ValueError(text)
    return choices[text]


_DEVICES = ("auto", "cpu", "cuda")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alignlab chat",
        description="Talk to a finished run, in its own prompt format; two runs answer the same messages.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="RUN [RUN2] [setting=value ...]", help="run folders and settings")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="say this and end; again: what comes next")
    parser.add_argument("--reward", type=Path, metavar="RUN", help="score each reply with this reward run")
    parser.add_argument("--filter", action="store_true", help="show a safe sentence in place of a spoilt reply")
    parser.add_argument("--json", action="store_true", help="a line of JSON per reply on stdout, and nothing else")
    parser.add_argument("--no-kl", action="store_true", help="no KL (which may need a second copy of the weights)")
    parser.add_argument(
        "--frame", metavar="TEXT", help="put each message, alone, in the place of {message}; \\n is a line break"
    )
    parser.add_argument("--config-dir", metavar="D", help="your own folder, where the run was made with one")
    return parser


def _session(args: argparse.Namespace, folders: Sequence[Path], settings: Settings) -> "Session":
    """Checks all, then loads all."""
    listed = [listed_run(folder, "policy") for folder in folders]
    scorer = None if args.reward is None else listed_run(args.reward, "reward_model").folder
    if args.frame is not None and "{message}" not in args.frame:
        raise ConfigError(f"--frame {args.frame!r}: it must hold {{message}}, for example 'Q: {{message}}\\nA:'")

    from alignlab.app.commands.console import Run, Session
    from alignlab.evaluate.quality import QualityFilter
    from alignlab.evaluate.speaker import Speaker, same_tokens
    from alignlab.models.saving import load_policy
    from alignlab.rollout.rewards.model import ModelReward

    device = device_named(settings.device)
    samplings = [sampling_of(run, settings) for run in listed]
    askings = [asking_of(run, args.frame) for run in listed]
    for sampling, asking in zip(samplings, askings, strict=True):
        for text in args.prompt or []:
            if not is_command(text):
                asking.prompt([{"role": "user", "content": as_message(text)}], sampling.max_new_tokens)
    runs = []
    for run, asking, sampling in zip(listed, askings, samplings, strict=True):
        policy = load_policy(run.folder).to(device)
        reference = None if args.no_kl else _reference(run, policy, device)
        speaker = Speaker(policy, asking=asking, reference=reference, seed=settings.seed)
        runs.append(Run(run.folder.resolve().name, speaker, sampling))
    comparable = len(runs) == 2 and same_tokens(runs[0].speaker.policy, runs[1].speaker.policy)
    reward = None if scorer is None else ModelReward(str(scorer)).to(device)
    quality = QualityFilter() if args.filter else None
    return Session(runs, reward=reward, compare=comparable, quality=quality, as_json=args.json)


def finished_training(folder: Path, verb: str) -> Listed:
    """A training that is done, for a verb that takes nothing else. ConfigError for any other folder."""
    from omegaconf import OmegaConf

    if (state := runfolder.state(folder)) not in ("done", "stale"):
        raise ConfigError(f"{folder}: there is no finished run here ({state})")
    task = runfolder.read(folder).get("task")
    if task != "train":
        raise ConfigError(f"{folder}: this is a {task}, which has no model; {verb} takes the training itself")
    trained = OmegaConf.load(folder / "config.yaml")
    return Listed(folder, trained, _imported(trained.method._target_))


def listed_run(folder: Path, produces: str) -> Listed:
    """A finished training that made what `produces` says, or an evaluation of one. ConfigError for any other folder."""
    run = finished_training(_trained(folder), "chat")
    folder, method = run.folder, run.method
    if method.produces != produces:
        kinds = {"policy": "policy", "reward_model": "reward model"}
        use = {
            "policy": "only a policy can answer; a reward model goes to --reward",
            "reward_model": "--reward takes one",
        }
        raise ConfigError(
            f"{folder}: this run trained a {kinds[method.produces]}, not a {kinds[produces]}; {use[produces]}"
        )
    return run


def _trained(folder: Path) -> Path:
    """The run that an evaluation measured, beside it if the runs have been moved; any other folder as it is."""
    record = runfolder.read(folder)
    of = record.get("parents", {}).get("of") or [] if record.get("task") == "evaluate" else []
    if not of:
        return folder
    found = Path(of[0]["folder"])
    beside = folder.resolve().parent / found.name
    return beside if beside.is_dir() else found


def asking_of(run: Listed, frame: str | None = None) -> "Asking":
    """How the run was asked in training: its format, its template, its tokenizer; `frame` in the format's place."""
    from alignlab.data.dialogue import framed
    from alignlab.data.tokenize import TextEncoder
    from alignlab.evaluate.speaker import Asking
    from alignlab.models.loading import read_config
    from alignlab.models.origins import locate
    from alignlab.models.tokenizers import load_tokenizer, with_padding

    data, located = run.trained.data, locate(str(run.folder))
    tokenizer = with_padding(load_tokenizer(located.files))
    config = read_config(located.base, "causal", dropout=0.0)
    return Asking(
        prompt_of=_format_of(data.source) if frame is None else partial(framed, frame.replace("\\n", "\n")),
        encoder=TextEncoder(tokenizer, template=data.template, append_eos=False, add_bos=data.add_bos),
        positions=getattr(config, "max_position_embeddings", None),
        max_prompt_length=data.max_prompt_length,
    )


def _format_of(source: Any) -> Any:
    """`prompt_of` of the source's format, or of the source itself where it makes its rows without one."""
    from alignlab.data.dialogue import prompt_maker

    node = source.get("format") or source
    return prompt_maker(_imported(node._target_), {str(name): node[name] for name in node})


def _imported(target: str) -> Any:
    """What a `_target_` of the run's config names."""
    import importlib

    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise ConfigError(
            f"{target}: not found, and the run was made with it; if it is your own, give the run's --config-dir"
        ) from None


def sampling_of(run: Listed, settings: Settings) -> Any:
    """How to sample: the settings, and the longest reply of the run where they say none."""
    from alignlab.evaluate.speaker import Sampling
    from alignlab.rollout.sampling import check_sampling

    check_sampling(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
    longest = run.trained.data.max_new_tokens if settings.max_new_tokens is None else settings.max_new_tokens
    if longest < 1:
        raise ConfigError(f"max_new_tokens={longest} must be at least 1")
    return Sampling(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        max_new_tokens=longest,
        greedy=settings.greedy,
    )


def _reference(run: Listed, policy: "Policy", device: str) -> "Reference | None":
    """What the run was trained from, for the KL; None where that is random weights, or gone."""
    import sys

    from hydra.utils import instantiate

    from alignlab.models.origins import locate
    from alignlab.models.reference import AdapterOff, FrozenCopy

    start = run.trained.model.init_from
    if not start:
        return None
    beside = run.folder.resolve().parent / Path(start).name  # runs that were moved together
    if not Path(start).exists() and beside.is_dir():
        start = str(beside)
    try:
        if policy.has_adapter and locate(start, run.trained.model.revision).adapter is None:
            return AdapterOff(policy)
        source = instantiate(run.trained.model, init_from=start)(seed=run.trained.seed)
        return FrozenCopy(source.load_policy()).to(device)
    except (AlignlabError, OSError) as error:
        print(f"{run.folder}: no KL, for what it was trained from cannot be loaded: {error}", file=sys.stderr)
        return None


def device_named(name: str) -> str:
    """ConfigError where there is none such."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch sees no CUDA device here; leave device=auto")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"
