"""The small-scale chains of experiments/imdb_sentiment and experiments/length, a few steps each on made-up rows.

That their full-size files compose and pass the preflight is in test_conf.py.
"""

import csv
import gzip
import json
import random
from pathlib import Path

import pytest

import alignlab
from alignlab.app.api import Run
from tests.tiny_models import write_causal

SUBJECTS = ("film", "plot", "cast", "music", "end", "hero", "script")
WORDS = {0: ("bad", "dull", "awful", "poor"), 1: ("good", "fine", "lovely", "great")}
SHAPE = "{model_type:gpt2,n_embd:16,n_layer:1,n_head:2,n_positions:256}"
ENCODER = "{model_type:distilbert,dim:16,hidden_dim:32,n_layers:1,n_heads:2,max_position_embeddings:512}"
DEBERTA = ["model.architecture.hidden_size=16", "model.architecture.intermediate_size=32"]
EVALUATE = ["task=evaluate", "evaluation.num_prompts=4"]
POLICY = {"gold_reward", "gold_reward_low", "kl", "perplexity_reference", "distinct_2", "quality_rate"}


def review(label: int, number: int) -> str:
    draw = random.Random(1000 * label + number)
    return " ".join(f"The {draw.choice(SUBJECTS)} was {draw.choice(WORDS[label])}.<br /><br />" for _ in range(12))


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders and files with the names that the small-scale experiments read."""
    folder = tmp_path_factory.mktemp("data")
    for number, split in enumerate(("train", "unsup", "test")):
        rows = [{"text": review(label, 100 * number + i), "label": label} for i in range(12) for label in (0, 1)]
        write_rows(folder / "imdb" / f"{split}.jsonl.gz", rows)
    weights = {word: (1.0 if label else -1.0) for label, words in WORDS.items() for word in words}
    (folder / "reward-imdb-bow").mkdir()
    (folder / "reward-imdb-bow" / "weights.json").write_text(json.dumps({"bias": 0.0, "weights": weights}))
    pairs = [{"prompt": f"a {word} day", "chosen": " sun", "rejected": " rain"} for word in (*WORDS[0], *WORDS[1])]
    tones = [{"instruction": f"say {i}", "chosen": f"Please, {i}.", "rejected": f"What? {i}!"} for i in range(12)]
    for split in ("train", "test"):
        write_rows(folder / "pref-stories-sentiment" / f"{split}.jsonl", pairs)
        write_rows(folder / "pref-instruct-tone" / f"{split}.jsonl", tones)
    write_causal(folder / "models" / "stories260K")
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, data: Path):
    """Runs an experiment in a folder of its own; its run."""
    runs = tmp_path_factory.mktemp("runs")

    def run(experiment: str, *overrides: str) -> Run:
        shared = [f"paths.data={data}", f"paths.runs={runs}", "hardware.progress=false", "hardware.threads=1"]
        return alignlab.run([f"experiments={experiment}", *shared, *overrides])

    return run


@pytest.fixture(scope="module")
def base(here) -> Run:
    sizes = [f"model.architecture={SHAPE}", "model.tokenizer.vocab_size=300", "data.max_length=64"]
    return here("imdb_sentiment/base", *sizes, "data.batch_size=8", "method.max_steps=3", "task.validations=0")


@pytest.fixture(scope="module")
def reward(here, base: Run) -> Run:
    sizes = [f"model.architecture={ENCODER}", "data.batch_size=4", "method.max_steps=6", "task.validations=0"]
    return here("imdb_sentiment/small/reward", f"needs.base.path={base.path}", *sizes)


def test_the_base_has_the_tokenizer_that_was_learnt_and_its_figures_say_what_it_saw(base: Run):
    assert base.metrics["tokens"] == 3 * 8 * 64  # every review is longer than max_length
    assert base.metrics["test/perplexity"] > 1
    policy = base.load_policy()
    assert len(policy.tokenizer) == 300
    assert policy.tokenizer.decode(policy.tokenizer("The plot was dull.")["input_ids"][1:]) == "The plot was dull."


def test_the_base_is_evaluated_on_beginnings_of_reviews_by_gold_and_proxy(here, base, reward):
    sizes = [f"model.architecture={SHAPE}", "model.tokenizer.vocab_size=300", "data.max_length=64"]
    training = [*sizes, "data.batch_size=8", "method.max_steps=3"]
    found = here("imdb_sentiment/base", *training, *EVALUATE, f"++evaluation.needs.reward.path={reward.path}")
    assert {f"test/{name}" for name in (*POLICY, "proxy_reward")} <= found.metrics.keys()
    assert found.metrics["test/kl"] == 0
    samples = [json.loads(line) for line in (found.path / "eval" / "samples.jsonl").open()]
    assert all(len(sample["prompt"].split()) == 6 and "<br" not in sample["prompt"] for sample in samples)
    assert max(sample["length"] for sample in samples) <= 40


def test_the_reward_model_reads_the_tokenizer_of_the_base(reward: Run):
    assert reward.metrics["test/num_pairs"] == 12
    assert 0 <= reward.metrics["test/accuracy"] <= 1


@pytest.fixture(scope="module")
def samples(here, base, reward) -> Run:
    given = [f"needs.policy.path={base.path}", f"needs.reward.path={reward.path}"]
    return here("imdb_sentiment/small/samples", *given, "task.num_prompts=6", "task.n=3")


def test_dpo_learns_from_the_base_s_own_replies_and_keeps_its_adapter_apart(here, base, reward, samples):
    given = [f"needs.{name}.path={run.path}" for name, run in (("sft", base), ("reward", reward), ("samples", samples))]
    steps = ["data.batch_size=2", "method.max_steps=2"]
    found = here("imdb_sentiment/small/dpo", *given, *steps, *EVALUATE)
    assert {f"test/{name}" for name in (*POLICY, "proxy_reward")} <= found.metrics.keys()
    dpo = here("imdb_sentiment/small/dpo", *given, *steps)
    assert (dpo.path / "adapter").is_dir() and not (dpo.path / "model").exists()


def test_ppo_steers_its_learning_rate_and_its_penalty_and_never_sees_gold(here, base, reward):
    given = [f"needs.sft.path={base.path}", f"needs.reward.path={reward.path}"]
    steps = ["data.batch_size=8", "method.max_steps=2", "method.minibatch_size=4", "task.validations=0"]
    found = here("imdb_sentiment/small/ppo", *given, *steps, "task.samples.final_prompts=4")
    logged = [json.loads(line) for line in (found.path / "metrics.jsonl").open()]
    assert {"train/kl", "train/score", "train/kl_coefficient", "train/lr"} <= logged[-1].keys()
    other = here("imdb_sentiment/small/ppo", *given, *steps, "task.samples.final_prompts=4", "data.gold.scale=1.0")
    again = [json.loads(line) for line in (other.path / "metrics.jsonl").open()]
    assert [line["train/score"] for line in logged] == [line["train/score"] for line in again]


def test_length_is_measured_before_and_after_and_the_reward_model_has_its_own_tokenizer(here):
    short = ["data.max_new_tokens=8", "data.max_length=64", "evaluation.num_prompts=4"]
    deberta = [*DEBERTA, "model.tokenizer.vocab_size=280", "method.max_steps=2"]
    small = {
        "base": short,
        "ppo": [*short, "data.batch_size=4", "method.max_steps=2", "method.minibatch_size=4"],
        "reward": deberta,
        "reward_on_train": deberta,
    }
    typed = [f"needs.{need}.override.{word}" for need, words in small.items() for word in words]
    table = here("length/small", *(f"++{word}" for word in typed))
    with (table.path / "report" / "tables" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["policy"] for row in rows] == ["base", "ppo"]
    assert all(0 < float(row["response_length"]) <= 8 and row["quality_rate"] for row in rows)
    assert all(float(row["gold_reward"]) <= 0 for row in rows)  # minus a number of words
    with (table.path / "report" / "tables" / "reward.csv").open() as file:
        assert [row["reward_model"] for row in csv.DictReader(file)] == ["reward", "reward_on_train"]
