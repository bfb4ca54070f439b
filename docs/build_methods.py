"""Writes the generated regions of docs/methods.md. Run `make docs-methods` after changing a loss or a method.

A region stands between `<!-- generated: NAME -->` and `<!-- end -->`; everything else on the page is written by hand.
What is generated is read where it is true: the head comments of conf/method/**.yaml, the docstrings and attributes of
what their `_target_` names, the source of the functions that compute, the optimum that is found in a small exact world,
and benchmarks/results/exact-leaderboard.csv (without that file its column is left out).

Links carry line numbers, so that a click lands on the equation. The test (tests/test_docs_methods.py) ignores them, or
every edit of a loss's file would ask for a new page; it takes figures in tables as equal within 1%, since other
machines round otherwise. Everything else must be the same, the quoted code too: that is how a changed equation shows.
"""

import difflib
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_class, instantiate
from methods_facts import (
    REPO,
    Config,
    Option,
    Scores,
    against_closed_forms,
    aim,
    body,
    computing,
    equation,
    link,
    options,
    parts,
    read_scores,
    score,
    small_world,
)

from alignlab.losses.preference import PreferenceLoss

PAGE = REPO / "docs" / "methods.md"
LEADERBOARD = REPO / "benchmarks" / "results" / "exact-leaderboard.csv"

