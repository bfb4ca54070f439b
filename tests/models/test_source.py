"""Loading: float32, complete, from a seed, with the right tokenizer and stop tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from alignlab.errors import ConfigError, ModelError
from alignlab.models.adapters import LoRA, QLoRA
from alignlab.models.digest import weights_digest
from alignlab.models.saving import load_policy, save_policy
from alignlab.models.source import ModelSource
from tests import tiny_models as tiny


def random_source(kind: str = "llama", **settings: Any) -> ModelSource:
    """A source of random weights."""
    return ModelSource(architecture=tiny.tiny_architecture(kind), **{"tokenizer": tiny.tiny_tokenizer(), **settings})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved tiny Llama that a test may spoil."""
    return tiny.write_causal(tmp_path / "net")


def edit(folder: Path, name: str = "model.safetensors", **tensors: torch.Tensor | None) -> None:
    """Adds, replaces or (None) removes tensors of a saved network; `__` stands for a dot."""
    state = load_file(folder / name)
    for key, value in tensors.items():
        key = key.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    save_file(state, folder / name, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", [*tiny.DECODERS, *tiny.ENCODERS])
def test_random_weights_heads_included_are_a_function_of_the_seed_alone(kind: str) -> None:
    before = torch.get_rng_state()
    one = weights_digest(random_source(kind, seed=1).load_reward_model())
    assert torch.get_rng_state().equal(before)
    torch.rand(7)
    assert weights_digest(random_source(kind, seed=1).load_reward_model()) == one
    assert weights_digest(random_source(kind, seed=2).load_reward_model()) != one


def test_bodies_of_policy_and_reward_model_agree_at_the_same_seed() -> None:
    policy, reward_model = random_source().load_policy(), random_source().load_reward_model()
    assert weights_digest(policy.model.model) == weights_digest(reward_model.model.model)


def test_half_precision_files_become_float32_master_weights(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    for role in (
        ModelSource(init_from=str(folder)).load_policy(),
        ModelSource(init_from=str(folder)).load_reward_model(),
    ):
        assert {p.dtype for p in role.parameters()} == {torch.float32}


def test_a_missing_tensor_is_an_error_that_names_it(folder: Path) -> None:
    edit(folder, model__layers__1__mlp__up_proj__weight=None)
    with pytest.raises(ModelError, match=r"missing model\.layers\.1\.mlp\.up_proj\.weight"):
        ModelSource(init_from=str(folder)).load_policy()
    with pytest.raises(ModelError, match=r"missing model\.layers\.1\.mlp\.up_proj\.weight"):
        ModelSource(init_from=str(folder)).load_reward_model()


def test_an_unexpected_tensor_is_an_error_that_names_it(folder: Path) -> None:
    edit(folder, model__layers__9__mlp__up_proj__weight=torch.zeros(2))
    with pytest.raises(ModelError, match=r"unexpected model\.layers\.9\.mlp\.up_proj\.weight"):
        ModelSource(init_from=str(folder)).load_policy()


def test_a_tensor_of_another_shape_is_an_error(folder: Path) -> None:
    edit(folder, model__norm__weight=torch.zeros(5))
    with pytest.raises(ModelError, match="cannot load its weights"):
        ModelSource(init_from=str(folder)).load_policy()


def test_a_trained_reward_model_without_its_head_is_an_error(folder: Path) -> None:
    ModelSource(init_from=str(folder)).load_reward_model()  # a causal LM may lack it
    (folder / "alignlab_reward.json").write_text("{}")
    with pytest.raises(ModelError, match=r"missing score\.weight"):
        ModelSource(init_from=str(folder)).load_reward_model()
    with pytest.raises(ModelError, match="a reward model; a policy cannot start"):
        ModelSource(init_from=str(folder)).load_policy()


def test_a_tokenizer_that_is_larger_than_the_network_is_refused() -> None:
    source = ModelSource(
        architecture={**tiny.tiny_architecture("llama"), "vocab_size": 40}, tokenizer=tiny.tiny_tokenizer()
    )
    with pytest.raises(ModelError, match=r"highest token id is 48, .* embeddings for 40"):
        source.load_policy()


def test_stop_tokens_are_the_given_ones_else_generation_configs_else_the_tokenizers(folder: Path) -> None:
    assert random_source(stop_token_ids=[5, 7, 5]).stop_tokens() == (5, 7)
    assert random_source().stop_tokens() == (2,)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [9, 2]}))
    assert ModelSource(init_from=str(folder)).stop_tokens() == (9, 2)
    assert ModelSource(init_from=str(folder), stop_token_ids=[4]).stop_tokens() == (4,)
    (folder / "generation_config.json").unlink()
    assert ModelSource(init_from=str(folder)).stop_tokens() == (2,)
    with pytest.raises(ModelError, match="run from 0 to 48"):
        random_source(stop_token_ids=[49]).stop_tokens()
    with pytest.raises(ModelError, match="no stop token"):
        random_source(stop_token_ids=[]).stop_tokens()


