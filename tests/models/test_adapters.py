"""Adapters: only they are trained, off they are not there at all, and no pattern is half heard."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.errors import ConfigError, ModelError
from alignlab.models.adapters import LoRA, NoAdapter, QLoRA
from alignlab.models.digest import weights_digest
from alignlab.models.reference import AdapterOff, FrozenCopy
from alignlab.models.saving import load_policy, save_policy
from alignlab.models.source import ModelSource
from alignlab.models.targets import choose_targets
from tests import tiny_models as tiny

ROWS = tiny.tiny_sequences((11, 7, 5))


def stir(policy, seed: int = 0, scale: float = 0.3):
    """Gives the trainable adapter weights that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad and "lora_" in name:
                parameter.normal_(std=scale, generator=generator)
    return policy


def as_run(policy, folder: Path) -> str:
    """Saves a policy as a run leaves it."""
    save_policy(policy, folder)
    (folder / "run.json").write_text("{}")
    return str(folder)


def qlora(rank: int = 2, compute_dtype: Any = "float32") -> QLoRA:
    """A small quantising adapter, with exact arithmetic unless told otherwise."""
    return QLoRA(rank, alpha=2.0 * rank, compute_dtype=compute_dtype)


def updates(policy, names: list[str]) -> list[torch.Tensor]:
    """What the named adapters together add to the weights of each layer."""
    layers = [layer for layer in policy.model.modules() if hasattr(layer, "lora_A")]
    return [sum(x.scaling[n] * x.lora_B[n].weight @ x.lora_A[n].weight for n in names) for x in layers]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved tiny Llama."""
    return str(tiny.write_causal(tmp_path_factory.mktemp("base")))


@pytest.mark.parametrize("kind", tiny.DECODERS)
@torch.no_grad()
def test_adapter_off_is_the_base_bit_for_bit_before_and_after_training(kind: str) -> None:
    base = tiny.tiny_policy(kind)(ROWS).logprobs
    policy = tiny.tiny_policy(kind, adapter=LoRA(4, alpha=8.0))
    assert policy(ROWS).logprobs.equal(base)
    stir(policy)
    assert not policy(ROWS).logprobs.equal(base)
    assert AdapterOff(policy)(ROWS).equal(base)
    with policy.adapter_off():
        assert policy(ROWS).logprobs.equal(base)
    assert not policy(ROWS).logprobs.equal(base)


def test_switching_an_adapter_off_leaves_what_is_trained_as_it_was_even_after_an_error() -> None:
    policy = tiny.tiny_policy("llama", adapter=LoRA(2, alpha=4.0))
    trained = [p.requires_grad for p in policy.parameters()]
    with pytest.raises(RuntimeError, match="inside"), policy.adapter_off():
        assert [p.requires_grad for p in policy.parameters()] == trained
        raise RuntimeError("inside")
    stir(policy)
    assert not policy(ROWS).logprobs.equal(AdapterOff(policy)(ROWS))


@pytest.mark.parametrize("kind", tiny.DECODERS)
def test_only_adapter_matrices_are_trained_and_all_of_them_get_gradients(kind: str) -> None:
    policy = stir(tiny.tiny_policy(kind, adapter=LoRA(2, alpha=4.0)))
    policy(ROWS).logprobs.sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_adapters_come_from_the_seed_and_the_global_rng_is_untouched() -> None:
    before = torch.get_rng_state()
    one, same, other = (
        weights_digest(tiny.tiny_policy("llama", adapter=LoRA(2, alpha=4.0), seed=s)) for s in (0, 0, 1)
    )
    assert torch.get_rng_state().equal(before)
    assert one == same != other


def test_every_pattern_must_match_a_layer_of_the_body() -> None:
    model = tiny.tiny_causal("llama")
    with pytest.raises(ModelError, match=r"v_porj matches no linear layer .* did you mean v_proj"):
        choose_targets(model, ["q_proj", "v_porj"])
    with pytest.raises(ModelError, match="lm_head matches no"):
        choose_targets(model, ["lm_head"])
    with pytest.raises(ModelError, match="expected 'all-linear' or a list"):
        choose_targets(model, "q_proj")
    assert choose_targets(model, ["self_attn.v_proj", "q_proj"]) == ["q_proj", "self_attn.v_proj"]


def test_all_linear_is_every_linear_layer_of_the_body_and_not_the_head() -> None:
    assert choose_targets(tiny.tiny_causal("gpt_neox"), "all-linear") == [
        "dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value",
    ]  # fmt: skip
    policy = tiny.tiny_policy("gpt_neox", adapter=LoRA(2, alpha=4.0))
    adapted = {name.split(".lora_")[0] for name, _ in policy.model.named_parameters() if ".lora_" in name}
    assert len(adapted) == 2 * 4


def test_named_targets_alone_are_adapted() -> None:
    policy = tiny.tiny_policy("llama", adapter=LoRA(2, alpha=4.0, target_modules=["q_proj", "v_proj"]))
    adapted = {
        name.split(".lora_")[0].rsplit(".", 1)[1] for name, p in policy.model.named_parameters() if p.requires_grad
    }
    assert adapted == {"q_proj", "v_proj"}


def test_gpt2s_transposed_matrices_are_adapted_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        policy = tiny.tiny_policy("gpt2", adapter=LoRA(2, alpha=4.0))
    assert policy.model.peft_config["default"].fan_in_fan_out


def test_rank_and_dropout_are_checked() -> None:
    with pytest.raises(ConfigError, match="rank=0"):
        LoRA(0, alpha=1.0)
    with pytest.raises(ConfigError, match=r"dropout=1\.0"):
        LoRA(1, alpha=1.0, dropout=1.0)
    with pytest.raises(ConfigError, match="compute_dtype=int8"):
        QLoRA(1, alpha=1.0, compute_dtype="int8")  # type: ignore[arg-type]


@torch.no_grad()
def test_references_are_the_start_in_eval_mode_whatever_the_policy_does() -> None:
    policy = tiny.tiny_policy("llama", adapter=LoRA(4, alpha=8.0, dropout=0.5))
    start = policy(ROWS, temperature=0.7).logprobs
    frozen = FrozenCopy(policy)
    assert not stir(policy)(ROWS, temperature=0.7).logprobs.equal(start)
    policy.train()
    frozen.train()
    assert AdapterOff(policy)(ROWS, temperature=0.7).equal(start)
    assert frozen(ROWS, temperature=0.7).equal(start)
    assert policy.training and not any(part.training for part in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    with pytest.raises(ModelError, match="frozen copy"):
        AdapterOff(tiny.tiny_policy("llama"))


@torch.no_grad()
def test_the_networks_own_dropout_is_off_in_both_references() -> None:
    source = ModelSource(architecture=tiny.tiny_architecture("gpt2"), tokenizer=tiny.tiny_tokenizer(), dropout=0.5)
    policy = source.load_policy(LoRA(2, alpha=8.0)).train()
    assert not policy(ROWS).logprobs.equal(policy(ROWS).logprobs)
    for reference in (AdapterOff(policy), FrozenCopy(policy).train()):
        assert reference(ROWS).equal(reference(ROWS))


@torch.no_grad()
def test_a_new_adapter_on_an_adapted_model_starts_from_the_adapted_one(tmp_path: Path, base_folder: str) -> None:
    first = stir(ModelSource(init_from=base_folder).load_policy(LoRA(2, alpha=8.0)))
    run = as_run(first, tmp_path / "sft")
    second = ModelSource(init_from=run, seed=5).load_policy(LoRA(4, alpha=8.0))
    trained = first(ROWS).logprobs
    torch.testing.assert_close(second(ROWS).logprobs, trained, atol=2e-5, rtol=0)
    assert (AdapterOff(second)(ROWS) - second(ROWS).logprobs).abs().max() == 0  # margin 0 at the first step
    stir(second, seed=9)
    torch.testing.assert_close(AdapterOff(second)(ROWS), trained, atol=2e-5, rtol=0)
    again = load_policy(as_run(second, tmp_path / "dpo"))
    torch.testing.assert_close(again(ROWS).logprobs, second(ROWS).logprobs, atol=1e-6, rtol=0)
    full = ModelSource(init_from=run).load_policy(NoAdapter())
    assert not full.has_adapter and all(p.requires_grad for p in full.parameters())
    torch.testing.assert_close(full(ROWS).logprobs, trained, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("kind", "dtype"), [("llama", "float32"), ("gpt2", "float32"), ("qwen2", "bfloat16")])
def test_qlora_trains_saves_and_reloads(kind: str, dtype: str, tmp_path: Path) -> None:
    source = ModelSource(architecture=tiny.tiny_architecture(kind), tokenizer=tiny.tiny_tokenizer())
    policy = source.load_policy(qlora(compute_dtype=dtype))
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    start = policy(ROWS).logprobs.detach()
    full = source.load_policy()(ROWS).logprobs.detach()
    assert 0 < (start - full).abs().max() < 0.5  # quantised, and still that network
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = -policy(ROWS).logprobs.sum() / ROWS.num_scored
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)
    with torch.no_grad():
        assert AdapterOff(policy)(ROWS).equal(start)
        loaded = load_policy(as_run(policy, tmp_path))
        assert loaded(ROWS).logprobs.equal(policy(ROWS).logprobs)
        assert AdapterOff(loaded)(ROWS).equal(start)
    with pytest.raises(ModelError, match="quantised"):
        load_policy(tmp_path, merge=True)


@torch.no_grad()
def test_an_evaluation_pass_does_not_change_quantised_weights(base_folder: str) -> None:
    policy = ModelSource(init_from=base_folder).load_policy(qlora())
    digest, train_mode = weights_digest(policy), policy.train()(ROWS).logprobs
    assert policy.eval()(ROWS).logprobs.equal(train_mode)
    assert policy.train()(ROWS).logprobs.equal(train_mode)
    assert weights_digest(policy) == digest


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_qlora_on_an_adapted_base_keeps_the_first_adapter_under_the_second(
    tmp_path: Path, base_folder: str, dtype: str
) -> None:
    first = stir(ModelSource(init_from=base_folder).load_policy(qlora(2, dtype)))
    run = as_run(first, tmp_path / "sft")
    trained = first(ROWS).logprobs.detach()
    second = ModelSource(init_from=run, seed=4).load_policy(qlora(3, dtype))
    assert {p.dtype for n, p in second.named_parameters() if "lora_" in n} == {torch.float32}
    torch.testing.assert_close(second(ROWS).logprobs, trained, atol=1e-5, rtol=0)
    second(ROWS).logprobs.sum().backward()
    for name, parameter in second.named_parameters():
        assert parameter.requires_grad == (".default." in name), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
    stir(second, seed=8)
    with torch.no_grad():
        moved = second(ROWS).logprobs
        assert (moved - trained).abs().max() > 0.01
        torch.testing.assert_close(AdapterOff(second)(ROWS), trained, atol=1e-5, rtol=0)
        assert second(ROWS).logprobs.equal(moved)
        loaded = load_policy(as_run(second, tmp_path / "dpo"))  # one adapter of rank 2 + 3
        rounding = {"float32": 1e-5, "bfloat16": 2e-3}[dtype]  # of hidden states
        torch.testing.assert_close(loaded(ROWS).logprobs, moved, atol=rounding, rtol=0)
        for one, two in zip(updates(loaded, ["default"]), updates(second, ["start", "default"]), strict=True):
            torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
    assert loaded.model.peft_config["default"].r == 5
    assert sorted(second.model.peft_config) == ["default", "start"]
    assert second(ROWS).logprobs.equal(moved) and sum(p.requires_grad for p in second.parameters()) == 28


def test_loading_is_silent(
    base_folder: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), warnings.catch_warnings(record=True) as seen:
        ModelSource(init_from=base_folder).load_policy(qlora())
        ModelSource(init_from=base_folder).load_reward_model(LoRA(2, alpha=4.0))
    out = capfd.readouterr()
    assert (out.out, out.err, caplog.text, [str(w.message) for w in seen]) == ("", "", "", [])
