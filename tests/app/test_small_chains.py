"""experiments/qlora_dpo and alpaca_dpo: the small-scale chains from end to end on a handful of made-up rows."""

import csv
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignlab.app.cli import main
from alignlab.app.configs.paths import roots
from alignlab.app.configs.spell import flat
from alignlab.app.planning.targets import Planner
from alignlab.models.reference import FrozenCopy
from alignlab.models.saving import load_policy
from tests import tiny_models as tiny

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
STAGES = {"alpaca_dpo": ("base", "sft", "reward", "dpo"), "qlora_dpo": ("base", "sft", "dpo", "dpo_sft")}
ROWS = tiny.tiny_sequences((11, 7, 5))


def write_rows(file: Path, count: int) -> None:
    """Instructions with an output and a pair of outputs, one of them rude."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        chosen = f"yes, the answer is {i}."
        rows.append({"instruction": f"say {i}", "input": "please" if i % 2 else "", "output": f"it is {i}."})
        rows[-1] |= {"chosen": chosen, "rejected": f"no! go away {i}"}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, with the special tokens of BERT."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: i for i, token in enumerate([*special, *tiny.CHARACTERS])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, special, strict=True)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `paths.data` is, with 12 rows a file."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("sft-alpaca-5k", "pref-instruct-tone"):
        write_rows(folder / name / "train.jsonl", 12)
        write_rows(folder / name / "test.jsonl", 6)
    tiny.tiny_tokenizer().save_pretrained(folder / "tokenizers" / "tinystories-4096")
    encoder_tokenizer().save_pretrained(folder / "tokenizers" / "bert-base-uncased")
    return folder


@pytest.fixture(scope="module", params=STAGES)
def chain(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory):
    """(name, runs folder, report folder) of a chain that has run."""
    name, runs = request.param, tmp_path_factory.mktemp(request.param)
    words = [f"experiments={name}/small", f"paths.data={data}", f"paths.runs={runs}", "hardware.progress=false"]
    assert main(words) == 0
    [report] = runs.glob(f"{name}-small-*/report")
    return name, runs, report


def folder_of(runs: Path, name: str) -> Path:
    [folder] = [path for path in runs.glob(f"{name}-*") if re.fullmatch(rf"{name}-[0-9a-f]+", path.name)]
    return folder


def test_one_command_ends_with_a_report_of_all_stages(chain: tuple[str, Path, Path]):
    name, _, report = chain
    with (report / "tables" / "summary.csv").open() as file:
        rows = {row["policy"]: row for row in csv.DictReader(file)}
    assert list(rows) == [stage for stage in STAGES[name] if stage != "reward"]
    for row in rows.values():
        assert float(row["num_pairs"]) == 6 and float(row["chosen_perplexity"]) > 1
        assert (row["proxy_reward"] != "") == (name == "alpaca_dpo")
    if name == "qlora_dpo":
        assert float(rows["base"]["kl"]) == 0 and float(rows["base"]["implicit_accuracy"]) == 0.5
        assert float(rows["dpo"]["implicit_margin"]) > 0
    text = (report / "report.md").read_text()
    assert "Replies side by side" in text and "pair margin" in text


def test_the_commands_it_prints_work_as_they_stand(chain: tuple[str, Path, Path], capsys: pytest.CaptureFixture[str]):
    name, runs, report = chain
    commands = json.loads((report / "report.json").read_text())["next_commands"]
    words = [shlex.split(command) for command in commands if command.startswith("alignlab chat")]
    assert words and Path(words[0][2]).is_dir(), commands
    capsys.readouterr()
    scripted = words[-1] + (["--prompt", "hi"] if "--prompt" not in words[-1] else [])
    assert main([*scripted[1:], "--json", "max_new_tokens=4"]) == 0
    replies = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    first = "sft" if name == "alpaca_dpo" else "base"
    assert [each["run"] for each in replies] == [folder_of(runs, f"{name}-small-{s}").name for s in (first, "dpo")]
    assert all((each["reward"] is not None) == (name == "alpaca_dpo") for each in replies)


@torch.no_grad()
def test_dpo_after_sft_starts_from_the_sft_adapter_and_not_from_the_base(chain: tuple[str, Path, Path], data: Path):
    name, runs, _ = chain
    if name != "qlora_dpo":
        pytest.skip("no adapters in this chain")
    words = [f"paths.data={data}", f"paths.runs={runs}", "hardware.progress=false", "method.max_steps=0"]
    assert main(["experiments=qlora_dpo/small/dpo_sft", "name=start", *words]) == 0
    at_start, sft, base = (
        load_policy(folder_of(runs, run)) for run in ("start", "qlora_dpo-small-sft", "qlora_dpo-small-base")
    )
    expected = sft(ROWS).logprobs
    torch.testing.assert_close(at_start(ROWS).logprobs, expected, atol=1e-4, rtol=1e-4)
    assert (base(ROWS).logprobs - expected).abs().max() > 0.01
    assert FrozenCopy(base)(ROWS).equal(base(ROWS).logprobs)  # a quantised network can be copied as a reference


@torch.no_grad()
def test_adapters_reload_and_swap_with_plain_peft_as_the_readme_says(chain: tuple[str, Path, Path]):
    name, runs, _ = chain
    if name != "qlora_dpo":
        pytest.skip("no adapters in this chain")
    readme = (EXPERIMENTS / "qlora_dpo" / "README.md").read_text()
    [snippet] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    runs_of = {stage: folder_of(runs, f"qlora_dpo-small-{stage}") for stage in ("model", "dpo", "dpo_sft")}
    for written, meant in (
        ('"Qwen/Qwen2.5-1.5B-Instruct"', f'"{runs_of["model"]}/model"'),
        ("runs/qlora_dpo-dpo-KEY", str(runs_of["dpo"])),
        ("runs/qlora_dpo-dpo_sft-KEY", str(runs_of["dpo_sft"])),
        ('    revision="989aa7980e4cf806f80c7fef2b1adb7bc71aa306",\n', ""),
        ("torch.bfloat16", "torch.float32"),  # as small scale has it
    ):
        assert written in snippet, written
        snippet = snippet.replace(written, meant)
    said: dict[str, Any] = {}
    exec(snippet, said)
    model = said["model"].eval()
    for adapter in ("dpo_sft", "dpo", "dpo_sft"):
        model.set_adapter(adapter)
        ours = load_policy(runs_of[adapter])
        ours_exact = ours(ROWS).logprobs
        theirs = model(input_ids=ROWS.input_ids, attention_mask=ROWS.attention_mask).logits.float().log_softmax(-1)
        picked = theirs[:, :-1].gather(-1, ROWS.input_ids[:, 1:, None])[..., 0]
        mask = ours(ROWS).mask[:, :-1]
        torch.testing.assert_close(picked[mask], ours_exact[:, :-1][mask], atol=0.02, rtol=0.02)


@pytest.mark.parametrize("stage", [f"{name}/{stage}" for name, stages in STAGES.items() for stage in stages])
def test_small_scale_changes_model_data_and_step_sizes_only(stage: str):
    planner = Planner(roots())
    full, small = (
        flat(OmegaConf.to_container(planner.target([f"experiments={path}", "paths.data=folder"]).cfg, resolve=False))
        for path in (stage, stage.replace("/", "/small/"))
    )
    full, small = dict(full), dict(small)
    changed = {key for key in full.keys() | small.keys() if full.get(key) != small.get(key)}
    allowed = re.compile(r"(evaluation\.)?(data|needs)\b|model\.|method\.(lr|epochs)$|adapter\.compute_dtype$")
    assert {key for key in changed if not allowed.match(key)} == set()
    assert any(key.startswith(("model.", "data.")) for key in changed)


def test_full_size_is_what_was_published():
    planner = Planner(roots())
    for stage in ("sft", "dpo"):
        cfg = planner.target([f"experiments=qlora_dpo/{stage}"]).cfg
        assert cfg.model.init_from == "Qwen/Qwen2.5-1.5B-Instruct" and len(cfg.model.revision) == 40
        assert cfg.adapter._target_.endswith("QLoRA")
        assert list(cfg.adapter.target_modules) == ["q_proj", "k_proj", "v_proj", "o_proj"]
        assert cfg.data.source.name == "HuggingFaceH4/ultrafeedback_binarized"
    for stage, model, source in (
        ("sft", "openai-community/gpt2", "yahma/alpaca-cleaned"),
        ("reward", "distilbert/distilbert-base-uncased", None),
        ("dpo", "${needs.sft.path}", None),
    ):
        cfg = planner.target([f"experiments=alpaca_dpo/{stage}", "paths.data=folder"]).cfg
        raw = OmegaConf.to_container(cfg, resolve=False)
        assert isinstance(raw, dict) and raw["model"]["init_from"] == model
        assert raw["data"]["source"].get("name") == source
