"""task=sample by the real command: killed and gone on with, read as data by methods, and exact where that is known."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from alignlab.app.cli import main
from alignlab.app.configs.paths import roots
from alignlab.app.planning.targets import Planner
from alignlab.app.work.sample import _exact
from alignlab.batches import PromptBatch
from alignlab.evaluate.best_of_n import kl_bound
from alignlab.rollout.generate import generate
from tests.app.test_exact_world import WORLD
from tests.rollout.chat_server import chat_server
from tests.test_readme import SMALL
from tests.worlds.test_exact_source import make_world, tiny_policy

SFT = ["experiments=quickstart/sft", *SMALL, "method.max_steps=2", "hardware.progress=false"]
SAMPLE = [*SFT, "task=sample", "task.n=3", "task.batch_size=1", "task.num_prompts=12"]


def the_folder(runs: Path, name: str) -> Path:
    [folder] = [path.parent for path in runs.glob(f"{name}-*/run.json")]
    return folder


def written(runs: Path) -> dict[str, bytes]:
    """Every file of the samples."""
    folder = the_folder(runs, "quickstart-sft.sample") / "samples"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples that nothing interrupts; the runs folder."""
    runs = tmp_path_factory.mktemp("whole")
    assert main([*SAMPLE, f"paths.runs={runs}"]) == 0
    return runs


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_goes_on_to_the_same_bytes(number: int, whole: Path, tmp_path: Path):
    assert main([*SFT, f"paths.runs={tmp_path}"]) == 0
    command = [sys.executable, "-m", "alignlab", *SAMPLE, f"paths.runs={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(6000):
        if list(tmp_path.glob("*/samples/batches/000001.jsonl")) or process.poll() is not None:
            break
        time.sleep(0.01)
    process.send_signal(number)
    process.wait(timeout=60)
    folder = the_folder(tmp_path, "quickstart-sft.sample")
    batches = folder / "samples" / "batches"
    kept = {path.name: path.stat().st_mtime_ns for path in batches.glob("*.jsonl")}
    assert 2 <= len(kept) < 12 and json.loads((folder / "run.json").read_text())["status"] == "running"
    with pytest.MonkeyPatch.context() as patch:
        from alignlab.rollout import replies

        drawn: list[int] = []
        draw = replies.draw_batch
        patch.setattr(
            replies, "draw_batch", lambda *a, index, **k: (drawn.append(index), draw(*a, index=index, **k))[1]
        )
        assert main([*SAMPLE, f"paths.runs={tmp_path}"]) == 0
    assert drawn == list(range(len(kept), 12))
    assert written(tmp_path) == written(whole) and not batches.exists()


def test_the_files_hold_every_reply_and_the_rows_chosen_from_them(whole: Path):
    folder = the_folder(whole, "quickstart-sft.sample")
    scored = lines(folder / "samples" / "scored.jsonl")
    assert len(scored) == 36 and len({reply["row"] for reply in scored}) == 12
    best = {reply["prompt"]: reply["response"] for reply in sorted(scored, key=lambda r: (r["score"], -r["index"]))}
    for row in lines(folder / "samples" / "sft.jsonl"):
        assert row["response"] == best[row["prompt"]]
    record = json.loads((folder / "run.json").read_text())
    assert record["task"] == "sample" and record["metrics"]["replies"] == 36
    counted = {kind: len(lines(folder / "samples" / f"{kind}.jsonl")) for kind in ("sft", "preference", "unpaired")}
    assert {f"rows/{kind}": count for kind, count in counted.items()}.items() <= record["metrics"].items()
    assert counted["preference"] > 0 and counted["unpaired"] > counted["preference"]
    assert (folder / "report" / "tables" / "best_of_n.csv").read_text().startswith("n,score,score low")
    assert (folder / "report" / "figures" / "best_of_n.png").exists()


@pytest.mark.parametrize(
    ("method", "data", "file"),
    [("dpo", "preference", "preference"), ("sft", "demonstrations", "sft"), ("kto", "unpaired", "unpaired")],
)
def test_methods_train_on_the_rows_of_a_need(method: str, data: str, file: str, whole: Path):
    """The need is found, not drawn again, and a new need is a new key."""
    words = [
        *(f"experiments=on_{file}", f"method={method}", f"data={data}", "method.max_steps=1"),
        *("data.batch_size=4", "data.max_new_tokens=12", "task.samples.num_prompts=0", "task.samples.final_prompts=0"),
        "data.source.train=${needs.samples.path}/samples/" + file + ".jsonl",
        *("hardware.progress=false", f"paths.runs={whole}", f"name=on-{file}"),
    ]
    experiments = whole / "mine" / "experiments"
    experiments.mkdir(parents=True, exist_ok=True)
    small = " ".join(f"{word.partition('=')[0]}: {word.partition('=')[2]}," for word in SMALL)
    text = f"""# @package _global_
# A round on the policy's own replies. alignlab experiments=on_{file}
needs:
  samples:
    experiments: quickstart/sft
    override: {{task: sample, task.n: 3, task.batch_size: 1, task.num_prompts: 12, method.max_steps: 2, {small}}}
"""
    (experiments / f"on_{file}.yaml").write_text(text)
    words += [word for word in SMALL if word.startswith("model.")]
    done = {path: path.stat().st_mtime_ns for path in whole.glob("quickstart-sft.sample-*/samples/*")}
    assert main(["--config-dir", str(whole / "mine"), *words]) == 0
    assert {path: path.stat().st_mtime_ns for path in whole.glob("quickstart-sft.sample-*/samples/*")} == done
    read = json.loads((the_folder(whole, f"on-{file}") / "data.json").read_text())["train"]
    assert read["dropped"] == 0 and read["rows"] > 0


def test_the_estimate_agrees_with_the_exact_world(tmp_path: Path):
    """2048 replies of a real network to the one prompt: within what so many draws can tell; and the exact KL."""
    words = [
        "experiments=exact/base",
        *WORLD,
        "task=sample",
        "task.split=test",
        "task.n=2048",
        f"paths.runs={tmp_path}",
    ]
    assert main(words) == 0
    metrics = json.loads((the_folder(tmp_path, "exact-base.sample") / "run.json").read_text())["metrics"]
    assert metrics["best_of_1/exact_kl"] == pytest.approx(0, abs=1e-9)
    for n in (1, 2, 4, 8):
        exact, estimate = metrics[f"best_of_{n}/exact_score"], metrics[f"best_of_{n}/score"]
        assert estimate == pytest.approx(exact, abs=0.05), n
        assert metrics[f"best_of_{n}/exact_kl"] <= metrics[f"best_of_{n}/kl_bound"] == kl_bound(n)
    gain = metrics["best_of_8/exact_score"] - metrics["best_of_1/exact_score"]
    assert gain > 0.2, "the tolerance above would tell nothing"


def test_exact_figures_are_of_the_distribution_that_is_drawn_from():
    """Of the tempered policy: the mean length of 4000 replies. None where replies are drawn or cut in another way."""

    def exact(**changed: Any) -> Any:
        settings = {"n": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": None}
        cfg = OmegaConf.create({"task": settings | changed})
        return _exact(cfg, policy, SimpleNamespace(source=SimpleNamespace(world=world)), lengths, gold=False)

    def lengths(prompts: Any, replies: Any) -> torch.Tensor:
        return torch.tensor([float(len(reply)) for reply in replies])

    world, policy = make_world(), tiny_policy()
    ids = torch.ones(4000, 1, dtype=torch.int64)
    prompts = PromptBatch(ids, ids.bool(), torch.arange(4000), ("a",) * 4000)
    generator = torch.Generator().manual_seed(1)
    drawn = generate(policy, prompts, max_new_tokens=3, temperature=2.0, generator=generator).responses
    found = exact(temperature=2.0)[1].score
    assert found == pytest.approx(float(lengths([], drawn).mean()), abs=0.06)  # three errors
    assert abs(found - exact()[1].score) > 0.2, "the tolerance above would tell nothing"
    assert exact(max_new_tokens=3) == exact()
    for other in ({"top_k": 2}, {"top_p": 0.9}, {"max_new_tokens": 2}):
        assert exact(**other) is None


def test_another_reward_other_prompts_and_a_model_folder(whole: Path, tmp_path: Path):
    """A model that is no run has no data: it is given some, and a reward."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "How do I"}\n{"prompt": "What is"}\n')
    model = the_folder(whole, "quickstart-sft") / "model"
    words = ["task=sample", f"task.run={model}", "task.n=2", "data@task.data=prompts", "task.data.max_new_tokens=5"]
    words += [f"task.data.source.train={tmp_path}/prompts.jsonl", "task.data.validation_fraction=0"]
    words += ["method/reward@task.reward=length", "task.reward.unit=characters", f"paths.runs={tmp_path}", "name=mine"]
    assert main(words) == 0
    scored = lines(the_folder(tmp_path, "mine.sample") / "samples" / "scored.jsonl")
    assert [reply["prompt"] for reply in scored] == ["How do I"] * 2 + ["What is"] * 2
    assert all(reply["score"] == len(reply["response"]) and "gold" not in reply for reply in scored)


def test_gold_is_kept_beside_the_score_of_another_reward(whole: Path):
    words = [*SAMPLE, "method/reward@task.reward=length", "name=long", f"paths.runs={whole}"]
    assert main(words) == 0
    folder = the_folder(whole, "long.sample")
    plain = lines(the_folder(whole, "quickstart-sft.sample") / "samples" / "scored.jsonl")
    assert [reply["gold"] for reply in lines(folder / "samples" / "scored.jsonl")] == [r["score"] for r in plain]
    assert (folder / "report" / "tables" / "best_of_n.csv").read_text().startswith("n,score,score low,score high,gold")


def test_a_chat_endpoint_gives_ai_feedback_and_is_paid_once(whole: Path, tmp_path: Path):
    """A judge that prefers the shorter reply; unable to answer at first, then asked only for what it has not said."""
    down = True

    def shorter(question: str, number: int) -> Any:
        if down and number >= 20:
            return (400, {}, "out of money")
        one, two = (part.partition("[End of reply")[0] for part in question.split("[Start of reply ")[1:])
        return "[[C]]" if len(one) == len(two) else "[[A]]" if len(one) < len(two) else "[[B]]"

    with chat_server(shorter) as server:
        words = [*SAMPLE, "evaluation/judge@task.judge=endpoint", "task.judge.model=tiny", f"paths.runs={whole}"]
        words += [f"task.judge.base_url={server.url}", "task.judge.api_key_env=null", "name=judged"]
        words += ["task.judge.concurrency=1"]
        assert main(words) == 1
        down = False
        assert main(words) == 0
    folder = the_folder(whole, "judged.sample")
    scored = lines(folder / "samples" / "scored.jsonl")
    assert len(lines(folder / "samples" / "judge_answers.jsonl")) == len(server.requests) - 1
    plain = lines(the_folder(whole, "quickstart-sft.sample") / "samples" / "scored.jsonl")
    assert [reply["gold"] for reply in scored] == [reply["score"] for reply in plain]
    for start in range(0, len(scored), 3):
        group = scored[start : start + 3]
        assert sum(reply["score"] for reply in group) == pytest.approx(1.5)
        by_length = sorted(group, key=lambda reply: len(reply["response"]))
        assert by_length[0]["score"] >= by_length[-1]["score"]
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    assert metrics["num_judged"] == 36 and metrics["num_unjudged"] == 0 and metrics["judge_consistency"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluation/judge@task.judge=gold", "task.n=1"], "task.n=1: a judge compares"),
        (["evaluation/judge@task.judge=gold", "method/reward@task.reward=length"], "choose one"),
        (["task.split=tests"], "task.split=tests: allowed are"),
        (["task.n=0"], "task.n=0: expected"),
        (["task.num_prompts=0"], "task.num_prompts=0: expected"),
        (["task.select.margin=-1"], "task.select.margin=-1: expected"),
    ],
)
def test_what_cannot_be_is_told_before_a_model_is_loaded(
    words: list[str], said: str, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from alignlab.models import saving

    monkeypatch.setattr(saving, "load_policy", lambda *_: pytest.fail("a model was loaded"))
    assert main([*SAMPLE, *words, f"paths.runs={whole}"]) != 0
    assert said in capsys.readouterr().err


def test_a_folder_without_data_or_reward_says_what_to_do(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = the_folder(whole, "quickstart-sft") / "model"
    assert main(["task=sample", f"task.run={model}", f"paths.runs={tmp_path}"]) == 2
    assert "data@task.data=prompts" in capsys.readouterr().err
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "How"}\n')
    words = ["data@task.data=prompts", f"task.data.source.train={tmp_path}/prompts.jsonl"]
    assert main(["task=sample", f"task.run={model}", *words, f"paths.runs={tmp_path}"]) == 2
    assert "method/reward@task.reward=length" in capsys.readouterr().err


def test_what_draws_changes_the_key_and_the_training_stays():
    planner = Planner(roots())

    def keys(*words: str) -> tuple[str, str]:
        target = planner.target(["experiments=quickstart/dpo", "task=sample", *words])
        [of] = target.needs["of"]
        return target.key, of.key

    plain, trained = keys()
    assert trained == planner.target(["experiments=quickstart/dpo"]).key
    for word in ("task.n=5", "task.batch_size=3", "task.select.margin=1", "method/reward@task.reward=length"):
        key, of = keys(word)
        assert key != plain and of == trained, word


def test_a_lexicon_of_another_content_is_another_key(tmp_path: Path):
    lexicon = tmp_path / "words.txt"
    found = []
    for text in ("good\t1\n", "good\t2\n"):
        lexicon.write_text(text)
        words = ["task=sample", "method/reward@task.reward=lexicon", f"task.reward.path={lexicon}"]
        found.append(Planner(roots()).target(["experiments=quickstart/sft", *words]).key)
    assert found[0] != found[1]


def test_a_run_that_is_not_there_is_told_at_once(capsys: pytest.CaptureFixture[str]):
    assert main(["task=sample", "task.run=nowhere", "method/reward@task.reward=length"]) == 2
    assert "task.run: nowhere: there is no such folder" in capsys.readouterr().err
