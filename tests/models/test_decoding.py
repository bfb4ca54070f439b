"""Decoding a token at a time: the states of a plain forward, whichever of the two ways a network is run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from alignlab.errors import ConfigError
from alignlab.models.adapters import LoRA, QLoRA
from alignlab.models.backbone import Head, hidden_states
from alignlab.models.decoding import decoding_network
from alignlab.models.decoding.cache import KeyValueCache, prompt_visibility
from alignlab.models.decoding.direct import DirectNetwork
from alignlab.models.decoding.general import GeneralNetwork
from alignlab.models.decoding.layers import Rotation, rotate
from alignlab.models.decoding.logits import next_logits
from alignlab.models.source import ModelSource
from tests import tiny_models as tiny

KNOWN = ("gpt2", "gpt_neo", "llama", "qwen2")
LENGTHS = (17, 4, 11, 1)  # the longest passes GPT-Neo's window of 8
STEPS = 12


def networks(kind: str) -> tuple[Any, Any]:
    """A tiny network, and the tokens of rows as long as LENGTHS and STEPS together."""
    rows = tiny.tiny_sequences([length + STEPS for length in LENGTHS], seed=5)
    return tiny.tiny_causal(kind), [row[mask] for row, mask in zip(rows.input_ids, rows.attention_mask, strict=True)]


@torch.no_grad()
def decoded(model: nn.Module, rows: list[Tensor], **settings: Any) -> list[Tensor]:
    """The hidden state that precedes each of a row's tokens after its prompt, with rows that leave in between."""
    prompts = tiny.left_padded(tiny.tiny_sequences(LENGTHS))
    ids = prompts.input_ids
    for number, (row, length) in enumerate(zip(rows, LENGTHS, strict=True)):
        ids[number, -length:] = row[:length]
    network = decoding_network(model, prompts.attention_mask, max_tokens=STEPS, **settings)
    live = torch.arange(len(rows))
    states: list[list[Tensor]] = [[] for _ in rows]
    hidden = network.read_prompts(ids)
    for step in range(STEPS):
        for number, state in zip(live.tolist(), hidden, strict=True):
            states[number].append(state)
        if step == 3:
            kept = torch.tensor([0, 3, 2])  # row 1 leaves, the last one takes its place
            network.keep(kept)
            live = live[kept]
        if step == 7:
            network.keep(torch.tensor([2, 1]))
            live = live[[2, 1]]
        tokens = torch.stack([rows[number][LENGTHS[number] + step] for number in live.tolist()])
        hidden = network.read_tokens(tokens)
    return [torch.stack(row) for row in states]


@torch.no_grad()
def plain(model: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    """The same states from one forward per row, alone and without a cache."""
    whole = [hidden_states(model, row[None], torch.ones(1, len(row), dtype=torch.bool))[0] for row in rows]
    return [states[length - 1 :] for states, length in zip(whole, LENGTHS, strict=True)]


def assert_close(found: list[Tensor], expected: list[Tensor], atol: float) -> None:
    """Row by row, as far as each has gone."""
    assert [len(states) for states in found] == [8, 4, 12, 12]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs[: len(ours)], atol=atol, rtol=0)


def way(model: Any, **settings: Any) -> type:
    """The class that decodes this network."""
    return type(decoding_network(model, torch.ones(1, 3, dtype=torch.bool), max_tokens=1, **settings))


@pytest.mark.parametrize("kind", tiny.DECODERS)
@pytest.mark.parametrize("decoder", ["auto", "general"])
def test_states_equal_a_plain_forward_of_each_row_alone(kind: str, decoder: str) -> None:
    model, rows = networks(kind)
    assert_close(decoded(model, rows, decoder=decoder), plain(model, rows), atol=2e-5)


@pytest.mark.parametrize("decoder", ["auto", "general"])
def test_states_are_exact_in_float64(decoder: str) -> None:
    model, rows = networks("gpt2")
    model.double()
    assert_close(decoded(model, rows, decoder=decoder), plain(model, rows), atol=1e-11)


