"""`alignlab chat`: what is refused before anything is loaded, what is printed, and the commands of the console."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from alignlab.app.cli import main
from alignlab.app.runs.runfolder import as_json
from alignlab.evaluate.quality import QualityFilter
from alignlab.evaluate.speaker import Speaker
from alignlab.models.adapters import LoRA
from alignlab.models.policy import Policy
from alignlab.models.reward_model import RewardModel
from alignlab.models.saving import save_policy, save_reward_model
from tests import tiny_models as tiny

CHAT = "alignlab.data.formats.chat.demonstration"
METHODS = {"policy": "alignlab.methods.sft.SFT", "reward_model": "alignlab.methods.reward.Reward"}


def write_run(folder: Path, *, produces: str = "policy", start: Path | None = None, format: str = CHAT, **record: Any):
    """A finished training as `chat` reads it: run.json, config.yaml, and model/."""
    folder.mkdir(parents=True)
    told = {"status": "done", "task": "train", "key": folder.name.rpartition("-")[2], "overrides": [], **record}
    (folder / "run.json").write_text(as_json(told))
    source = {"_target_": "alignlab.data.sources.Files", "format": {"_target_": format, "_partial_": True}}
    data = {"source": source, "template": "auto", "add_bos": "auto", "max_prompt_length": None, "max_new_tokens": 9}
    model = {"_target_": "alignlab.models.source.ModelSource", "_partial_": True, "revision": None}
    model |= {"init_from": None if start is None else str(start)}
    config = {"seed": 0, "data": data, "model": model, "method": {"_target_": METHODS[produces], "_partial_": True}}
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sft-1 (chat template), dpo-2 from it (LoRA, untouched), text-3 (plain text), reward-4."""
    root = tmp_path_factory.mktemp("runs")
    tokenizer = tiny.tiny_tokenizer(chat=True)
    sft = write_run(root / "sft-1")
    save_policy(Policy(tiny.tiny_causal(seed=1), tokenizer=tokenizer, stop_token_ids=(2,)), sft)
    dpo = write_run(root / "dpo-2", start=Path("runs/sft-1"))  # a path of another working directory
    save_policy(Policy(tiny.tiny_causal(seed=2), tokenizer=tokenizer, stop_token_ids=(2,)), dpo)
    text = write_run(root / "text-3", format="alignlab.data.formats.plain.text", start=sft)
    model = LoRA(4, alpha=16.0).attach(tiny.tiny_causal(seed=3), "causal", seed=0)
    save_policy(Policy(model, tokenizer=tokenizer, stop_token_ids=(2,)), text)
    reward = write_run(root / "reward-4", produces="reward_model")
    save_reward_model(RewardModel(tiny.tiny_classifier(), tokenizer=tokenizer), reward)
    return root


def said(capsys: pytest.CaptureFixture[str], *words: Any, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["chat", *map(str, words)]) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


def lines(capsys: pytest.CaptureFixture[str], *words: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said(capsys, *words, "--json").splitlines()]


def test_two_runs_answer_the_same_messages_and_each_keeps_its_own_dialogue(runs: Path, capsys):
    talk = ("--prompt", "hi", "--prompt", "and you", "--reward", runs / "reward-4")
    both = lines(capsys, runs / "sft-1", runs / "dpo-2", *talk)
    assert [(reply["run"], reply["message"]) for reply in both] == [
        *(("sft-1", "hi"), ("dpo-2", "hi"), ("sft-1", "and you"), ("dpo-2", "and you"))
    ]
    for name in ("sft-1", "dpo-2"):
        alone = lines(capsys, runs / name, *talk)
        assert [{**reply, "gap": None} for reply in both if reply["run"] == name] == alone
    for reply in both:
        assert isinstance(reply["reward"], float) and 1 <= reply["length"] <= 9
        assert reply["complete"] or reply["length"] == 9
        if reply["run"] == "sft-1":
            assert reply["kl"] is None  # it started from random weights
        else:  # and the other from sft-1, found beside it
            assert reply["kl"] == pytest.approx(reply["gap"], abs=1e-4) and abs(reply["kl"]) > 0.1
    assert all(reply["kl"] is None for reply in lines(capsys, runs / "dpo-2", *talk, "--no-kl"))


