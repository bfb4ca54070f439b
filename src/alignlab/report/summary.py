"""Runs become rows: those that share everything but the seed are one row, with a mean and an interval over seeds.

A row of one seed keeps its evaluation's own interval, over prompts. A row of several seeds has the mean of the
seeds' means and a t interval over seeds, which holds the noise of both training and evaluation.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignlab.report.collect import EXACT, RunRecord, read_run
from alignlab.statistics import match_samples, mean_interval, win_rate

RUN_KEY = re.compile(r"-[0-9a-f]{6,}(?=/|$)")
"""The key at the end of a run folder's name: parents of other seeds differ by it alone."""

WITH_INTERVAL = (
    *("gold_reward", "proxy_reward", "kl", "win_rate", "win_rate_length_controlled", "accuracy", "margin"),
    *("pair_margin", "implicit_margin", "implicit_accuracy", "rouge_1", "rouge_2", "rouge_l"),
    *(f"{EXACT}{name}" for name in ("share", "regret", "reward", "kl", "ipo_share", "likelihood_gap")),
)
"""Figures that carry `_low` and `_high`."""

NOT_SETTINGS = ("paths", "logger", "inert", "fresh", "name", "hydra")
"""Config nodes that say where and how a run was made, not what it is; beside those that the run itself calls inert."""

ONLY_WATCHES = ("task.exact_points",)
"""Settings of how often a run is looked at."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a policy or a reward model, over one or more seeds.

    Args:
        label: the need's name, with the settings that tell it from its siblings (`dpo beta=0.1`).
        need: the need's name alone.
        values: figure -> mean; with `<name>_low`, `<name>_high` where there is an interval. Figures of an exact world
            keep their prefix `exact/`.
        settings: the settings that tell the row from its siblings, as the label names them.
    """

    label: str
    need: str
    records: tuple[RunRecord, ...]
    values: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str | None:
        """How it was trained; None where it was not."""
        if self.is_untrained:
            return None
        first = self.records[0]
        return first.method or (first.trained.method if first.trained else None)

    @property
    def is_untrained(self) -> bool:
        """Whether it took no step: what training started from."""
        return any(record.is_untrained for record in self.records)

    @property
    def num_seeds(self) -> int:
        """How many runs stand behind the row."""
        return len(self.records)


def summarise(runs: Mapping[str, Sequence[Path]], *, baseline: str | None) -> list[Row]:
    """One row per need and setting, in the order given; `win_rate` against `baseline` is added where it is missing."""
    records = {need: [read_run(Path(folder)) for folder in folders] for need, folders in runs.items()}
    against = records.get(baseline, []) if baseline else []
    rows = []
    for need, found in records.items():
        for label, group, settings in _groups(need, found):
            figures = [_figures(record, [] if need == baseline else against) for record in group]
            rows.append(Row(label, need, tuple(group), over_seeds(figures), settings))
    return rows


def _groups(need: str, records: Sequence[RunRecord]) -> list[tuple[str, list[RunRecord], dict[str, Any]]]:
    """Runs that share all but the seed, together, with a label and the settings in which the groups differ."""
    groups: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        groups[repr(sorted(_comparable(record).items()))].append(record)
    found = list(groups.values())
    if any(len({record.seed for record in group}) < len(group) for group in found):
        # One seed twice: they differ in something that the config does not show, so they are no repetitions.
        return [(record.name, [record], {}) for record in records]
    if len(found) == 1:
        return [(need, found[0], {})]
    settings = [_comparable(group[0]) for group in found]
    keys = sorted({key for each in settings for key in each})
    varied = [key for key in keys if len({repr(each.get(key)) for each in settings}) > 1]
    chosen, varied = _choices([group[0] for group in found], settings, varied)
    if any(record.exact is not None for record in records):
        varied = _said_once(varied, settings)
    told = [named | _told(varied, each) for named, each in zip(chosen, settings)]
    labels = [" ".join([need, *(f"{name}={value}" for name, value in each.items())]) for each in told]
    return [
        (label if labels.count(label) == 1 else group[0].name, group, each)
        for label, group, each in zip(labels, found, told)
    ]


def _comparable(record: RunRecord) -> dict[str, Any]:
    """Settings that make two runs different experiments: no seed, no paths, parents without their keys."""
    settings = {}
    inert = {key for key in record.settings.get("inert") or () if key != "evaluation"}  # inert in a training only
    for key, value in record.settings.items():
        parts = key.split(".")
        if parts[0] in NOT_SETTINGS or parts[-1] == "seed" or key in inert or key in ONLY_WATCHES:
            continue
        settings[key] = _without_keys(value)
    return settings


