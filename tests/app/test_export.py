"""`alignlab export`: others load what it writes and compute the same; the commands name what is there."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignlab.app.cli import main
from alignlab.evaluate.policy import PolicyEvaluation
from alignlab.evaluate.saving import save_evaluation
from alignlab.models.adapters import LoRA
from alignlab.models.policy import Policy
from alignlab.models.reward_model import RewardModel, TextFormat
from alignlab.models.saving import load_policy, save_policy, save_reward_model
from alignlab.rollout.rewards.model import ModelReward
from tests import tiny_models as tiny
from tests.app.test_chat import write_run

PLAIN, HH = "alignlab.data.formats.plain.preference", "alignlab.data.formats.hh.transcripts"


def adapted(kind: str, *, classifier: bool = False) -> Any:
    """A network with a LoRA adapter that changes what it computes."""
    made = tiny.tiny_classifier(kind) if classifier else tiny.tiny_causal(kind)
    model = LoRA(4, alpha=16.0).attach(made, "classifier" if classifier else "causal", seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    return model


def reward_run(root: Path, kind: str, *, lora: bool = False, format: str = PLAIN, eos: bool = True, pad: bool = True):
    folder = write_run(root / f"reward-{kind}", produces="reward_model", format=format)
    config = OmegaConf.load(folder / "config.yaml")
    config.data.template = "plain"
    OmegaConf.save(config, folder / "config.yaml")
    model = adapted(kind, classifier=True) if lora else tiny.tiny_classifier(kind)
    tokenizer = tiny.tiny_tokenizer()
    if not pad:
        tokenizer.pad_token = tokenizer.eos_token
    reward = RewardModel(model, tokenizer=tokenizer, text_format=TextFormat("plain", append_eos=eos, max_length=64))
    reward.gain.fill_(2.0)
    reward.bias.fill_(-1.0)
    save_reward_model(reward, folder)
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: Any, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["export", *map(str, words)]) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


def test_a_merged_adapter_is_a_model_that_transformers_loads(tmp_path: Path, capsys):
    run = write_run(tmp_path / "dpo-1")
    save_policy(Policy(adapted("llama"), tokenizer=tiny.tiny_tokenizer(), stop_token_ids=(2,)), run)
    said(capsys, run, "--merge", tmp_path / "whole")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    ids = torch.tensor([[1, 5, 9, 12, 30]])
    with torch.no_grad():
        logits, own = theirs(ids).logits, load_policy(run).model(ids).logits
        base = tiny.tiny_causal("llama")(ids).logits
    assert torch.allclose(logits, own, atol=1e-4) and not torch.allclose(logits, base, atol=1e-1)
    assert not (tmp_path / "whole" / "adapter_config.json").exists()
    assert "dpo-1" in (tmp_path / "whole" / "README.md").read_text()
    assert "it is there already" in said(capsys, run, "--merge", tmp_path / "whole", code=2)


def model_args(command: str) -> dict[str, str]:
    words = shlex.split(command)
    return dict(pair.split("=", 1) for pair in words[words.index("--model_args") + 1].split(","))


def test_the_harness_is_told_of_the_base_and_the_adapter(tmp_path: Path, capsys):
    whole = write_run(tmp_path / "sft-1")
    save_policy(Policy(tiny.tiny_causal(), tokenizer=tiny.tiny_tokenizer(chat=True), stop_token_ids=(2,)), whole)
    out = said(capsys, whole, "--for", "lm-eval")
    command = (whole / "export" / "lm-eval" / "command.sh").read_text().strip()
    assert command in out and command.startswith("lm_eval --model hf ") and "--apply_chat_template" in command
    assert model_args(command) == {"pretrained": str(whole / "model")}
    lora = write_run(tmp_path / "dpo-2")
    save_policy(Policy(adapted("llama"), tokenizer=tiny.tiny_tokenizer(), stop_token_ids=(2,)), lora)
    said(capsys, lora, "--for", "lm-eval")
    command = (lora / "export" / "lm-eval" / "command.sh").read_text().strip()
    args = model_args(command)
    assert args == {
        name: str(lora / part) for name, part in [("pretrained", "base"), ("peft", "adapter"), ("tokenizer", "adapter")]
    }
    assert "--apply_chat_template" not in command
    from peft import PeftModel

    ids = torch.tensor([[1, 5, 9, 12, 30]])
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(args["pretrained"]), args["peft"])
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, load_policy(lora).model(ids).logits, atol=1e-4)


def test_the_replies_of_an_evaluation_become_alpacaevals_outputs(tmp_path: Path, capsys):
    samples = [
        {"prompt": [{"role": "user", "content": "Hi"}], "response": " Hello."},
        {"prompt": "Once", "response": " upon"},
    ]
    save_evaluation(tmp_path / "run-1", "policy", PolicyEvaluation({}, samples))
    out = said(capsys, tmp_path / "run-1", "--for", "alpaca-eval")
    path = tmp_path / "run-1" / "export" / "alpaca-eval" / "model_outputs.json"
    assert json.loads(path.read_text()) == [
        {"instruction": "Hi", "output": "Hello.", "generator": "run-1"},
        {"instruction": "Once", "output": "upon", "generator": "run-1"},
    ]
    assert f"alpaca_eval --model_outputs {path} " in out and "--reference_outputs" in out
    assert "no samples here" in said(capsys, tmp_path / "nowhere", "--for", "alpaca-eval", code=1)


def test_fresh_answers_to_ones_own_instructions(tmp_path: Path, capsys):
    run = write_run(tmp_path / "sft-1")
    save_policy(Policy(tiny.tiny_causal(), tokenizer=tiny.tiny_tokenizer(chat=True), stop_token_ids=(2,)), run)
    asked = tmp_path / "alpaca_eval.json"
    asked.write_text(json.dumps([{"instruction": "hi", "dataset": "a"}, {"instruction": "add", "input": "1 2"}]))
    words = (run, "--for", "alpaca-eval", "--prompts", asked, "temperature=0.5", "max_new_tokens=4")
    said(capsys, *words)
    path = run / "export" / "alpaca-eval" / "model_outputs.json"
    outputs = json.loads(path.read_text())
    assert [set(row) for row in outputs] == [
        {"instruction", "output", "generator", "dataset"},
        {"instruction", "output", "generator"},
    ]
    assert [row["instruction"] for row in outputs] == ["hi", "add"] and all(len(row["output"]) <= 4 for row in outputs)
    said(capsys, *words)
    assert json.loads(path.read_text()) == outputs
    asked.write_text('[{"prompt": "hi"}]')
    assert "row 1: field 'instruction'" in said(capsys, *words, code=1)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("llama", {}),
        ("llama", {"format": HH, "eos": False}),
        ("gpt2", {"lora": True}),
        ("llama", {"pad": False}),
        ("distilbert", {"eos": False}),
    ],
)
def test_transformers_alone_scores_as_the_run_does(kind: str, how: dict[str, Any], tmp_path: Path, capsys):
    """In RewardBench's way: chat template, tokenizer, left padding where it pads, raw scores."""
    run = reward_run(tmp_path, kind, **how)
    out = said(capsys, run, "--for", "reward-bench")
    folder = run / "export" / "reward-bench" / "model"
    command = (run / "export" / "reward-bench" / "command.sh").read_text()
    size = 8 if kind == "llama" else 1  # the others count padding as positions
    assert f"rewardbench --model={folder} --not_quantized --batch_size={size} --max_length=64" in command
    assert "THE SCORES DIFFER" not in out and "reward = 2 * score + -1" in out
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    prompts, replies = ["why?", "say a longer thing"], [" so it is", " no"]
    turns = [[{"role": "user", "content": p}, {"role": "assistant", "content": r}] for p, r in zip(prompts, replies)]
    texts = [tokenizer.apply_chat_template(turn, tokenize=False) for turn in turns]
    told = [tokenizer(texts[i : i + size], padding=True, return_tensors="pt") for i in range(0, 2, size)]
    with torch.no_grad():
        raw = torch.cat([model.eval()(**batch).logits[:, 0] for batch in told])
    asked = [f"\n\nHuman: {p}\n\nAssistant:" for p in prompts] if how.get("format") == HH else prompts
    own = ModelReward(str(run))(asked, replies)
    assert torch.allclose(2.0 * raw - 1.0, own, atol=1e-4), (raw, own)
    assert (raw[0] - raw[1]).abs() > 1e-2


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "what for?"),
        (["--for", "reward-bench"], "trained a policy, and reward-bench wants a reward model"),
        (["--for", "lm-eval", "--prompts", "x.json"], "only --for alpaca-eval"),
        (["--for", "alpaca-eval", "temperature=1"], "there are none"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], what: str, tmp_path: Path, capsys):
    run = write_run(tmp_path / "sft-1")
    assert what in said(capsys, run, *words, code=2)


def test_a_run_that_is_no_finished_training_is_refused(tmp_path: Path, capsys):
    assert "no finished run" in said(capsys, tmp_path, "--merge", tmp_path / "x", code=2)
    run = write_run(tmp_path / "table-1", task="table")
    assert "export takes the training" in said(capsys, run, "--merge", tmp_path / "x", code=2)