def test_an_adapter_is_held_against_what_it_stands_on(runs: Path, capsys):
    [reply] = lines(capsys, runs / "text-3", "--prompt", "once")
    assert reply["kl"] == 0.0  # a fresh LoRA changes nothing


def test_settings_reach_the_sampler(runs: Path, capsys):
    def responses(*words: str) -> list[str]:
        return [reply["response"] for reply in lines(capsys, runs / "sft-1", "--prompt", "hi", *words)]

    greedy = responses("greedy=true", "seed=1")
    assert greedy == responses("greedy=true", "seed=2") == responses("top_k=1") == responses("top_p=0.000001")
    assert len({*responses("seed=1"), *responses("seed=2"), *responses("seed=3")}) == 3
    assert responses("seed=1", "temperature=3.0") != responses("seed=1")
    [short] = lines(capsys, runs / "sft-1", "--prompt", "hi", "max_new_tokens=2")
    assert short["length"] == 2


def test_the_filter_puts_a_sentence_in_place_of_a_spoilt_reply(runs: Path, capsys):
    ask = (runs / "sft-1", "--prompt", "hi", "greedy=true", "max_new_tokens=100")
    [plain], [filtered] = lines(capsys, *ask), lines(capsys, *ask, "--filter")
    assert plain["problems"] is None and plain["shown"] == plain["response"] == filtered["response"]
    assert filtered["problems"] and filtered["shown"] == QualityFilter().fallback
    text = said(capsys, *ask, "--filter")
    assert text.startswith(QualityFilter().fallback + "\n") and text.rstrip().endswith("replaced]")


def test_a_frame_takes_the_formats_place(runs: Path, capsys):
    ask = (runs / "text-3", "greedy=true", "--prompt")
    framed = lines(capsys, *ask, "hi", "--frame", r"q: {message}\na:")
    assert framed[0]["response"] == lines(capsys, *ask, "q: hi\na:")[0]["response"]
    assert framed[0]["response"] != lines(capsys, *ask, "hi")[0]["response"]


def test_commands_work_in_a_script(runs: Path, capsys, tmp_path: Path):
    file = tmp_path / "dialogue.jsonl"
    script = ["hi", "/reset", "hi", "and", f"/save {file}", "/quit", "never"]
    replies = lines(capsys, runs / "sft-1", "greedy=true", *(w for text in script for w in ("--prompt", text)))
    assert [reply["message"] for reply in replies] == ["hi", "hi", "and"]
    assert replies[0]["response"] == replies[1]["response"]
    [saved] = [json.loads(line) for line in file.read_text().splitlines()]
    assert saved["run"] == "sft-1"
    assert [turn["role"] for turn in saved["messages"]] == ["user", "assistant"] * 2
    assert saved["messages"][3]["content"] == replies[2]["response"]
    assert "already" in said(capsys, runs / "sft-1", "--prompt", f"/save {file}", code=2)
    assert "did you mean /reset?" in said(capsys, runs / "sft-1", "--prompt", "/rest", code=2)


def test_two_slashes_begin_a_message_with_one(runs: Path, capsys):
    told = lines(capsys, runs / "sft-1", "greedy=true", "--prompt", "//reset the pump //now", "--prompt", " // a")
    assert [reply["message"] for reply in told] == ["/reset the pump //now", " / a"]


