"""Runs become rows: those that share everything but the seed are one row, with a mean and an interval over seeds.

A row of one seed keeps its evaluation's own interval, over prompts. A row of several seeds has the mean of the
seeds' means and a t interval over seeds, which holds the noise of both training and evaluation.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.report.collect import RunRecord, read_run
from alignlab.statistics import match_samples, mean_interval, win_rate

RUN_KEY = re.compile(r"-[0-9a-f]{6,}(?=/|$)")
"""The key at the end of a run folder's name: parents of other seeds differ by it alone."""

WITH_INTERVAL = ("gold_reward", "proxy_reward", "kl", "win_rate", "accuracy", "margin")
"""Figures that carry `_low` and `_high`."""

NOT_SETTINGS = ("paths", "logger", "inert", "fresh", "name", "hydra")
"""Config nodes that say where and how a run was made, not what it is."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a policy or a reward model, over one or more seeds.

    Args:
        label: the need's name, with the settings that tell it from its siblings (`dpo beta=0.1`).
        need: the need's name alone.
        values: figure -> mean; with `<name>_low`, `<name>_high` where there is an interval.
    """

    label: str
    need: str
    records: tuple[RunRecord, ...]
    values: dict[str, float]

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
        for label, group in _groups(need, found):
            figures = [_figures(record, [] if need == baseline else against) for record in group]
            rows.append(Row(label, need, tuple(group), _over_seeds(figures)))
    return rows


def _groups(need: str, records: Sequence[RunRecord]) -> list[tuple[str, list[RunRecord]]]:
    """Runs that share all but the seed, together; each group's label names the settings in which the groups differ."""
    groups: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        groups[repr(sorted(_comparable(record).items()))].append(record)
    found = list(groups.values())
    if any(len({record.seed for record in group}) < len(group) for group in found):
        # One seed twice: they differ in something that the config does not show, so they are no repetitions.
        return [(record.name, [record]) for record in records]
    if len(found) == 1:
        return [(need, found[0])]
    settings = [_comparable(group[0]) for group in found]
    keys = sorted({key for each in settings for key in each})
    varied = [key for key in keys if len({repr(each.get(key)) for each in settings}) > 1]
    labels = [_label(need, varied, each) for each in settings]
    return [(label if labels.count(label) == 1 else group[0].name, group) for label, group in zip(labels, found)]


def _comparable(record: RunRecord) -> dict[str, Any]:
    """Settings that make two runs different experiments: no seed, no paths, parents without their keys."""
    settings = {}
    for key, value in record.settings.items():
        parts = key.split(".")
        if parts[0] in NOT_SETTINGS or parts[-1] == "seed":
            continue
        settings[key] = _without_keys(value)
    return settings


def _without_keys(value: Any) -> Any:
    """Run folders in a setting lose their keys; everything else stays."""
    if isinstance(value, list):
        return [_without_keys(each) for each in value]
    return RUN_KEY.sub("", value) if isinstance(value, str) else value


def _label(need: str, varied: Sequence[str], settings: Mapping[str, Any]) -> str:
    """`dpo loss=IPOLoss beta=0.1`; a key's last part, or its whole path where two of them end alike."""
    keys = [key.removesuffix("._target_") for key in varied]
    last = [key.rsplit(".", 1)[-1] for key in keys]
    words = [need]
    for full, key, short in zip(varied, keys, last):
        if full in settings:  # absent: a setting of the others' classes only
            value = str(settings[full])
            name = short if last.count(short) == 1 else key
            words.append(f"{name}={value.rsplit('.', 1)[-1] if key != full else value}")
    return " ".join(words)


def _figures(record: RunRecord, against: Sequence[RunRecord]) -> dict[str, float]:
    """A run's figures, with the interval of its KL and its win rate against the baseline of the same seed."""
    values = dict(record.metrics)
    if "kl_stderr" in values:
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


def _over_seeds(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
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
