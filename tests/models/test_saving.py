"""What a run leaves behind is read by plain transformers and peft, and means the same there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignlab.errors import ModelError
from alignlab.models.adapters import LoRA, QLoRA
from alignlab.models.cards import model_card
from alignlab.models.digest import folder_digest, weights_digest
from alignlab.models.reward_model import RewardModel
from alignlab.models.saving import load_policy, load_reward_model, replacing, save_policy, save_reward_model
from alignlab.models.source import ModelSource
from alignlab.models.tokenizers import loading_class
from alignlab.rollout.generate import generate
from tests import tiny_models as tiny
from tests.models.test_adapters import as_run, stir

ROWS = tiny.tiny_sequences((11, 7, 5))
PROMPTS = tiny.tiny_prompts((6, 6, 3))


def plain_generate(model: torch.nn.Module, max_new_tokens: int = 10) -> torch.Tensor:
    """Greedy replies with nothing but what the folder says."""
    return model.generate(
        input_ids=PROMPTS.input_ids, attention_mask=PROMPTS.attention_mask.long(), do_sample=False,
        max_new_tokens=max_new_tokens,
    )  # fmt: skip


@pytest.mark.parametrize("kind", tiny.DECODERS)
def test_a_saved_model_generates_the_same_tokens_under_plain_transformers(kind: str, tmp_path: Path) -> None:
    policy = tiny.tiny_policy(kind, stop_token_ids=(2, 11, 17))
    folder = save_policy(policy, tmp_path, card="# A card\n")
    assert folder == tmp_path / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ours = generate(policy, PROMPTS, max_new_tokens=10, greedy=True)
    theirs = plain_generate(model.eval())
    assert theirs.equal(ours.sequences.input_ids)
    assert tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    assert model.generation_config.eos_token_id == [2, 11, 17]
    assert (folder / "README.md").read_text() == "# A card\n"
    assert load_policy_of(tmp_path).stop_token_ids == (2, 11, 17)


def load_policy_of(folder: Path):
    """Loads `folder` as a run."""
    (folder / "run.json").write_text("{}")
    return load_policy(folder)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_saved_adapter_generates_the_same_tokens_under_plain_peft(kind: str, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel

    policy = stir(tiny.tiny_policy(kind, adapter=LoRA(4, alpha=16.0)))
    folder = save_policy(policy, tmp_path)
    assert folder == tmp_path / "adapter"
    ours = generate(policy, PROMPTS, max_new_tokens=10, greedy=True).sequences.input_ids
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert plain_generate(PeftModel.from_pretrained(base, folder).eval()).equal(ours)
    assert plain_generate(AutoPeftModelForCausalLM.from_pretrained(folder).eval()).equal(ours)
    assert not plain_generate(AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()).equal(ours)


def test_a_base_that_can_be_loaded_unchanged_is_named_not_copied(tmp_path: Path) -> None:
    base = tiny.write_causal(tmp_path / "net")
    policy = stir(ModelSource(init_from=str(base)).load_policy(LoRA(2, alpha=4.0)))
    as_run(policy, tmp_path / "run")
    assert not (tmp_path / "run" / "base").exists()
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["target_modules"] == sorted(config["target_modules"])
    with torch.no_grad():
        assert load_policy(tmp_path / "run")(ROWS).logprobs.equal(policy(ROWS).logprobs)


def test_an_adapter_refuses_another_base_of_the_same_shape(tmp_path: Path) -> None:
    base = tiny.write_causal(tmp_path / "net", seed=0)
    run = as_run(ModelSource(init_from=str(base)).load_policy(LoRA(2, alpha=4.0)), tmp_path / "run")
    load_policy(run)
    tiny.write_causal(tmp_path / "net", seed=1)
    with pytest.raises(ModelError, match="trained on weights with sha256"):
        load_policy(run)
    with pytest.raises(ModelError, match="trained on weights with sha256"):
        ModelSource(init_from=run).load_policy()
    shutil.rmtree(base)
    with pytest.raises(ModelError, match=r"its base .* is gone"):
        load_policy(run)


def test_runs_may_be_moved_together(tmp_path: Path) -> None:
    base = tiny.write_causal(tmp_path / "runs" / "net")
    policy = stir(ModelSource(init_from=str(base)).load_policy(LoRA(2, alpha=4.0)))
    as_run(policy, tmp_path / "runs" / "dpo")
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    with torch.no_grad():
        assert load_policy(tmp_path / "elsewhere" / "dpo")(ROWS).logprobs.equal(policy(ROWS).logprobs)


def test_merging_gives_the_same_policy_without_an_adapter(tmp_path: Path) -> None:
    run = as_run(stir(tiny.tiny_policy("gpt2", adapter=LoRA(4, alpha=8.0))), tmp_path)
    stacked, merged = load_policy(run), load_policy(run, merge=True)
    assert stacked.has_adapter and not merged.has_adapter and not merged.training
    with torch.no_grad():
        torch.testing.assert_close(stacked(ROWS).logprobs, merged(ROWS).logprobs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("adapter", [None, LoRA(2, alpha=4.0), QLoRA(2, alpha=4.0, compute_dtype="float32")])
def test_only_safetensors_are_written_and_no_leftovers(adapter: LoRA | None, tmp_path: Path) -> None:
    source = ModelSource(architecture=tiny.tiny_architecture("llama"), tokenizer=tiny.tiny_tokenizer())
    policy = source.load_policy(adapter)
    for _ in range(2):  # a second save replaces the first
        save_policy(policy, tmp_path)
    expected = ["model"] if adapter is None else ["adapter", "base"]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".md", ".jinja"}


def test_a_failure_while_writing_leaves_the_old_folder(tmp_path: Path) -> None:
    final = tmp_path / "model"
    with replacing(final) as place:
        (place / "a").write_text("old")
    with pytest.raises(RuntimeError, match="disk"), replacing(final) as place:
        (place / "a").write_text("half")
        raise RuntimeError("disk")
    assert (final / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("kind", ["llama", "distilbert", "deberta-v2"])
def test_a_saved_reward_model_scores_the_same_under_plain_transformers(kind: str, tmp_path: Path) -> None:
    reward_model = RewardModel(tiny.tiny_classifier(kind), tokenizer=tiny.tiny_tokenizer())
    folder = save_reward_model(reward_model, tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = plain(input_ids=ROWS.input_ids, attention_mask=ROWS.attention_mask.long()).logits[:, 0]
        torch.testing.assert_close(reward_model(ROWS), theirs, atol=1e-5, rtol=0)


def test_a_reward_adapter_scores_the_same_under_plain_peft(tmp_path: Path) -> None:
    from peft import AutoPeftModelForSequenceClassification

    base = tiny.write_causal(tmp_path / "net")
    reward_model = ModelSource(init_from=str(base)).load_reward_model(LoRA(2, alpha=4.0))
    stir(reward_model)
    folder = save_reward_model(reward_model, tmp_path / "run")
    plain = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    plain.config.pad_token_id = plain.base_model.model.config.pad_token_id = 0
    with torch.no_grad():
        theirs = plain(input_ids=ROWS.input_ids, attention_mask=ROWS.attention_mask.long()).logits[:, 0]
        torch.testing.assert_close(reward_model(ROWS), theirs, atol=1e-5, rtol=0)


def test_a_policy_is_not_taken_for_a_reward_model_nor_the_other_way_round(tmp_path: Path) -> None:
    run = as_run(tiny.tiny_policy("llama"), tmp_path / "policy")
    with pytest.raises(ModelError, match="not a reward model"):
        load_reward_model(run)
    with pytest.raises(ModelError, match="not a reward model"):
        load_reward_model(as_run(tiny.tiny_policy("llama", adapter=LoRA(2, alpha=4.0)), tmp_path / "adapter"))


def test_digests_see_every_weight_and_nothing_else(tmp_path: Path) -> None:
    one, two = tiny.tiny_causal("gpt2"), tiny.tiny_causal("gpt2")
    assert weights_digest(one) == weights_digest(two.train())
    with torch.no_grad():
        two.transformer.h[1].ln_1.bias[3] += 1e-6
    assert weights_digest(one) != weights_digest(two)
    one.save_pretrained(tmp_path / "whole")
    one.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert folder_digest(tmp_path / "whole") == folder_digest(tmp_path / "shards")
    with pytest.raises(ModelError, match="safetensors"):
        folder_digest(tmp_path)


def test_a_model_card_says_what_it_is_and_how_to_load_it() -> None:
    card = model_card(
        name="dpo-1", produces="policy", base="sft-1", method="dpo", data="textworld", metrics={"test/reward": 1.23456},
        adapter=True, command="alignlab method=dpo",
    )  # fmt: skip
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "| test/reward | 1.235 |" in card and "alignlab method=dpo" in card
    assert 'AutoPeftModelForCausalLM.from_pretrained("adapter")' in card
    assert 'tokenizer = AutoTokenizer.from_pretrained("adapter")' in card
    own = {"tokenizer": loading_class(tiny.tiny_tokenizer())}
    plain = model_card(name="rm", produces="reward_model", base="b", method="reward", data="d", metrics={}, **own)
    assert 'tokenizer = PreTrainedTokenizerFast.from_pretrained("model")' in plain and "AutoTok" not in plain
    assert "alignlab_reward.json" in plain and "## Results" not in plain and "## Training" not in plain