@pytest.mark.parametrize("kind", tiny.DECODERS)
def test_four_families_have_a_loop_of_ours_and_others_their_own_forward(kind: str) -> None:
    assert way(tiny.tiny_causal(kind)) is (DirectNetwork if kind in KNOWN else GeneralNetwork)


@pytest.mark.parametrize("kind", KNOWN)
def test_padding_is_not_computed(kind: str) -> None:
    model, rows = networks(kind)
    expected = plain(model, rows)
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = torch.nan  # of the padding token
    assert_close(decoded(model, rows), expected, atol=2e-5)


@pytest.mark.parametrize("kind", KNOWN)
def test_adapters_work_as_in_a_plain_forward_on_off_and_merged(kind: str) -> None:
    base, rows = networks(kind)
    model = LoRA(4, alpha=32.0).attach(base, "causal", seed=0)
    bare = plain(tiny.tiny_causal(kind), rows)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    adapted = plain(model, rows)
    assert way(model) is DirectNetwork
    assert (adapted[0] - bare[0]).abs().max() > 0.1
    assert_close(decoded(model, rows), adapted, atol=5e-5)
    with model.disable_adapter():
        assert_close(decoded(model, rows), bare, atol=2e-5)
    merged = model.merge_and_unload()
    assert_close(decoded(merged, rows), adapted, atol=5e-4)


def test_four_bit_layers_under_an_adapter_are_run_as_they_are(tmp_path: Path) -> None:
    source = ModelSource(init_from=str(tiny.write_causal(tmp_path, "qwen2")))
    model = source.load_policy(QLoRA(4, alpha=32.0, compute_dtype="float32")).model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    _, rows = networks("qwen2")
    assert way(model) is DirectNetwork
    assert_close(decoded(model, rows), plain(model, rows), atol=5e-5)


@pytest.mark.parametrize("kind", KNOWN)
def test_half_precision_gives_what_the_general_way_gives(kind: str) -> None:
    model, rows = networks(kind)
    exact = plain(model, rows)[3][:STEPS]
    with torch.autocast("cpu", torch.bfloat16):
        ours, general = decoded(model, rows)[3], decoded(model, rows, decoder="general")[3]
    assert ours.dtype == general.dtype
    assert (ours - exact).abs().mean() < 1.5 * (general - exact).abs().mean()
    model.bfloat16()
    ours, general = decoded(model, rows)[3], decoded(model, rows, decoder="general")[3]
    assert ours.dtype == general.dtype == torch.bfloat16
    assert (ours - exact).abs().mean() < 1.5 * (general - exact).abs().mean()


def configured(kind: str, **settings: Any) -> Any:
    """A tiny peaky network with further settings."""
    shape = {**tiny.tiny_architecture(kind), "vocab_size": 49, "pad_token_id": 0, **settings}
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    tiny.make_peaky(model, 9.0)
    return model


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
        ("gpt2", {"reorder_and_upcast_attn": True}),
        ("gpt2", {"add_cross_attention": True}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
    ],
)
def test_unusual_settings_are_left_to_the_networks_own_forward(kind: str, settings: dict[str, Any]) -> None:
    assert way(configured(kind, **settings)) is GeneralNetwork


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"scale_attn_weights": False, "n_inner": 40, "activation_function": "relu"}),
        ("gpt_neo", {"window_size": 3, "attention_types": [[["local", "global"], 1]]}),
        ("llama", {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "head_dim": 8}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 1e4,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                }
            },
        ),
        ("qwen2", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    ],
)
def test_settings_that_the_submodules_carry_are_honoured(kind: str, settings: dict[str, Any]) -> None:
    model = configured(kind, **settings)
    _, rows = networks(kind)
    assert way(model) is DirectNetwork
    assert_close(decoded(model, rows), plain(model, rows), atol=2e-5)


def hook_a_block(model: Any) -> None:
    """As FSDP does."""
    model.transformer.h[1].register_forward_pre_hook(lambda module, args: None)


def replace_a_forward(model: Any) -> None:
    """As accelerate does."""
    attention = model.transformer.h[0].attn
    attention.forward = attention.forward


def subclass_attention(model: Any) -> None:
    """As a patch for one's own attention does."""
    attention = model.transformer.h[0].attn
    attention.__class__ = type("GPT2Attention", (type(attention),), {})


