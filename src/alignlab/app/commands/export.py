"""`alignlab export RUN [--for TOOL] [--merge FOLDER]`: what others load, and the command to run them with.

    alignlab export RUN --merge FOLDER             full weights, an adapter folded in
    alignlab export RUN --for lm-eval              lm-evaluation-harness
    alignlab export RUN --for alpaca-eval          AlpacaEval, from the replies of RUN/eval, or fresh ones to --prompts
    alignlab export RUN --for reward-bench         RewardBench, of a reward model

Files go to RUN/export/<tool>/; the tools run in environments of their own.
"""

import argparse
from pathlib import Path

from alignlab.app.commands import bridges
from alignlab.app.commands.chat import Listed, asking_of, device_named, finished_training, read_settings, sampling_of
from alignlab.app.configs.paths import make_importable, roots
from alignlab.errors import ConfigError

TOOLS = {"lm-eval": "policy", "alpaca-eval": "policy", "reward-bench": "reward_model"}
_SAID = {"policy": "policy", "reward_model": "reward model"}


def export_verb(words: list[str]) -> int:
    """Write what was asked for and print the command that uses it."""
    args = _parser().parse_intermixed_args(words)
    if args.tool is None and args.merge is None:
        raise ConfigError(f"export: what for? --for {'|'.join(TOOLS)}, or --merge FOLDER")
    if args.prompts is not None and args.tool != "alpaca-eval":
        raise ConfigError("--prompts: only --for alpaca-eval answers prompts")
    if args.settings and args.prompts is None:
        raise ConfigError(f"{args.settings[0]}: settings say how --prompts are answered, and there are none")
    make_importable(roots(args.config_dir))
    folder: Path = args.run
    if args.tool == "alpaca-eval" and args.prompts is None and args.merge is None:
        _show(_alpaca_of_samples(folder))
        return 0
    run = finished_training(folder, "export")
    made = run.method.produces
    if args.tool is not None and made != TOOLS[args.tool]:
        raise ConfigError(
            f"{folder}: this run trained a {_SAID[made]}, and {args.tool} wants a {_SAID[TOOLS[args.tool]]}"
        )
    if args.merge is not None:
        print(bridges.save_merged(run, args.merge))
    if args.tool is not None:
        _show(_bridge(run, args))
    return 0


def _bridge(run: Listed, args: argparse.Namespace) -> bridges.Bridge:
    out = run.folder.resolve() / "export" / args.tool
    if args.tool == "lm-eval":
        return bridges.lm_eval(run, out)
    if args.tool == "reward-bench":
        return bridges.reward_bench(run, out)
    return _alpaca_of_samples(run.folder) if args.prompts is None else _alpaca_fresh(run, args, out)


def _alpaca_of_samples(folder: Path) -> bridges.Bridge:
    """Of a training or an evaluation: whoever has eval/samples.jsonl."""
    from alignlab.evaluate.saving import load_samples

    answers = bridges.answers_of_samples(load_samples(folder))
    return bridges.alpaca_eval(folder.resolve().name, answers, folder.resolve() / "export" / "alpaca-eval")


def _alpaca_fresh(run: Listed, args: argparse.Namespace, out: Path) -> bridges.Bridge:
    from alignlab.data.reading import read_records
    from alignlab.errors import DataError
    from alignlab.models.saving import load_policy

    settings = read_settings(args.settings)
    sampling, asking = sampling_of(run, settings), asking_of(run)
    records = []
    for where, record in read_records(args.prompts):
        if isinstance(record, DataError):
            raise DataError(f"{where}: {record}")
        records.append(record)
    policy = load_policy(run.folder).to(device_named(settings.device))
    answers = bridges.fresh_answers(policy, asking, records, sampling, seed=settings.seed)
    return bridges.alpaca_eval(run.folder.resolve().name, answers, out)


def _show(bridge: bridges.Bridge) -> None:
    print(f"{bridge.folder}\n")
    print(f"  {bridge.command}\n")
    for note in bridge.notes:
        print(f"- {note}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alignlab export",
        description="Write a finished run as other tools read it, and print the command to run them with.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("settings", nargs="*", metavar="setting=value", help="with --prompts: as for alignlab chat")
    parser.add_argument("--for", dest="tool", choices=list(TOOLS), help="whose input files to write")
    parser.add_argument("--merge", type=Path, metavar="FOLDER", help="write full weights to this new folder")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="answer these (json, jsonl, csv with a field instruction)"
    )
    parser.add_argument("--config-dir", metavar="D", help="your own folder, where the run was made with one")
    return parser
