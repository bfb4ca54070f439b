"""Evaluations on disk: `eval/<name>.json` and, for a policy, `eval/samples.jsonl`, in strict JSON.

Strict: NaN and infinity are not JSON, so a figure that is not finite is written as null. Files are written whole
beside their target and then renamed, so that a reader never sees half a file.
"""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignlab.errors import DataError
from alignlab.evaluate.comparison import Comparison
from alignlab.evaluate.pairs import SubsetFigures
from alignlab.evaluate.policy import PolicyEvaluation
from alignlab.evaluate.reward import CalibrationBin, RewardEvaluation


def save_evaluation(folder: Path, name: str, evaluation: PolicyEvaluation | RewardEvaluation) -> Path:
    """Writes folder/eval/<name>.json, and folder/eval/samples.jsonl for a policy; returns the former's path.

    The JSON holds kind ("policy" | "reward"), metrics, and settings (policy) or calibration, margins, subsets and
    styles (reward).
    """
    path = folder / "eval" / f"{name}.json"
    content: dict[str, Any] = {"metrics": evaluation.metrics}
    if isinstance(evaluation, PolicyEvaluation):
        content |= {"kind": "policy", "settings": evaluation.settings}
        _write(path.with_name("samples.jsonl"), "".join(_line(sample) + "\n" for sample in evaluation.samples))
    else:
        bins = [each._asdict() for each in evaluation.calibration]
        content |= {"kind": "reward", "calibration": bins, "margins": evaluation.margins}
        content |= {"subsets": [asdict(each) for each in evaluation.subsets], "styles": evaluation.styles}
    _write(path, json.dumps(_strict(content), indent=1, allow_nan=False) + "\n")
    return path


def save_comparison(folder: Path, comparison: Comparison, *, against: str, judge: str) -> Path:
    """Writes folder/eval/verdicts.jsonl and folder/eval/comparison.json (against, judge, metrics); returns the latter.

    `against` names the other replies and `judge` who decided, for people.
    """
    path = folder / "eval" / "comparison.json"
    content = {"kind": "comparison", "against": against, "judge": judge, "metrics": comparison.metrics}
    _write(path.with_name("verdicts.jsonl"), "".join(_line(each) + "\n" for each in comparison.verdicts))
    _write(path, json.dumps(_strict(content), indent=1, allow_nan=False) + "\n")
    return path


def load_policy_evaluation(folder: Path, *, name: str = "policy") -> PolicyEvaluation:
    """What `save_evaluation` wrote of a policy; a null metric comes back as NaN."""
    content = _read(folder / "eval" / f"{name}.json", kind="policy")
    return PolicyEvaluation(_metrics(content), load_samples(folder), dict(content["settings"]))


def load_samples(folder: Path) -> list[dict[str, Any]]:
    """The replies of folder/eval/samples.jsonl: what another evaluation may compare its own with.

    Raises:
        DataError: no such file, or a line that is not a JSON object.
    """
    path = folder / "eval" / "samples.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: no samples here; is {folder} the folder of a finished evaluation (task=evaluate)?")
    samples = []
    # Not splitlines(): replies may hold U+2028, which it takes for an end of line and JSON does not.
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
        try:
            samples.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not a JSON object ({error.msg})") from error
    return samples


def load_reward_evaluation(folder: Path, *, name: str = "reward") -> RewardEvaluation:
    """What `save_evaluation` wrote of a reward model."""
    content = _read(folder / "eval" / f"{name}.json", kind="reward")
    bins = [CalibrationBin(**each) for each in content["calibration"]]
    subsets = [SubsetFigures(**each) for each in content.get("subsets", [])]
    return RewardEvaluation(_metrics(content), list(content["margins"]), bins, subsets, content.get("styles", []))


def _read(path: Path, *, kind: str) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such evaluation")
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("kind") != kind:
        raise DataError(f"{path}: an evaluation of kind {content.get('kind')!r}, where {kind!r} was expected")
    return content


def _metrics(content: dict[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in content["metrics"].items()}


def _strict(value: Any) -> Any:
    """`value` with every float that JSON has no word for turned into None."""
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(sample: dict[str, Any]) -> str:
    return json.dumps(_strict(sample), ensure_ascii=False, allow_nan=False)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
