"""GELU's tanh form in one operation: the same function, in every network, and nothing of it in what is saved."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.activations import NewGELUActivation

from alignlab.kernels.plain import choose_plain
from alignlab.models.adapters import LoRA
from alignlab.models.loading import with_fused_gelu
from alignlab.models.saving import save_policy, save_reward_model
from alignlab.models.source import ModelSource
from tests import tiny_models as tiny

KINDS = ["gpt2", "gpt_neo"]
ROWS = tiny.tiny_sequences((11, 7, 5))
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def written_out(x: Tensor) -> Tensor:
    """Hendrycks & Gimpel 2016, sec. 2."""
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def activations(model: nn.Module) -> list[str]:
    """The kinds of GELU in a network, each as often as it is there."""
    return [type(module).__name__ for module in model.modules() if "GELU" in type(module).__name__]


def logits_and_gradients(model: Any) -> list[Tensor]:
    """Of a random combination of the logits, with respect to every weight."""
    logits = model(input_ids=ROWS.input_ids, attention_mask=ROWS.attention_mask.long()).logits
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=logits.dtype)
    return [logits.detach(), *torch.autograd.grad((weights * logits).mean(), list(model.parameters()))]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_it_is_the_function_that_it_stands_for(dtype: torch.dtype) -> None:
    x = torch.linspace(-12, 12, 4001, dtype=dtype, requires_grad=True)
    [module] = with_fused_gelu(nn.Sequential(NewGELUActivation()))
    assert type(module) is nn.GELU
    for expected in (NewGELUActivation()(x), written_out(x)):
        torch.testing.assert_close(module(x), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        ours, theirs = (torch.autograd.grad(y.sum(), x)[0] for y in (module(x), expected))
        torch.testing.assert_close(ours, theirs, rtol=4 * TOLERANCE[dtype], atol=4 * TOLERANCE[dtype])


def test_it_can_be_left_as_it_came() -> None:
    choose_plain(["gelu"])
    [module] = with_fused_gelu(nn.Sequential(NewGELUActivation()))
    assert type(module) is NewGELUActivation


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_of_a_network_stay_what_they_were(kind: str, dtype: torch.dtype) -> None:
    model: Any = tiny.tiny_causal(kind, factor=4.0)
    model = model.to(dtype)
    fused = with_fused_gelu(copy.deepcopy(model))
    assert activations(model) == ["NewGELUActivation"] * 2 and activations(fused) == ["GELU"] * 2
    for ours, theirs in zip(logits_and_gradients(fused), logits_and_gradients(model), strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("adapter", [None, LoRA(4, alpha=8.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_network_that_is_made_or_loaded_has_it(kind: str, adapter: LoRA | None, tmp_path: Path) -> None:
    tokenizer = tiny.tiny_tokenizer()
    random = ModelSource(architecture=tiny.tiny_architecture(kind), tokenizer=tokenizer)
    loaded = ModelSource(init_from=str(tiny.write_causal(tmp_path, kind)))
    for source in (random, loaded):
        for role in (source.load_policy(adapter), source.load_reward_model(adapter)):
            assert activations(role.model) == ["GELU"] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_says_gelu_new_and_means_the_same_elsewhere(kind: str, tmp_path: Path) -> None:
    source = ModelSource(architecture=tiny.tiny_architecture(kind), tokenizer=tiny.tiny_tokenizer())
    policy = source.load_policy()
    tiny.make_peaky(policy.model, 4.0)
    saved = (save_policy(policy, tmp_path / "policy"), save_reward_model(source.load_reward_model(), tmp_path / "rm"))
    for folder in saved:
        assert json.loads((folder / "config.json").read_text())["activation_function"] == "gelu_new"
    theirs = AutoModelForCausalLM.from_pretrained(saved[0])
    assert activations(theirs) == ["NewGELUActivation"] * 2
    ids = ROWS.input_ids[:1]
    torch.testing.assert_close(policy.model(input_ids=ids).logits, theirs(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


def test_other_activations_are_left_alone() -> None:
    for kind in ("llama", "gpt_neox", "distilbert"):
        model = tiny.tiny_classifier(kind)
        before = [type(module) for module in model.modules()]
        assert [type(module) for module in with_fused_gelu(model).modules()] == before