def test_the_networks_own_generate_is_told_our_stop_and_pad_tokens() -> None:
    policy = random_source(stop_token_ids=[5, 7]).load_policy()
    assert policy.model.generation_config.eos_token_id == [5, 7]
    assert policy.model.generation_config.pad_token_id == policy.model.config.pad_token_id == 0


def test_without_a_pad_token_the_end_token_pads_and_nothing_is_resized() -> None:
    policy = random_source(tokenizer=tiny.tiny_tokenizer(pad=False)).load_policy()
    assert policy.tokenizer.pad_token_id == 2
    assert policy.model.get_input_embeddings().weight.shape[0] == 49


@pytest.mark.parametrize("kind", [*tiny.DECODERS, *tiny.ENCODERS])
def test_one_number_sets_every_dropout(kind: str) -> None:
    for rate in (0.0, 0.25):
        model = random_source(kind, dropout=rate).load_reward_model().model
        rates = {part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)}
        rates |= {
            value for name, value in vars(model.config).items() if "attn_pdrop" in name or "attention_dropout" in name
        }
        assert rates == {rate}


@pytest.mark.parametrize("adapter", [None, LoRA(2, alpha=4.0), QLoRA(2, alpha=4.0, compute_dtype="float32")])
def test_gradient_checkpointing_is_switched_on_and_gives_the_same_gradients(adapter: LoRA | None) -> None:
    rows = tiny.tiny_sequences((9, 6))
    grads = []
    for checkpointing in (False, True):
        policy = random_source(gradient_checkpointing=checkpointing).load_policy(adapter).train()
        assert policy.model.is_gradient_checkpointing == checkpointing
        policy(rows).logprobs.sum().backward()
        grads.append([p.grad for p in policy.parameters() if p.requires_grad])
    assert any(grad.abs().sum() > 0 for grad in grads[0])
    assert all(one.equal(two) for one, two in zip(*grads, strict=True))


def test_what_is_missing_or_mistyped_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"init_from .* or architecture"):
        ModelSource()
    with pytest.raises(ConfigError, match="need a tokenizer"):
        ModelSource(architecture=tiny.tiny_architecture("llama"))
    with pytest.raises(ModelError, match="no such folder"):
        ModelSource(init_from=str(tmp_path / "absent")).load_policy()
    with pytest.raises(ModelError, match=r"neither config.json nor run.json"):
        ModelSource(init_from=str(tmp_path)).load_policy()
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ModelError, match=r"without model/ or adapter/"):
        ModelSource(init_from=str(tmp_path)).load_policy()
    with pytest.raises(ModelError, match="has no setting hidden_sise"):
        ModelSource(
            architecture={"model_type": "llama", "hidden_sise": 3}, tokenizer=tiny.tiny_tokenizer()
        ).load_policy()
    with pytest.raises(ModelError, match="model_type=lama"):
        ModelSource(architecture={"model_type": "lama"}, tokenizer=tiny.tiny_tokenizer()).load_policy()
    with pytest.raises(ModelError, match="model_type is missing"):
        ModelSource(architecture={"hidden_size": 3}, tokenizer=tiny.tiny_tokenizer()).load_policy()


def test_an_architecture_beside_init_from_must_be_that_of_the_weights(folder: Path) -> None:
    given = {"init_from": str(folder), "tokenizer": tiny.tiny_tokenizer()}
    ModelSource(architecture=tiny.tiny_architecture("llama"), **given).load_policy()
    with pytest.raises(ConfigError, match=r"architecture.model_type=gpt2, .* has llama; .* model=pretrained"):
        ModelSource(architecture=tiny.tiny_architecture("gpt2"), **given).load_policy()


def test_weights_and_another_tokenizer_are_refused(folder: Path) -> None:
    other = tiny.tiny_tokenizer()
    other.add_tokens(["more"])
    with pytest.raises(ModelError, match="not that of"):
        ModelSource(init_from=str(folder), tokenizer=other).load_tokenizer()


def test_a_qwen2_network_keeps_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    """AutoTokenizer reads such a folder as Qwen's own tokenizer, whatever its files say: these words become nothing."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "t1": 2, "t2": 3}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    source = ModelSource(architecture={**tiny.tiny_architecture("qwen2"), "vocab_size": 4}, tokenizer=tokenizer)
    save_policy(source.load_policy(), tmp_path, card="")
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("t2 t1").input_ids != [3, 2]
    source = ModelSource(init_from=str(tmp_path / "model"))
    for again in (source.load_tokenizer(), load_policy(tmp_path / "model").tokenizer):
        assert again("t2 t1").input_ids == [3, 2] and again.get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_is_loaded_from_a_folder_too(folder: Path) -> None:
    assert random_source(tokenizer=str(folder)).load_tokenizer().get_vocab() == tiny.tiny_tokenizer().get_vocab()
