"""experiments/gpt2_rlhf and hh_ppo: the small-scale chains from end to end on a handful of made-up rows."""

import gzip
import json
import re
from pathlib import Path

import pytest

from alignlab.app.cli import main
from alignlab.app.configs.paths import roots
from alignlab.app.planning.preflight import preflight
from alignlab.app.planning.targets import Planner, plan
from tests.tiny_models import tiny_tokenizer

SHORT = {
    "gpt2_rlhf": ["needs.ppo.override={method:{max_steps:2}}"],
    # the two rows of ppo are evaluations of one training, so they are given the same settings
    "hh_ppo": [f"needs.{name}.override={{method:{{max_steps:10}}}}" for name in ("ppo", "ppo_last")],
}


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def instruction(number: int) -> dict[str, str]:
    """An instruction with a neutral, a polite and a rude output."""
    polite, rude = f"yes, it is {number}.", f"go away, {number}!"
    return {"instruction": f"say {number}", "input": "", "output": f"{number}.", "chosen": polite, "rejected": rude}


def dialogue(number: int) -> dict[str, str]:
    """A pair of transcripts; each seventh is a defect that the published files have: identical replies."""
    asked = f"\n\nHuman: what is {number}?\n\nAssistant:"
    return {"chosen": f"{asked} a number.", "rejected": f"{asked} {'a number.' if number % 7 == 6 else 'no idea'}"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `paths.data` is."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("sft-alpaca-5k", "pref-instruct-tone"):
        write_lines(folder / name / "train.jsonl", [instruction(i) for i in range(24)])
        write_lines(folder / name / "test.jsonl", [instruction(100 + i) for i in range(6)])
    write_lines(folder / "pref-hh-rlhf" / "train.jsonl.gz", [dialogue(i) for i in range(40)])
    write_lines(folder / "pref-hh-rlhf" / "test.jsonl", [dialogue(100 + i) for i in range(8)])
    for name in ("tinystories-4096", "gpt2"):
        tiny_tokenizer().save_pretrained(folder / "tokenizers" / name)
    return folder


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory):
    """Runs a chain at most once; gives its runs folder."""
    done: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name)
            words = [f"experiments={name}/small", f"paths.data={data}", f"paths.runs={done[name]}"]
            assert main([*words, *SHORT[name], "hardware.progress=false"]) == 0
        return done[name]

    return run


def table(runs: Path, chain: str, name: str) -> list[dict]:
    [report] = runs.glob(f"{chain}-small-*/report")
    return json.loads((report / "tables" / f"{name}.json").read_text())


def test_gpt2_rlhf_reports_rewards_rouge_and_the_claim(runs):
    folder = runs("gpt2_rlhf")
    rows = {row["policy"]: row for row in table(folder, "gpt2_rlhf", "summary")}
    assert list(rows) == ["base", "sft", "sft_peft", "ppo"]
    for row in rows.values():
        assert all(0 <= row[f"rouge_{kind}"] <= 1 for kind in "12l") and row["rouge_l_low"] <= row["rouge_l"]
        assert row["proxy_reward_low"] < row["proxy_reward"] < row["proxy_reward_high"] and row["num_prompts"] == 6
    assert rows["sft"]["kl"] == pytest.approx(0, abs=1e-4), "SFT is the reference"
    assert [row["reward_model"] for row in table(folder, "gpt2_rlhf", "reward")] == ["reward", "reward_untrained"]
    steps = [(row["better"], row["worse"]) for row in table(folder, "gpt2_rlhf", "ordering")]
    assert steps == [("ppo", "sft"), ("sft", "base")]
    [report] = folder.glob("gpt2_rlhf-small-*/report")
    assert "ppo > sft > base by proxy reward: " in (report / "report.md").read_text()
    assert (report / "figures" / "scores.png").stat().st_size > 0
    phases = {row["phase"]: row for row in table(folder, "gpt2_rlhf", "phases")}
    assert set(phases) == {"base", "sft", "sft_peft", "ppo", "reward", "reward_untrained"}
    assert phases["sft_peft"]["trained"] == phases["sft_peft"]["in adapters"] < phases["sft"]["trained"]
    assert phases["sft_peft"]["weights"] - phases["sft_peft"]["trained"] == phases["sft"]["weights"], "4-bit ones too"
    assert phases["reward_untrained"]["steps"] == 0 and phases["ppo"]["time (s)"] > 0


