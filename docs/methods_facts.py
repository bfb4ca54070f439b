"""What docs/methods.md says and nobody types: read from yaml files, docstrings, source code, a solved world, a csv."""

import ast
import csv
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class, instantiate
from jaxtyping import Float
from omegaconf import OmegaConf
from torch import Tensor

from alignlab.errors import DataError
from alignlab.losses.preference import PairLogprobs, PreferenceLoss
from alignlab.worlds.exact import ExactWorld, TokenCounts, population_optimum

REPO = Path(__file__).resolve().parents[1]

_COMPUTES = ("per_pair", "baseline", "per_reply", "slope", "collect", "compute", "advantages", "of_replies")
_LABELS = ("Loss:", "Gradient:", "Convention:", "alignlab ")  # what begins a remark of its own in a yaml's head
_RESTS = 1e-6  # of the scaled gradient; it is about 1e-8 where a search converges

Config = dict[str, Any]
Scores = Mapping[str, Mapping[str, str]]


# -- options ------------------------------------------------------------------------------------------------------
class Option(NamedTuple):
    """One yaml of conf/method or conf/method/loss."""

    group: str
    name: str
    remarks: list[str]  # the comments before the first key, the title first
    config: Config  # composed, interpolations as they are written

    @property
    def typed(self) -> str:
        """What chooses it."""
        return f"{self.group}={self.name}"

    @property
    def target(self) -> type:
        """The class behind it."""
        return get_class(self.config["_target_"])


@cache
def options(group: str) -> tuple[Option, ...]:
    """All options of a group, composed by Hydra as a run composes them."""
    GlobalHydra.instance().clear()  # what an earlier composition in this process may have left
    found = []
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        for path in sorted((REPO / "conf" / group).glob("*.yaml")):
            node = OmegaConf.select(compose(overrides=[f"+{group}={path.stem}"]), group.replace("/", "."))
            config = OmegaConf.to_container(node)
            assert isinstance(config, dict)
            found.append(Option(group, path.stem, remarks(path.read_text()), {str(k): v for k, v in config.items()}))
    return tuple(found)


def remarks(yaml: str) -> list[str]:
    """The leading comments of a yaml; a line goes on with the one before unless that was a whole sentence."""
    said: list[str] = []
    for line in yaml.splitlines():
        if not line.startswith("#"):
            break
        line = line.removeprefix("#").strip()
        if not said or said[-1].endswith(".") or line.startswith(_LABELS):
            said.append(line)
        else:
            said[-1] += f" {line}"
    return said


def parts(config: Config, name: str = "") -> Iterator[tuple[str, Config]]:
    """Every nested config with a `_target_`, and the keys that lead to it."""
    for key, value in config.items():
        if isinstance(value, dict) and "_target_" in value:
            where = f"{name}.{key}".lstrip(".")
            yield where, value
            yield from parts(value, where)


# -- code ---------------------------------------------------------------------------------------------------------
def equation(cls: type) -> tuple[str, str]:
    """A docstring's first paragraph, and the others as one."""
    first, *others = (" ".join(part.split()) for part in (inspect.getdoc(cls) or "").split("\n\n"))
    return first.rstrip(".,"), " ".join(others)


def computing(cls: type) -> list[Any]:
    """The functions in which a class computes what it is for; its `forward` if it has nothing more telling."""
    own = {name: value for name in (*_COMPUTES, "forward") if _is_ours(value := getattr(cls, name, None))}
    return [value for name, value in own.items() if name != "forward" or len(own) == 1]


def link(function: Callable[..., Any]) -> str:
    """The function's name, with a link to its line."""
    code = inspect.unwrap(function).__code__
    return (
        f"[`{function.__qualname__}`](../{Path(code.co_filename).resolve().relative_to(REPO)}#L{code.co_firstlineno})"
    )


def body(function: Callable[..., Any]) -> str:
    """The source of a function's body, without its docstring and assertions."""
    source = dedent(inspect.getsource(inspect.unwrap(function)))
    [tree] = ast.parse(source).body
    assert isinstance(tree, ast.FunctionDef)
    lines, kept = source.splitlines(), []
    for node in tree.body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not is_text and not isinstance(node, ast.Assert):
            kept += lines[node.lineno - 1 : node.end_lineno]
    return dedent("\n".join(kept))


