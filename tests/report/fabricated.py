"""Run folders as a build leaves them, made up: as much of each file as a report reads."""

import json
import random
from pathlib import Path
from typing import Any

import yaml

from alignlab.evaluate.reward import summarise_scores
from alignlab.evaluate.saving import save_evaluation

NUM_PROMPTS = 40
WORDS = (
    *("please", "kindly", "send", "the", "blue", "report", "today", "thank", "you", "for"),
    *("asking", "we", "will", "look", "into", "it", "soon"),
)


def write_run(
    folder: Path, *, config: dict[str, Any], history: list[dict[str, Any]] | None = None, **content: Any
) -> Path:
    """A finished run with the given run.json entries."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "done", "metrics": {}, "parents": {}} | content))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if history is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    return folder


def write_policy(
    runs: Path,
    name: str,
    *,
    method: str,
    seed: int = 0,
    gold: float,
    proxy: float,
    kl: float,
    key: str = "a1b2c3d4",
    config: dict[str, Any] | None = None,
    distinct_2: float = 0.6,
    history: list[dict[str, Any]] | None = None,
) -> Path:
    """A trained run and its evaluation, whose gold rewards scatter by +-1 around `gold`; returns the evaluation."""
    settings = {"method": {"loss": {"beta": 0.1}}, "seed": seed, "needs": {"sft": {"path": f"runs/sft-{key}"}}} | (
        config or {}
    )
    trained = write_run(
        runs / f"{name}-{key}{seed}", config=settings, task="train", method=method, seed=seed, history=history or []
    )
    draw = random.Random(f"{name}{seed}")
    samples = []
    for row in range(NUM_PROMPTS):
        length = draw.randint(4, 4 + int(8 + gold))
        reply = " ".join(draw.choice(WORDS) for _ in range(length))
        samples.append(
            {
                "row": row,
                "prompt": f"Request {row % 7}: could you <help>?",
                "response": f" {reply} | <b>{name}</b>\nnext line",
                "gold_reward": gold + (1 if row % 2 else -1),
                "proxy_reward": proxy,
                "kl": kl,
                "length": length,
                "complete": row % 4 != 0,
            }
        )
    half = 0.32  # about 2 * 1 / sqrt(40)
    metrics = {
        "gold_reward": gold,
        "gold_reward_low": gold - half,
        "gold_reward_high": gold + half,
        "proxy_reward": proxy,
        "proxy_reward_low": proxy - 0.1,
        "proxy_reward_high": proxy + 0.1,
        "kl": kl,
        "kl_stderr": 0.1 + kl / 20,
        "response_length": sum(sample["length"] for sample in samples) / NUM_PROMPTS,
        "eos_rate": 0.75,
        "distinct_1": 0.3,
        "distinct_2": distinct_2,
        "repetition_rate": 0.02,
        "perplexity_reference": 5.5,
        "quality_rate": 0.975,
        "num_prompts": float(NUM_PROMPTS),
    }
    folder = write_run(
        runs / f"{name}-evaluate-{key}{seed}",
        config=settings | {"task": {"kind": "evaluate"}},
        task="evaluate",
        method=method,
        seed=seed,
        parents={"of": [{"folder": str(trained), "key": key, "stamp": "0"}]},
        metrics={f"test/{figure}": value for figure, value in metrics.items()},
    )
    (folder / "eval").mkdir()
    settings = {"max_new_tokens": 32, "temperature": 1.0, "samples_per_prompt": 1}
    text = json.dumps({"kind": "policy", "metrics": metrics, "settings": settings})
    (folder / "eval" / "policy.json").write_text(text)
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    (folder / "eval" / "samples.jsonl").write_text(lines)
    return folder


def write_reward_model(runs: Path, *, seed: int = 0) -> Path:
    """A trained reward model that is right on about nine of ten pairs."""
    draw = random.Random(seed)
    rejected = [draw.gauss(0, 1) for _ in range(400)]
    chosen = [score + draw.gauss(2.0, 1.5) for score in rejected]
    evaluation = summarise_scores(chosen, rejected)
    history = [{"step": 10 * step, "validation/accuracy": 0.9 - 0.4 / (1 + step)} for step in range(1, 20)]
    folder = write_run(
        runs / f"reward-ff00ff0{seed}",
        config={"seed": seed},
        task="train",
        method="reward",
        seed=seed,
        metrics={f"test/{name}": value for name, value in evaluation.metrics.items()},
        history=history,
    )
    save_evaluation(folder, "reward", evaluation)
    return folder


OPTIMUM = {"optimal_objective": 0.9, "optimal_reward": 1.5, "optimal_kl": 1.2}


def exact_history(share: float, *, steps: int = 200, tau: float = 40.0) -> list[dict[str, Any]]:
    """Metrics of a run whose share rises to `share`; the achievable improvement is 0.5."""
    lines: list[dict[str, Any]] = []
    for step in range(0, steps + 1, 10):
        now = share * (1 - 2.718281828 ** (-step / tau)) / (1 - 2.718281828 ** (-steps / tau))
        lines.append({"step": step, "exact/share": now, "exact/regret": 0.5 * (1 - now)})
        lines.append({"step": step + 1, "train/loss": 1.0, "train/margin": step / 100})
    return lines


def write_exact(
    runs: Path,
    name: str,
    *,
    method: str,
    share: float | None,
    seed: int = 0,
    kl: float = 1.0,
    reward: float = 1.4,
    seconds: float = 40.0,
    config: dict[str, Any] | None = None,
    history: list[dict[str, Any]] | None = None,
    **figures: float,
) -> Path:
    """A training in an exact world, whose regret is 0.5 (1 - share); other exact figures by name."""
    metrics = {"share": share, "regret": None if share is None else 0.5 * (1 - share), "reward": reward, "kl": kl}
    return write_run(
        runs / f"{name}-{seed:02d}cafe{seed:02d}",
        config={"seed": seed, "method": {"lr": 0.001}, "needs": {"base": {"path": f"runs/exact-base-{seed:06d}"}}}
        | (config or {}),
        history=exact_history(share or 0.0) if history is None else history,
        task="train",
        method=method,
        seed=seed,
        wall_seconds=seconds,
        metrics={"train/steps": 200.0, "test/loss": 0.6, "test/accuracy": 0.7}
        | {f"exact/{figure}": value for figure, value in (metrics | OPTIMUM | figures).items()},
    )


def quickstart(runs: Path) -> dict[str, list[Path]]:
    """The runs of a whole path, the last of them over-optimised."""

    def curve(top: float, noise: float) -> list[dict[str, Any]]:
        draw = random.Random(top)
        return [
            {"step": step, "train/score": top * step / (step + 20) + draw.gauss(0, noise), "train/kl": step / 30}
            for step in range(0, 200, 2)
        ]

    margins = [
        {"step": step, "train/margin": step / 100, "validation/accuracy": 0.6 + step / 1000} for step in range(100)
    ]
    return {
        "base": [write_policy(runs, "base", method="sft", gold=0.4, proxy=-1.0, kl=3.0)],
        "sft": [
            write_policy(
                runs, "sft", method="sft", gold=3.3, proxy=0.0, kl=0.0, history=[{"step": 1, "train/loss": 2.0}]
            )
        ],
        "reward": [write_reward_model(runs)],
        "dpo": [write_policy(runs, "dpo", method="dpo", gold=6.0, proxy=1.4, kl=8.0, history=margins)],
        "ppo": [write_policy(runs, "ppo", method="ppo", gold=7.1, proxy=2.0, kl=10.0, history=curve(2.0, 0.15))],
        "ppo_hacked": [
            write_policy(
                runs, "hack", method="ppo", gold=2.0, proxy=4.0, kl=48.0, distinct_2=0.1, history=curve(4.0, 0.15)
            )
        ],
    }