def test_lines_that_are_piped_in_are_messages(runs: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n\nand\n"))
    out = said(capsys, runs / "sft-1", runs / "dpo-2", "greedy=true")
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n\nand\n"))
    told = lines(capsys, runs / "sft-1", runs / "dpo-2", "greedy=true")
    assert len(told) == 4 and out.count("tokens") == 4
    for reply in told:
        assert f"{reply['run']}: {reply['response']}\n  [{reply['length']} tokens" in out


class Typist(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_fault_does_not_end_a_typed_chat(runs: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    typed = iter(["/sav", "x" * 130, "hi", "/help"])

    def read(_prompt: str) -> str:
        for line in typed:
            return line
        raise EOFError

    monkeypatch.setattr("sys.stdin", Typist())
    monkeypatch.setattr("builtins.input", read)
    assert main(["chat", str(runs / "sft-1")]) == 0
    out, err = capsys.readouterr()
    assert "did you mean /save?" in err and "pass the network's 128 positions" in err
    assert out.count("tokens") == 1 and "/reset       forget" in out


def test_what_cannot_work_is_refused_before_a_model_is_loaded(runs: Path, capsys, tmp_path, monkeypatch):
    def never(*_args: Any, **_more: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("alignlab.models.saving.load_policy", never)
    sft, reward = runs / "sft-1", runs / "reward-4"
    unfinished = write_run(tmp_path / "sft-5", status="failed")
    table = write_run(tmp_path / "table-6", task="table")
    for words, told in (
        ((), "which run?"),
        ((sft, sft, sft), "3 runs"),
        (("nowhere",), "nowhere: there is no finished run here (missing)"),
        ((unfinished,), "no finished run here (failed)"),
        ((table,), "this is a table"),
        ((reward,), "trained a reward model, not a policy; only a policy can answer"),
        ((sft, "--reward", sft), "trained a policy, not a reward model; --reward takes one"),
        ((sft, "temprature=1"), "did you mean temperature?"),
        ((sft, "temperature=warm"), "temperature=warm: expected a number"),
        ((sft, "greedy=yes"), "greedy=yes: expected true or false"),
        ((sft, "temperature=0"), "must be positive"),
        ((sft, "top_p=2"), "must be in (0, 1]"),
        ((sft, "max_new_tokens=0"), "must be at least 1"),
        ((sft, "--frame", "Q:"), "must hold {message}"),
        ((sft, "--prompt", "x" * 130), "pass the network's 128 positions"),
        ((sft, "--prompt", "hi", "max_new_tokens=200"), "pass the network's 128 positions"),
    ):
        assert told in said(capsys, *words, code=2), told


def test_an_evaluation_stands_for_the_run_that_it_measured(runs: Path, capsys, tmp_path: Path):
    moved = {"of": [{"folder": f"elsewhere/{runs.name}/dpo-2"}]}  # the runs were moved: it lies beside the evaluation
    evaluation = write_run(runs / "dpo.evaluate-7", task="evaluate", parents=moved)
    of_reward = {"of": [{"folder": str(runs / "reward-4")}]}
    judge = write_run(tmp_path / "reward.evaluate-8", task="evaluate", parents=of_reward)
    words = ("--prompt", "hi", "--json", "seed=3")
    through = said(capsys, evaluation, "--reward", judge, *words)
    assert through == said(capsys, runs / "dpo-2", "--reward", runs / "reward-4", *words)
    lost = write_run(tmp_path / "lost-9", task="evaluate", parents={"of": [{"folder": "gone/sft-0"}]})
    assert "gone/sft-0: there is no finished run here (missing)" in said(capsys, lost, code=2)


def test_help_tells_settings_and_commands(capsys):
    out = said(capsys, "--help")
    for word in ("--reward RUN", "temperature=1.0", "/save FILE", "--prompt TEXT", "--json"):
        assert word in out


def test_a_stopped_reply_is_kept_by_neither_run(runs: Path, capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    typed = iter(["hi", "stop me", f"/save {tmp_path / 'said'}"])

    def read(_prompt: str) -> str:
        for line in typed:
            return line
        raise EOFError

    answer = Speaker.answer

    def stopped(self: Speaker, message: str, *args: Any, **more: Any):
        if message == "stop me" and calls.count(message) == 1:  # the second run's turn
            raise KeyboardInterrupt
        calls.append(message)
        return answer(self, message, *args, **more)

    calls: list[str] = []
    monkeypatch.setattr(Speaker, "answer", stopped)
    monkeypatch.setattr("sys.stdin", Typist())
    monkeypatch.setattr("builtins.input", read)
    assert main(["chat", str(runs / "sft-1"), str(runs / "dpo-2")]) == 0
    assert calls == ["hi", "hi", "stop me"] and "(stopped)" in capsys.readouterr().out
    saved = [json.loads(line)["messages"] for line in (tmp_path / "said").read_text().splitlines()]
    assert [[turn["content"] for turn in turns][0::2] for turns in saved] == [["hi"], ["hi"]]
