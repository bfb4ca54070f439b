"""A training that takes no time, in the place of `app/work`. `control.json` in the working directory steers it."""

import json
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignlab.errors import HardwareError

STEPS = 5


def control() -> dict[str, Any]:
    """{"seconds": duration of a training, "fail": [names], "fail_seeds": [seeds], "hardware": true}"""
    path = Path("control.json")
    return json.loads(path.read_text()) if path.exists() else {}


def train(cfg: DictConfig, folder: Path, target: Any) -> dict[str, Any]:
    said = control()
    if said.get("hardware"):
        raise HardwareError("hardware=gpu: no device here")
    last = folder / "last.json"
    start = json.loads(last.read_text())["step"] if last.exists() else 0
    with (folder / "steps.log").open("a") as log:
        log.write(f"from {start}\n")
    for step in range(start, STEPS):
        time.sleep(said.get("seconds", 0.0) / STEPS)
        if step == 1 and (target.name in said.get("fail", []) or cfg.seed in said.get("fail_seeds", [])):
            raise ValueError("loss is nan at step 1")
        last.write_text(json.dumps({"step": step + 1}))
    return {"train/loss": 1.0, "test/accuracy": 0.5 + cfg.seed, "tokens": 10}


def evaluate(cfg: DictConfig, folder: Path, target: Any) -> dict[str, Any]:
    [run] = target.needs["of"]
    metrics = json.loads((run.folder / "run.json").read_text())["metrics"]
    return {"test/score": metrics["test/accuracy"]}


def table(cfg: DictConfig, folder: Path, target: Any) -> dict[str, Any]:
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "report.md").write_text("# the report\n")
    plain = OmegaConf.to_container(cfg.needs, resolve=True)
    assert isinstance(plain, dict)
    return {f"rows/{name}": len(need["path"]) if need["grid"] else 1 for name, need in plain.items()}


WORK = {"train": train, "evaluate": evaluate, "table": table}
