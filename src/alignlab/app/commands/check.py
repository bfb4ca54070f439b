"""`alignlab check`: hold the losses of a config to their contracts. Nothing is built, no run folder is made.

It takes the overrides of a run. Where only a loss is named, the method is the one that takes such a loss.
"""

import textwrap
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from alignlab.app.commands.show import columns
from alignlab.app.configs.compose import parse_args
from alignlab.app.configs.made import make
from alignlab.app.configs.paths import roots
from alignlab.app.planning.asked import checked
from alignlab.app.planning.targets import Planner, Target
from alignlab.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from alignlab.contracts.catalogue import Outcome

_LOSS_ALONE = ("method/loss", "method.loss")
_WIDTH = 110


class Named(NamedTuple):
    """A loss with its path in the config, and as one would write it."""

    at: str
    described: str
    loss: "nn.Module"


def check_verb(words: list[str]) -> int:
    """Each contract of each loss: passed, or FAILED with the number and the usual cause. Exit code 1 if one failed."""
    args = parse_args(words)
    planner = Planner(roots(args.config_dir))
    broken = 0
    for target in asked_targets(planner, args):
        if args.multirun:
            print(f"alignlab check {' '.join(target.overrides)}")
        for named in losses_of(target):
            broken += _report(named)
    return int(broken > 0)


def asked_targets(planner: Planner, args: Namespace) -> list[Target]:
    """One target per job, checked as for a run. ConfigError where no loss is asked for."""
    overrides = [text for text in args.overrides if not text.lstrip("+~").startswith(("hydra.", "hydra/"))]
    if not overrides:
        raise ConfigError("check: which loss? alignlab check method/loss=ipo, or method=reward, or any experiment")
    jobs = planner.expand(overrides) if args.multirun else [tuple(overrides)]
    return checked(planner, [with_method(planner, job) for job in jobs])


def with_method(planner: Planner, job: Sequence[str]) -> tuple[str, ...]:
    """`job` with method=dpo in front where it names a loss and no method; method=kto if that is a loss of replies."""
    keys = [text.partition("=")[0].lstrip("+~") for text in job]
    if {"method", "experiments"} & set(keys) or not any(key.startswith(_LOSS_ALONE) for key in keys):
        return tuple(job)
    guess = ("method=dpo", *job)
    [target] = checked(planner, [guess])  # a `_target_` is imported only after the preflight has allowed it
    from hydra.utils import get_class

    from alignlab.losses.unpaired import UnpairedLoss

    found = get_class(target.cfg.method.loss._target_)
    return ("method=kto", *job) if issubclass(found, UnpairedLoss) else guess


def losses_of(target: Target) -> list[Named]:
    """The losses of a target's method. ConfigError where there are none."""
    cfg = target.filled(paths=True)
    method = (cfg.method if target.kind != "table" else None) or {}
    names = [str(name) for name in method if str(name) == "loss" or str(name).endswith("_loss")]
    nodes = {f"method.{name}": method[name] for name in names if isinstance(method[name], DictConfig)}
    if not nodes:
        raise ConfigError(f"check: {' '.join(target.overrides)} has no loss; a training has: alignlab check method=dpo")
    return [Named(at, _described(node), make(node, at)) for at, node in nodes.items()]


def _described(node: Any) -> str:
    """`IPOLoss(beta=0.1)`, or the value itself where it is none of these."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return str(node)
    settings = (f"{name}={_described(node[name])}" for name in node if not str(name).startswith("_"))
    return f"{str(node._target_).rpartition('.')[2]}({', '.join(settings)})"


def _report(named: Named) -> int:
    """Print what became of each contract; the number of broken ones."""
    from alignlab.contracts.catalogue import check

    outcomes = check(named.loss)
    broken = [outcome for outcome in outcomes if outcome.violations]
    print(f"{named.at}: {named.described}")
    for line in columns([_row(named.loss, outcome) for outcome in outcomes if outcome not in broken]).splitlines():
        print(line)
    told: dict[str, list[str]] = {}  # an exception in the loss breaks every contract: it is told once
    for outcome in broken:
        told.setdefault(_told(outcome), []).append(f"  FAILED  {_label(named.loss, outcome)}: {outcome.promise}")
    for why, heads in told.items():
        print("\n".join([*heads, why]))
    kept = len(outcomes) - len(broken)
    print(f"{len(outcomes)} contracts: {kept} kept" + (f", {len(broken)} BROKEN" if broken else ""))
    return len(broken)


def _row(loss: "nn.Module", outcome: "Outcome") -> list[str]:
    found = outcome.closest
    number = "" if found is None else f"{found.amount:.2g} {'>' if found.must_differ else '<='} {found.allowed:.0e}"
    return ["  passed", _label(loss, outcome), number, outcome.remark or outcome.promise]


def _told(outcome: "Outcome") -> str:
    """What was measured of a broken contract, and the usual causes, indented and wrapped."""
    lines = [f"{v.what} {v.amount:.3g}; allowed is {v.allowed}" for v in outcome.violations]
    lines += [f"usual cause: {cause}" for cause in dict.fromkeys(v.usual_cause for v in outcome.violations)]
    return "\n".join(textwrap.fill(line, _WIDTH, initial_indent=" " * 10, subsequent_indent=" " * 12) for line in lines)


def _label(loss: "nn.Module", outcome: "Outcome") -> str:
    """The contract's name; of a declaration, with what is declared."""
    if not hasattr(loss, outcome.contract):
        return outcome.contract
    said = getattr(loss, outcome.contract)
    if callable(said):  # per_pair
        return outcome.contract
    return f"{outcome.contract} = {f'{said:.6g}' if isinstance(said, float) else said}"