def test_hh_ppo_compares_checkpoints_and_counts_adapters_apart(runs):
    folder = runs("hh_ppo")
    rows = {row["policy"]: row for row in table(folder, "hh_ppo", "summary")}
    assert list(rows) == ["base", "sft", "ppo", "ppo_last"]
    assert all(0 <= row["quality_rate"] <= 1 for row in rows.values())
    phases = {row["phase"]: row for row in table(folder, "hh_ppo", "phases")}
    assert set(phases) == {"base", "sft", "ppo", "reward"}, "ppo and ppo_last are one training"
    adapter = 2 * 2 * (8 * 64 + 64 * 8)  # 2 layers x (q, v) of the small network
    assert {name: phases[name]["in adapters"] for name in ("sft", "reward", "ppo")} == dict.fromkeys(
        ("sft", "reward", "ppo"), adapter
    )
    assert {name: phases[name]["in heads"] for name in ("sft", "reward", "ppo")} == {"sft": 0, "reward": 64, "ppo": 65}
    assert phases["ppo"]["trained"] == adapter + 65
    checkpoints = [row for row in table(folder, "hh_ppo", "checkpoints") if row["phase"] == "ppo"]
    assert sum("handed on" in row["chosen"] for row in checkpoints) == 1
    [ppo] = [path for path in folder.glob("hh_ppo-small-ppo-*") if re.fullmatch(r"hh_ppo-small-ppo-\w+", path.name)]
    kept = sorted(int(path.stem.removeprefix("step-")) for path in (ppo / "checkpoints").glob("step-*.ckpt"))
    assert kept == [row["step"] for row in checkpoints] and 2 <= len(kept) <= 10
    tracked = {name for line in (ppo / "metrics.jsonl").open() for name in json.loads(line)}
    wanted = (
        "policy_loss value_loss entropy clip_fraction approx_kl kl score explained_variance grad_norm lr kl_coefficient"
    )
    assert {f"train/{name}" for name in wanted.split()} <= tracked and "validation/quality_rate" in tracked


def test_any_kept_checkpoint_can_be_evaluated(runs, data: Path, capsys: pytest.CaptureFixture[str]):
    folder = runs("hh_ppo")
    ppo = ["experiments=hh_ppo/small/ppo", "method.max_steps=10", f"paths.data={data}", f"paths.runs={folder}"]
    evaluation = [*ppo, "hardware.progress=false", "task=evaluate"]
    assert main([*evaluation, "evaluation.checkpoint=1"]) == 0
    assert main([*evaluation, "evaluation.checkpoint=77"]) == 2
    assert "evaluation.checkpoint=77" in capsys.readouterr().err
    reward = ["experiments=hh_ppo/small/reward", f"paths.data={data}", f"paths.runs={folder}"]
    assert main([*reward, "task=evaluate", "evaluation.checkpoint=last", "hardware.progress=false"]) == 0


@pytest.mark.parametrize(("name", "count"), [("gpt2_rlhf", 11), ("hh_ppo", 9)])
@pytest.mark.parametrize("scale", ["", "/small"])
def test_full_size_and_small_scale_plan_the_same_stages(name: str, count: int, scale: str):
    """Nothing is fetched: hub names are pinned by their revision, and the full size needs no folder of local data."""
    planner = Planner(roots())
    target = planner.target([f"experiments={name}{scale}", *(["paths.data=folder"] if scale else [])])
    assert preflight(planner, [target]) == []
    stages = plan([target])
    assert len(stages) == count
    small = [any("/small" in word for word in stage.overrides) for stage in stages]
    assert all(small) if scale else not any(small)


@pytest.mark.parametrize(
    ("claim", "fault"),
    [
        ("[poo,sft]", "task.ordering: poo is none of the needs; did you mean ppo?"),
        ("[ppo]", "task.ordering: an ordering needs two names or more, the best first"),
    ],
)
def test_a_claim_about_nothing_is_refused_before_anything_is_built(claim: str, fault: str):
    planner = Planner(roots())
    assert preflight(planner, [planner.target(["experiments=gpt2_rlhf", f"task.ordering={claim}"])]) == [fault]