def _is_ours(value: Any) -> bool:
    return inspect.isfunction(value) and value.__module__.startswith("alignlab.")


# -- what a loss aims at ------------------------------------------------------------------------------------------
class Aim(NamedTuple):
    """A policy against the closed forms, and whether it is one at which a loss comes to rest."""

    beta: float | None  # of the loss
    to_rlhf: float  # KL to the closed form, nats
    to_ipo: float
    regret: float  # units of the reward
    rests: bool = True


def small_world() -> ExactWorld:
    """40 responses of up to 3 tokens."""
    return ExactWorld(4, 3, TokenCounts([0.15, 0.6, -0.5, 0.25]), 0.5)


def aim(config: Config, world: ExactWorld) -> Aim:
    """Where a pairwise loss ends when it sees every pair with its true preference.

    At the world's beta; at the yaml's where beta is of another size, which is per token. A loss that knows of flipped
    labels gets them, at the rate it assumes.
    """
    loss = instantiate(config)
    if not counts_tokens(loss):
        loss = instantiate(with_beta(config, world.beta))
    pairs = world.pairs()
    if loss.optimum == "rlhf_under_flips":
        rate = loss.label_smoothing
        pairs = pairs._replace(preference=(1 - rate) * pairs.preference + rate * (1 - pairs.preference))
    found = population_optimum(world, loss, pairs=pairs)
    point = found.clone().requires_grad_()
    [slope] = torch.autograd.grad(world.population_loss(loss, point.log_softmax(-1), pairs=pairs), point)
    steepest = float(((-0.5 * world.ref_logprobs).exp() * slope).abs().max())
    return against_closed_forms(found, world)._replace(beta=loss.beta, rests=steepest < _RESTS)


def against_closed_forms(logprobs: Float[Tensor, "N"], world: ExactWorld) -> Aim:
    """A policy's KL to the two closed forms at the world's beta, and its regret."""
    closed = (world.optimum(), world.ipo_optimum(world.beta))
    to_rlhf, to_ipo = (float(world.with_reference(best).kl(logprobs)) for best in closed)
    return Aim(None, to_rlhf, to_ipo, float(world.regret(logprobs)))


def counts_tokens(loss: PreferenceLoss) -> bool:
    """Whether a log-prob is worth less in a longer reply."""
    logprob, rewards = -torch.ones(1), []
    for length in (torch.tensor([1]), torch.tensor([2])):
        policy = PairLogprobs(logprob, logprob, length, length)
        reference = PairLogprobs(2 * logprob, 2 * logprob, length, length)
        rewards.append(loss.implied_rewards(policy, reference)[0])
    return not torch.equal(*rewards)


def with_beta(config: Config, beta: float) -> Config:
    """The config with every `beta` in it set."""
    return {
        key: with_beta(value, beta) if isinstance(value, dict) else beta if key == "beta" else value
        for key, value in config.items()
    }


# -- the leaderboard ----------------------------------------------------------------------------------------------
def read_scores(path: Path) -> Scores | None:
    """The rows of the leaderboard by policy; None if there is none. DataError where it is not what it should be."""
    if not path.exists():
        return None
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    missing = {"policy", "share", "share_low", "share_high"} - set(reader.fieldnames or ())
    if missing:
        raise DataError(f"{path}: no column {', '.join(sorted(missing))}")
    scores = {row["policy"]: row for row in rows}
    if len(scores) < len(rows):
        raise DataError(f"{path}: two rows for one policy; each needs a name of its own")
    return scores


def score(name: str, scores: Scores) -> str:
    """Share of the achievable improvement in per cent, with its interval if there is one; `-` without a row."""
    if name not in scores:
        return "-"
    share, *interval = (scores[name][key] for key in ("share", "share_low", "share_high"))
    percent = [f"{100 * float(x):.1f}" for x in (share, *interval) if x]
    return percent[0] + (f" [{', '.join(percent[1:])}]" if len(percent) == 3 else "")