FAMILIES = ("preference", "margin", "f_divergence", "anchored", "ordering", "reference_free", "sft_term")
METHODS = ("sft", "reward", "dpo", "kto", "online_dpo", "ppo", "reinforce", "rloo", "grpo", "dr_grpo", "dapo")
REACHES = 1e-9  # nats or units of the reward: rounding
REGION = re.compile(r"(?<=<!-- generated: )(\w+)( -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)
FIGURE = re.compile(r"(\d+\.\d+(?:e[+-]\d+)?)")


# -- the regions --------------------------------------------------------------------------------------------------
def pairwise(scores: Scores | None) -> str:
    """Losses of pairs: what they aim at, what they are, and a section each."""
    losses = [option for option in options("method/loss") if issubclass(option.target, PreferenceLoss)]
    losses.sort(key=_by_family)
    return join(aims(losses, scores), traits(losses), *sections(losses))


def unpaired(scores: Scores | None) -> str:
    """Losses of single replies."""
    losses = [option for option in options("method/loss") if not issubclass(option.target, PreferenceLoss)]
    losses.sort(key=_by_family)
    rows = []
    for option in losses:
        loss = instantiate(option.config)
        row = {
            "loss": reference(option),
            "reference": yes(loss.needs_reference),
            "mismatched pairs": yes(loss.needs_kl),
        }
        row |= {"batch-coupled": yes(loss.batch_coupled), "at the reference": number(loss.value_at_reference)}
        rows.append(with_share(row, option.name, scores))
    return join(table(rows), *sections(losses))


def methods(scores: Scores | None) -> str:
    """Methods: what they learn from, what those in groups differ in, and a section each."""
    found = sorted(
        options("method"), key=lambda o: (METHODS.index(o.name) if o.name in METHODS else len(METHODS), o.name)
    )
    losses, rows = options("method/loss"), []
    for option in found:
        row = {"method": reference(option), "class": f"`{option.target.__name__}`"}
        row |= {"learns from": f"`{option.target.row_type.__name__}`"}
        rows.append(with_share(row, option.name, scores))
    groups = [in_groups(option) for option in found if "baseline" in option.config]
    each = (method_section(option, losses) for option in found)
    return join(table(rows), "What the methods without a critic differ in:", table(groups), *each)


REGIONS = {"pairwise": pairwise, "unpaired": unpaired, "methods": methods}


# -- tables -------------------------------------------------------------------------------------------------------
def aims(losses: Sequence[Option], scores: Scores | None) -> str:
    """Where every loss comes to rest, against the closed forms."""
    world = small_world()
    start = against_closed_forms(world.ref_logprobs, world)
    rows = [{"loss": "(the reference)", "beta": "", "declares": "", **figures(*start[1:4])}]
    for option in losses:
        loss = instantiate(option.config)
        row = {"loss": reference(option), "beta": "", "declares": loss.optimum or "-"}
        if loss.batch_coupled:
            row |= figures(None, None, None)
        else:
            found = aim(option.config, world)
            row |= {"beta": f"{found.beta:g}", **figures(*(found[1:4] if found.rests else 3 * [None]))}
        rows.append(row)
    return table(
        [with_share(row, name, scores) for row, name in zip(rows, ["", *(o.name for o in losses)], strict=True)]
    )


def figures(to_rlhf: float | None, to_ipo: float | None, regret: float | None) -> dict[str, str]:
    """Three cells; None is a loss of which it cannot be said."""
    kls = {"KL to rlhf": to_rlhf, "KL to ipo": to_ipo}
    cells = {name: "-" if x is None else "reaches" if abs(x) < REACHES else f"{x:.4g}" for name, x in kls.items()}
    return cells | {"regret": "-" if regret is None else f"{regret:.4g}" if abs(regret) > REACHES else "0"}


def traits(losses: Sequence[Option]) -> str:
    """What a loss says of itself."""
    rows = []
    for option in losses:
        loss = instantiate(option.config)
        asked = ("needs_reference", "batch_coupled", "shift_invariant", "monotone", "antisymmetric")
        row = {name.removeprefix("needs_").replace("_", "-"): yes(getattr(loss, name)) for name in asked}
        rows.append({"loss": reference(option), **row, "at the reference": number(loss.value_at_reference)})
    return table(rows)


def in_groups(option: Option) -> dict[str, str]:
    """A row for a method that compares replies with a baseline."""
    config = option.config
    penalty, clip = config["kl_penalty"], config["policy_loss"]
    is_free = config["kl"].get("coefficient") == 0
    high = clip["clip_range"] if clip["clip_range_high"] is None else clip["clip_range_high"]
    return {
        "method": reference(option),
        "replies": str(config["group_size"]),
        "baseline": links(get_class(config["baseline"]["_target_"])),
        "normalize": config["normalize"],
        "KL": "none" if is_free else f"{penalty['estimator']} per {penalty['per']} in the {penalty['where']}",
        "clip": f"{1 - clip['clip_range']:g} to {1 + high:g}",
    }


def table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown; the columns are the keys of the rows."""
    columns = list(rows[0])
    lines = [columns, len(columns) * ["---"], *([row[column] for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# -- sections -----------------------------------------------------------------------------------------------------
def sections(losses: Sequence[Option]) -> list[str]:
    """A section for each loss; the equation and the code of a class stand where it comes first."""
    first: dict[type, Option] = {}
    return [loss_section(option, first.setdefault(option.target, option)) for option in losses]


def loss_section(option: Option, first: Option) -> str:
    """Title, equation, source and convention, settings, code."""
    said, more = equation(option.target)
    if option is first:
        text = [fenced(said), more, settings(option.config), quoted(option.target)]
    else:
        text = [f"`{option.target.__name__}` as in {reference(first)}, with other settings.", settings(option.config)]
    for key, config in parts(option.config):
        cls = get_class(config["_target_"])
        if issubclass(cls, PreferenceLoss):
            text.append(f"`{key}`, unless another is named: `{cls.__name__}`. {settings(config)}")
        else:
            said, more = equation(cls)
            text += [f"`{key}`:", fenced(said), more, settings(config), quoted(cls)]
    return join(f"### `{option.typed}`", *map(remark, option.remarks), *text)


def method_section(option: Option, losses: Sequence[Option]) -> str:
    """Title, equation and convention, and links to what computes."""
    classes = [option.target, *(get_class(config["_target_"]) for _, config in parts(option.config))]
    code = ", ".join(filter(None, map(links, classes)))
    blocks = [*map(remark, option.remarks), *its_loss(option.config.get("loss"), losses), f"Code: {code}."]
    return join(f"### `{option.typed}`", *blocks)


def its_loss(config: Config | None, losses: Sequence[Option]) -> list[str]:
    """The loss of a method: a link where it is one of several to choose from, else what it is."""
    if config is None:
        return []
    for loss in losses:
        if loss.config == config:
            return [f"The loss: {reference(loss)}, unless another is chosen."]
    said, more = equation(get_class(config["_target_"]))
    return [fenced(said), more]


def remark(line: str) -> str:
    """A comment of a yaml's head: equations and commands as code."""
    if line.startswith("alignlab "):
        return fenced(re.sub(r"\s{2,}\((.*)\)$", r"  # \1", line), "sh")
    label, _, rest = line.partition(": ")
    return fenced((rest if label == "Loss" else line).rstrip(".")) if label in ("Loss", "Gradient") else line


def quoted(cls: type) -> str:
    """Each function that computes, with a link to it."""
    return join(*(join(f"{link(function)}:", fenced(body(function), "python")) for function in computing(cls)))


def links(cls: type) -> str:
    """The functions that compute."""
    return ", ".join(map(link, computing(cls)))


def settings(config: Config) -> str:
    """The plain settings of the yaml."""
    plain = {key: value for key, value in config.items() if not key.startswith("_") and not isinstance(value, dict)}
    shown = ", ".join(f"`{key}: {str(value).lower()}`" for key, value in plain.items())
    return f"Settings: {shown}." if shown else ""


def reference(option: Option) -> str:
    """The name, with a link to the section."""
    return f"[{option.name}](#{re.sub('[^a-z0-9_]', '', option.typed)})"


def fenced(code: str, language: str = "") -> str:
    """A block of code."""
    return f"```{language}\n{code}\n```"


def join(*blocks: str) -> str:
    """Blocks with an empty line between them; empty ones left out."""
    return "\n\n".join(block for block in blocks if block)


def with_share(row: dict[str, str], name: str, scores: Scores | None) -> dict[str, str]:
    """The row with its score, if there is a leaderboard."""
    return row if scores is None else row | {"share": score(name, scores)}


def yes(value: bool) -> str:
    """In a table."""
    return "yes" if value else "no"


def number(value: float | None) -> str:
    """Four digits, or that it differs."""
    return "varies" if value is None else f"{value:.4g}"


def _by_family(option: Option) -> tuple[Any, ...]:
    """As the catalogue is laid out: module by module, class by class, the plainest settings first."""
    module = option.target.__module__.rpartition(".")[2]
    line = computing(option.target)[0].__code__.co_firstlineno
    return (
        FAMILIES.index(module) if module in FAMILIES else len(FAMILIES),
        module,
        line,
        len(option.config),
        option.name,
    )


# -- the page -----------------------------------------------------------------------------------------------------
def build(page: str, leaderboard: Path = LEADERBOARD) -> str:
    """The page with its regions made anew."""
    scores = read_scores(leaderboard)
    return REGION.sub(lambda match: f"{match[1]}{match[2]}{REGIONS[match[1]](scores)}\n", page)


def differences(written: str, built: str) -> list[str]:
    """Lines that differ, as a diff; line numbers of links and small changes of figures in tables are none."""
    old, new = ([re.sub(r"#L\d+", "", line) for line in page.splitlines()] for page in (written, built))
    if len(old) == len(new):
        old = [b if a.startswith("|") and is_alike(a, b) else a for a, b in zip(old, new, strict=True)]
    return list(difflib.unified_diff(old, new, "docs/methods.md", "generated", n=0, lineterm=""))


def is_alike(one: str, other: str) -> bool:
    """The same text around figures that are equal within 1%."""
    pieces = list(zip(FIGURE.split(one), FIGURE.split(other)))
    if len(FIGURE.findall(one)) != len(FIGURE.findall(other)):
        return False
    texts, numbers = pieces[::2], pieces[1::2]
    return all(a == b for a, b in texts) and all(math.isclose(float(a), float(b), rel_tol=0.01) for a, b in numbers)


if __name__ == "__main__":
    before = PAGE.read_text()
    after = build(before)
    PAGE.write_text(after)
    print(f"docs/methods.md: {'written anew' if after != before else 'nothing to change'}", file=sys.stderr)
