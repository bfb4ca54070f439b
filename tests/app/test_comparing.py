"""`evaluation.against` and `evaluation/judge` by the real command, on a tiny world."""

import json
from pathlib import Path

import pytest

from alignlab.app.cli import main
from tests.rollout.chat_server import chat_server
from tests.test_readme import SMALL

SFT = ["experiments=quickstart/sft", *SMALL, "hardware.progress=false"]
EVALUATE = ["task=evaluate", "evaluation.num_prompts=6", "~evaluation.needs.reward", "evaluation.proxy=null"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory):
    """A folder with an untrained and a trained run."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("comparing")
        patch.chdir(folder)
        patch.setenv("no_proxy", "*")
        assert main([*SFT, "method.max_steps=0", "name=untrained"]) == main(SFT) == 0
        yield folder


def newest(here: Path, name: str) -> Path:
    return max((path.parent for path in here.glob(f"runs/{name}-*/run.json")), key=lambda path: path.stat().st_mtime)


def evaluated(here: Path, *words: str) -> tuple[dict[str, float], Path]:
    """Metrics of an evaluation of the SFT run, and its folder."""
    assert main([*SFT, *EVALUATE, *words]) == 0
    folder = newest(here, "quickstart-sft.evaluate")
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    return {name.removeprefix("test/"): value for name, value in metrics.items()}, folder


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_against_itself_it_wins_half_and_against_the_untrained_model_gold_tells(here: Path):
    own, folder = evaluated(here, f"evaluation.against={newest(here, 'quickstart-sft')}")
    assert own["win_rate"] == own["win_rate_length_controlled"] == 0.5 and own["tie_rate"] == 1.0
    assert own["perplexity_drift"] == 1.0 and own["perplexity_heldout"] > 1
    metrics, folder = evaluated(here, f"evaluation.against={newest(here, 'untrained')}")
    samples, verdicts = lines(folder / "eval" / "samples.jsonl"), lines(folder / "eval" / "verdicts.jsonl")
    assert [each["response"] for each in samples] == [each["response"] for each in verdicts]
    assert all(each["response"] != each["other"] for each in verdicts)
    wins = [(one > other) + 0.5 * (one == other) for one, other in (each["why"]["scores"] for each in verdicts)]
    assert metrics["win_rate"] == pytest.approx(sum(wins) / 6) and metrics["num_compared"] == 6
    gains = [one - other for one, other in (each["why"]["scores"] for each in verdicts)]
    assert metrics["gold_gain"] == pytest.approx(sum(gains) / 6, abs=1e-6)


def test_an_evaluation_is_compared_by_its_samples_and_a_need_may_name_it(here: Path):
    need = (
        "+evaluation.needs={other:{experiments:quickstart/base,inherit:[model,data,seed],"
        "override:{task:evaluate,evaluation:{num_prompts:6}}}}"
    )
    metrics, folder = evaluated(here, need, "evaluation.against=${evaluation.needs.other.path}")
    other = newest(here, "quickstart-base.evaluate")
    replies = [each["response"] for each in lines(other / "eval" / "samples.jsonl")]
    assert [each["other"] for each in lines(folder / "eval" / "verdicts.jsonl")] == replies
    assert metrics["num_compared"] == 6


def test_a_judge_endpoint_compares_with_the_dataset_and_is_not_paid_twice(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")

    def shorter(asked: str, number: int) -> object:
        if number == 4:
            return (400, {}, "out of money")
        first, second = (asked.split(f"[Start of reply {name}]\n")[1].split("\n[End of")[0] for name in "AB")
        return f"It is short. [[{'A' if len(first) < len(second) else 'B'}]]"

    with chat_server(shorter) as server:
        words = ["evaluation.against=dataset", "evaluation/judge=endpoint", "evaluation.judge.model=tiny"]
        words += [f"evaluation.judge.base_url={server.url}", "evaluation.judge.api_key_env=JUDGE_KEY"]
        assert main([*SFT, *EVALUATE, *words, "evaluation.judge.concurrency=1"]) == 1
        assert len(server.requests) == 5
        metrics, folder = evaluated(here, *words)  # how many are asked at once is not in the key
        assert len(server.requests) == 5 + 8
    verdicts = lines(folder / "eval" / "verdicts.jsonl")
    won = [len(each["response"]) < len(each["other"]) for each in verdicts if each["response"] != each["other"]]
    assert [each["verdict"] for each in verdicts] == [float(each) for each in won]
    assert metrics["judge_consistency"] == 1.0 and metrics["judge_first_share"] == 0.5
    assert metrics["win_rate"] == pytest.approx(sum(won) / 6)
    kept = "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())
    assert "JUDGE_KEY" in kept and "sk-secret" not in kept


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluation/judge=gold"], "nothing to judge; set evaluation.against"),
        (["evaluation.against=nowhere/at/all"], "nowhere/at/all: no such folder"),
        (["evaluation.against=dataset", "data.gold=null"], "no gold reward to judge by"),
        (
            ["evaluation.against=dataset", "evaluation/judge=endpoint", "evaluation.judge.model=m"],
            "api_key_env=OPENAI_API_KEY: no such environment variable",
        ),
        (
            ["evaluation.against=dataset", "evaluation/judge=endpoint", "evaluation.judge.modell=m"],
            "did you mean model?",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    words: list[str], said: str, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def load(*_: object) -> None:
        raise AssertionError("a model is loaded")

    if "data.gold=null" in words:
        assert main([*SFT, words[1]]) == 0
    monkeypatch.setattr("alignlab.models.saving.load_policy", load)
    assert main([*SFT, *EVALUATE, *words]) in (1, 2)
    assert said in capfd.readouterr().err
