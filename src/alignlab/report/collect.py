"""Run folders read into typed records: run.json, config.yaml, metrics.jsonl, eval/*.json and eval/samples.jsonl.

Only files are read, so a report can be made on a machine that has neither the models nor the data.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.errors import DataError

PREFIX = "test/"
"""What run.json writes before the name of a held-out figure."""

EXACT = "exact/"
"""What run.json and metrics.jsonl write before the name of a figure of an exact world."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One finished run, as its folder tells it.

    Args:
        metrics: held-out figures without the `test/` prefix; figures that are null on disk are absent.
        settings: the resolved config, flattened to dotted keys.
        overrides: the words that compose it, `group=option` and `key=value`.
        history: the lines of metrics.jsonl, of the trained run where this is an evaluation.
        evaluations: eval/<name>.json by name.
        samples: eval/samples.jsonl.
        trained: the run that an evaluation is `of`, where its folder is still there.
        exact: figures of an exact world without the `exact/` prefix, of the trained run where this is an evaluation;
            None where the run is not of such a world.
        seconds: wall time of the training.
    """

    folder: Path
    task: str
    method: str | None
    seed: int | None
    parents: dict[str, list[str]]
    metrics: dict[str, float]
    settings: dict[str, Any]
    overrides: list[str]
    history: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]
    samples: list[dict[str, Any]]
    trained: "RunRecord | None" = None
    exact: dict[str, float] | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        """The folder's own name, `<experiment>-<key>`."""
        return self.folder.name

    @property
    def is_reward_model(self) -> bool:
        """Whether this run's figures are a reward model's (accuracy on pairs) and not a policy's."""
        return "reward" in self.evaluations or ("policy" not in self.evaluations and self.method == "reward")

    @property
    def is_sampled(self) -> bool:
        """Whether a policy's figures come from replies; a training in an exact world has others, and may have these."""
        return self.exact is None or "policy" in self.evaluations

    @property
    def is_untrained(self) -> bool:
        """Whether the run took no step: what training started from, kept for comparison."""
        return self.settings.get("method.max_steps") == 0


def read_run(folder: Path) -> RunRecord:
    """Reads a finished run and, for an evaluation, the run that it evaluates.

    Raises:
        DataError: no run.json, a run that is not done, or a file that does not parse (file and line are named).
    """
    content = _read_object(folder / "run.json")
    if content.get("status") != "done":
        raise DataError(
            f"{folder}: status is {content.get('status')!r}; a report needs finished runs, "
            "and the same command again goes on where this one stopped"
        )
    settings = flatten(_read_yaml(folder / "config.yaml"))
    evaluations = {path.stem: _read_object(path) for path in sorted((folder / "eval").glob("*.json"))}
    trained = _read_trained(folder, content)
    metrics: dict[str, Any] = {}
    for evaluation in evaluations.values():
        metrics |= evaluation.get("metrics", {})
    recorded = content.get("metrics", {})
    metrics |= {name.removeprefix(PREFIX): value for name, value in recorded.items() if name.startswith(PREFIX)}
    seed = content.get("seed", settings.get("seed"))
    history = _read_lines(folder / "metrics.jsonl")
    seconds = content.get("wall_seconds")
    exact = _exact_figures(recorded)
    return RunRecord(
        folder=folder,
        task=str(content.get("task", "train")),
        method=content.get("method"),
        seed=None if seed is None else int(seed),
        parents={need: _names(found) for need, found in content.get("parents", {}).items()},
        metrics={name: float(value) for name, value in metrics.items() if is_number(value)},
        settings=settings,
        overrides=[str(word) for word in content.get("overrides", [])],
        history=history or (trained.history if trained else []),
        evaluations=evaluations,
        samples=_read_lines(folder / "eval" / "samples.jsonl"),
        trained=trained,
        exact=trained.exact if exact is None and trained else exact,
        seconds=trained.seconds if trained else seconds if is_number(seconds) else None,
    )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _exact_figures(recorded: Mapping[str, Any]) -> dict[str, float] | None:
    named = {name.removeprefix(EXACT): value for name, value in recorded.items() if name.startswith(EXACT)}
    return {name: float(value) for name, value in named.items() if is_number(value)} if named else None


def _read_trained(folder: Path, content: Mapping[str, Any]) -> RunRecord | None:
    names = _names(content.get("parents", {}).get("of", []))
    if content.get("task") != "evaluate" or not names:
        return None
    beside = folder.parent / Path(names[0]).name  # first: the runs folder may have been moved as a whole
    found = next((path for path in (beside, Path(names[0])) if (path / "run.json").is_file()), None)
    return read_run(found) if found is not None else None


def _names(found: Any) -> list[str]:
    """Folders of a need's parents; an entry is a path, or an object with `folder`."""
    entries = found if isinstance(found, list) else [found]
    return [str(entry["folder"] if isinstance(entry, Mapping) else entry) for entry in entries]


def is_number(value: Any) -> bool:
    """Whether a value off the disk is a figure that can be shown: finite, and not a flag."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; {path.parent} is not a run folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: a JSON object was expected, not a {type(content).__name__}")
    return content


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """A jsonl file's objects; none where there is no file."""
    if not path.is_file():
        return []
    found = []
    # Not splitlines(): replies may hold U+2028, which it takes for an end of line and JSON does not.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not a JSON object ({error.msg})") from error
    return found