@pytest.mark.parametrize("change", [hook_a_block, replace_a_forward, subclass_attention])
def test_networks_with_something_of_their_own_in_a_block_are_run_through_it(change: Callable[[Any], None]) -> None:
    model, rows = networks("gpt2")
    expected = plain(model, rows)
    change(model)
    assert way(model) is GeneralNetwork
    assert_close(decoded(model, rows), expected, atol=2e-5)


def test_only_two_decoders_can_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="decoder=fast: expected one of auto, general"):
        way(tiny.tiny_causal(), decoder="fast")


def test_the_cache_is_allocated_once_and_closed_up_in_place() -> None:
    model = tiny.tiny_causal("llama")
    prompts = tiny.tiny_prompts(LENGTHS)
    with torch.no_grad():
        network = decoding_network(model, prompts.attention_mask, max_tokens=STEPS)
        assert isinstance(network, DirectNetwork)
        network.read_prompts(prompts.input_ids)
        cache = network.cache
        before = [part.data_ptr() for part in (*cache.keys, *cache.values)]
        for step in range(STEPS):
            if step in (3, 5):
                network.keep(torch.arange(1, len(cache.keys[0])))
            network.read_tokens(torch.full((len(cache.keys[0]),), 7))
    assert [part.data_ptr() for part in (*cache.keys, *cache.values)] == before
    assert len(before) == 4 and {part.shape for part in cache.keys} == {(2, 1, 17 + STEPS, 16)}


def test_rows_of_a_cache_are_moved_up_by_hand() -> None:
    cache = KeyValueCache(num_rows=4, prompt_width=2, capacity=3)
    entries = torch.arange(4.0).view(4, 1, 1).expand(4, 2, 1)  # row number in both heads
    keys, _ = cache.write(0, entries, 10 * entries, (slice(None), slice(None), 0))
    assert keys.shape == (4, 2, 3, 1) and keys[:, 1, 0, 0].tolist() == [0, 1, 2, 3]
    assert keys[:, :, 1].eq(0).all()  # written by nobody, but read
    cache.keep(torch.tensor([3, 1]), width=2)
    assert cache.keys[0][:, 0, 0, 0].tolist() == [3, 1] and cache.values[0][:, 1, 0, 0].tolist() == [30, 10]


def test_visibility_of_a_padded_prompt_by_hand() -> None:
    mask = torch.tensor([[False, True, True], [True, True, True]])
    padded, whole = prompt_visibility(mask)[:, 0].int().tolist()
    assert padded == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]  # the padding sees itself only
    assert whole == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_a_quarter_turn_by_hand() -> None:
    turned = rotate(torch.tensor([[[3.0, 4.0]]]), Rotation(torch.tensor([[0.0, 0.0]]), torch.tensor([[-1.0, 1.0]])))
    assert turned.tolist() == [[[-4.0, 3.0]]]


@pytest.mark.parametrize("num_rows", [1, 8, 9])
@pytest.mark.parametrize("biased", [False, True])
def test_logits_are_the_heads_product_for_few_rows_and_many(num_rows: int, biased: bool) -> None:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(num_rows, 16), torch.randn(50, 16), torch.randn(50)
    expected = hidden.double() @ weight.double().T + (bias.double() if biased else 0.0)
    found = next_logits(hidden, Head(weight, bias if biased else None))
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    assert found.is_contiguous() and found.dtype == torch.float32
    exact = next_logits(hidden.double(), Head(weight.double(), bias.double() if biased else None))
    torch.testing.assert_close(exact, expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("biased", [False, True])
def test_a_half_precision_head_is_applied_in_float32_piece_by_piece(biased: bool) -> None:
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(shape).bfloat16() for shape in ((3, 16), (20_000, 16), (20_000,)))
    expected = hidden.double() @ weight.double().T + (bias.double() if biased else 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = next_logits(hidden, Head(weight, bias if biased else None))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_decoding_leaves_the_network_as_it_was() -> None:
    model, rows = networks("qwen2")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    decoded(model, rows)
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