def _choices(
    records: Sequence[RunRecord], settings: Sequence[Mapping[str, Any]], varied: Sequence[str]
) -> tuple[list[dict[str, str]], list[str]]:
    """`loss: exo` for rows that a config group's options tell apart, and the keys that still vary beside them.

    A key below a group is said by the option if rows with the same option agree in it.
    """
    typed: list[dict[str, str]] = []
    for record in records:
        known = {"method": record.method} if record.method else {}  # an experiment's own method is not typed
        typed.append(known | dict(word.split("=", 1) for word in record.overrides if "=" in word))
    chosen: list[dict[str, str]] = [{} for _ in records]
    left = list(varied)
    for group in sorted({name for words in typed for name in words}):
        options, node = [words.get(group) for words in typed], group.replace("/", ".") + "."
        below = [key for key in left if key.startswith(node)]
        said = {key for key in below if _agrees_within(options, [each.get(key) for each in settings])}
        if not said or None in options:
            continue
        left = [key for key in left if key not in said]
        for named, option in zip(chosen, options):
            named[group.rsplit("/", 1)[-1]] = str(option)
    return chosen, left


def _agrees_within(options: Sequence[str | None], values: Sequence[Any]) -> bool:
    """Whether rows of the same option have the same value."""
    return len({(option, repr(value)) for option, value in zip(options, values)}) == len(set(options))


def _without_keys(value: Any) -> Any:
    """Run folders in a setting lose their keys; everything else stays."""
    if isinstance(value, list):
        return [_without_keys(each) for each in value]
    return RUN_KEY.sub("", value) if isinstance(value, str) else value


def _said_once(varied: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of keys that end alike and agree in every run, the first: an exact world stands in several places of a config."""
    found: dict[str, str] = {}
    for key in varied:
        found.setdefault(repr((key.rsplit(".", 1)[-1], [each.get(key) for each in settings])), key)
    return list(found.values())


def _told(varied: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """`loss: IPOLoss, beta: 0.1`; a key's last part, or its whole path where two of them end alike."""
    keys = [key.removesuffix("._target_") for key in varied]
    last = [key.rsplit(".", 1)[-1] for key in keys]
    told = {}
    for full, key, short in zip(varied, keys, last):
        if full in settings:  # absent: a setting of the others' classes only
            value = settings[full]
            told[short if last.count(short) == 1 else key] = str(value).rsplit(".", 1)[-1] if key != full else value
    return told


def _figures(record: RunRecord, against: Sequence[RunRecord]) -> dict[str, float]:
    """A run's figures, with the interval of its KL and its win rate against the baseline of the same seed."""
    values = record.metrics | _exact_values(record)
    if "kl_stderr" in values and record.is_sampled:
        # 1.96: the normal quantile; KL is averaged over enough prompts for it.
        half = 1.96 * values["kl_stderr"]
        values |= {"kl_low": values["kl"] - half, "kl_high": values["kl"] + half}
    if against and "win_rate" not in values:
        other = next((each for each in against if each.seed == record.seed), against[0])
        ours, theirs = match_samples(record.samples, other.samples, field="gold_reward")
        if ours:
            rate = win_rate(ours, theirs)
            values |= {"win_rate": rate.mean, "win_rate_low": rate.low, "win_rate_high": rate.high}
    return values


def _exact_values(record: RunRecord) -> dict[str, float]:
    """A run's exact figures; a policy without sampled replies has its exact reward and KL where others have theirs."""
    if record.exact is None:
        return {}
    if record.is_untrained:
        # Its KL and its share are to the world's own reference. The others are held to itself: it is their zero.
        return {"gold_reward": record.exact["reward"]} if "reward" in record.exact and not record.is_sampled else {}
    found = {f"{EXACT}{name}": value for name, value in record.exact.items()}
    if record.seconds is not None:
        found[f"{EXACT}seconds"] = record.seconds
    if record.is_sampled or record.is_reward_model:
        return found
    stand_ins = {"gold_reward": "reward", "kl": "kl"}
    return found | {name: record.exact[exact] for name, exact in stand_ins.items() if exact in record.exact}


def over_seeds(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over seeds; figures that some seed lacks are left out."""
    shared = [name for name in figures[0] if all(name in each for each in figures)]
    if len(figures) == 1:
        return {name: figures[0][name] for name in shared}
    values = {name: math.fsum(each[name] for each in figures) / len(figures) for name in shared}
    for name in WITH_INTERVAL:
        if name in values:
            interval = mean_interval([each[name] for each in figures])
            values |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return values
