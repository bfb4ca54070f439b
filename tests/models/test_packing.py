"""Packed and shared batches: the same numbers and gradients as every row alone, nothing seen across rows."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2Config

from alignlab.batches import IGNORE, Sequences
from alignlab.errors import ModelError
from alignlab.kernels.logprobs import shift_labels
from alignlab.models import packing
from alignlab.models.adapters import LoRA, QLoRA
from alignlab.models.backbone import body_of, hidden_states
from alignlab.models.critic import Critic
from alignlab.models.packing import Layout, flex, hidden_at, packed
from alignlab.models.packing.attention import NAME, attend, make_segments
from alignlab.models.packing.packed import longest_packable, pack
from alignlab.models.packing.pieces import Piece
from alignlab.models.reward_model import RewardModel
from alignlab.models.source import ModelSource
from tests import tiny_models as tiny

KINDS = ("gpt2", "llama", "qwen2", "gpt_neox")  # llama and qwen2: one key head serves two query heads
LAYOUTS: tuple[Layout, ...] = ("packed", "shared")
CPU = torch.device("cpu")


def mixed_rows(side: str = "right") -> Sequences:
    """Every case at once: a pair apart, a group of three, twins, a lone row, one without labels, one without tokens."""
    prompts = ["aaab", "bcd", "aaab", "bcd", "efghij", "bcd", "bcd", "aaabq", "", "efghij", "bce"]
    replies = ["xyz", "q", "pppp", "rst", "uv", "q", None, "xyz", None, None, "q"]
    tokens = [[ord(c) - 90 for c in prompt + (reply or "")] for prompt, reply in zip(prompts, replies, strict=True)]
    width = max(map(len, tokens)) + 2
    ids, mask, labels = torch.zeros(3, len(tokens), width, dtype=torch.long)
    labels.fill_(IGNORE)
    for b, row in enumerate(tokens):
        start = {"right": 0, "left": width - len(row), "middle": (width - len(row)) // 2}[side]
        ids[b, start : start + len(row)] = torch.tensor(row)
        mask[b, start : start + len(row)] = 1
        if replies[b]:
            labels[b, start + len(prompts[b]) : start + len(row)] = torch.tensor(row[len(prompts[b]) :])
    return Sequences(ids, mask.bool(), labels)


def gaps_inside(rows: Sequences) -> Sequences:
    """The same rows with a column of padding in the middle."""
    parts = []
    for part, fill in zip(rows, (0, False, IGNORE), strict=True):
        parts.append(torch.cat([part[:, :3], torch.full_like(part[:, :1], fill), part[:, 3:]], dim=1))
    return Sequences(*parts)


def one_by_one(model: nn.Module, rows: Sequences, where: Tensor) -> Tensor:
    """Every row alone and unpadded, with plain transformers: positions from 0, causal attention."""
    states = []
    for ids, real, wanted in zip(rows.input_ids, rows.attention_mask, where, strict=True):
        if real.any():
            states.append(body_of(model)(input_ids=ids[real][None]).last_hidden_state[0][wanted[real]])
    return torch.cat(states)


def exact(model: nn.Module) -> Any:
    """The network in float64 throughout: transformers computes RMS norms in float32 whatever the weights are."""
    for part in model.double().modules():
        if type(part).__name__.endswith("RMSNorm"):
            part.forward = lambda x, p=part: p.weight * nn.functional.rms_norm(x, x.shape[-1:], eps=p.variance_epsilon)
    return model


def with_gradients(model: nn.Module, states: Tensor, keep: Tensor | None = None) -> dict[str, Tensor]:
    """Values, and the gradients of a scalar that weighs every one of them differently."""
    model.zero_grad()
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (states * weights).sum().backward()
    grads = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
    return {"values": states.detach(), **grads}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Values to the tolerance, gradients to the tolerance of the largest of their tensor."""
    assert found.keys() == expected.keys() and len(found) > 1
    for name, value in expected.items():
        scale = max(1.0, value.abs().max().item())
        torch.testing.assert_close(found[name] / scale, value / scale, atol=tolerance, rtol=0, msg=f"{name} differs")


@pytest.mark.parametrize("side", ["right", "left", "middle"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_every_row_alone(kind: str, layout: Layout, side: str) -> None:
    model, rows = exact(tiny.tiny_causal(kind, factor=4.0)), mixed_rows(side)
    if side == "middle":
        rows = gaps_inside(rows)
    real = rows.attention_mask
    expected = with_gradients(model, one_by_one(model, rows, real))
    assert_same(with_gradients(model, hidden_at(model, rows, real, layout=layout)), expected, 1e-10)
    scored = shift_labels(rows.labels) != IGNORE
    expected = with_gradients(model, one_by_one(model, rows, scored & real))
    if side != "middle":  # the shift names the column before, which a gap would make padding
        assert_same(with_gradients(model, hidden_at(model, rows, scored, layout=layout)), expected, 1e-10)
        assert_same(with_gradients(model, hidden_states(model, *rows[:2])[scored]), expected, 1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_agrees_with_the_padded_batch(layout: Layout) -> None:
    model, rows = tiny.tiny_causal("gpt2", factor=4.0), mixed_rows()
    expected = with_gradients(model, hidden_at(model, rows, rows.attention_mask, layout="padded").double())
    found = with_gradients(model, hidden_at(model, rows, rows.attention_mask, layout=layout).double())
    assert_same(found, expected, 1e-5)


def test_a_packed_row_by_hand() -> None:
    # rows 0 and 2 share the prompt [7, 8]; row 1 has nothing scored; row 3 has no tokens; left padding
    ids = torch.tensor([[0, 7, 8, 9], [0, 0, 7, 8], [7, 8, 5, 6], [0, 0, 0, 0]])
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    labels = torch.full((4, 4), IGNORE)
    labels[0, 3], labels[2, 2:] = 9, torch.tensor([5, 6])
    shared = pack(Sequences(ids, mask, labels), min_prefix=1)
    assert shared is not None
    assert shared.input_ids.tolist() == [[7, 8, 9, 5, 6, 7, 8]]
    assert shared.position_ids.tolist() == [[0, 1, 2, 2, 3, 0, 1]]
    assert shared.segments.pieces == (Piece(3), Piece(2, source=0, prefix=2), Piece(2))
    assert shared.segments.longest == 4 and shared.segments.num_tokens == 7
    assert shared.index.tolist() == [[0, 0, 1, 2], [0, 0, 5, 6], [0, 1, 3, 4], [0, 0, 0, 0]]
    apart = pack(Sequences(ids, mask, labels), min_prefix=3)
    assert apart is not None and apart.input_ids.tolist() == [[7, 8, 9, 7, 8, 7, 8, 5, 6]]
    assert pack(Sequences(ids[3:], mask[3:], labels[3:])) is None


@pytest.mark.parametrize("layout", ["auto", "padded", *LAYOUTS])
def test_nothing_asked_for_and_nothing_there(layout: Layout) -> None:
    model, rows = tiny.tiny_causal("gpt2"), mixed_rows()
    nothing = torch.zeros_like(rows.attention_mask)
    for asked in (rows, rows.take(slice(8, 9))):  # row 8 has no token at all
        states = hidden_at(model, asked, nothing[: asked.num_rows], layout=layout)
        assert states.shape == (0, 32)
        states.sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_row_sees_another(kind: str, layout: Layout) -> None:
    model, rows = tiny.tiny_causal(kind, factor=4.0).double(), mixed_rows()
    before = hidden_at(model, rows, rows.attention_mask, layout=layout)
    owner = torch.arange(rows.num_rows)[:, None].expand_as(rows.input_ids)[rows.attention_mask]
    for b, column in ((0, 5), (2, 4), (3, 3), (6, 1)):  # reply tokens of shared prompts; inside an unscored row
        other = Sequences(*(part.clone() for part in rows))
        other.input_ids[b, column] += 1
        after = hidden_at(model, other, rows.attention_mask, layout=layout)
        changed = (after != before).any(-1)
        assert changed[owner == b].any() and not changed[owner != b].any()


@torch.no_grad()
def test_padding_never_reaches_the_network() -> None:
    model, rows = tiny.tiny_causal("gpt2"), mixed_rows("left")
    expected = hidden_at(model, rows, rows.attention_mask, layout="packed")
    model.get_input_embeddings().weight[0] = torch.nan  # 0 is the pad token, and in no row
    for layout in LAYOUTS:
        found = hidden_at(model, rows, rows.attention_mask, layout=layout)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gradient_checkpointing_runs_layers_again_with_the_same_pieces(
    kind: str, reentrant: bool, layout: Layout
) -> None:
    model, rows = exact(tiny.tiny_causal(kind, factor=4.0)).train(), mixed_rows()
    real = rows.attention_mask
    expected = with_gradients(model, hidden_at(model, rows, real, layout=layout))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    body_of(model).register_forward_pre_hook(lambda *_: calls.append("body"))
    layers = [part for part in model.modules() if getattr(part, "gradient_checkpointing", None) is True]
    attentions = [part for part in model.modules() if type(part).__name__ in ("GPT2Attention", "LlamaAttention")]
    for part in attentions:
        part.register_forward_hook(lambda *_: calls.append("layer"))
    assert layers
    assert_same(with_gradients(model, hidden_at(model, rows, real, layout=layout)), expected, 1e-12)
    assert calls.count("body") == 1 and calls.count("layer") == 2 * len(attentions)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lora_trains_as_it_does_padded_and_switches_off(layout: Layout) -> None:
    policy = tiny.tiny_policy("gpt2", adapter=LoRA(4, alpha=8.0))
    model, rows = policy.model.double(), mixed_rows()
    with torch.no_grad():
        for name, part in model.named_parameters():
            if "lora_B" in name:
                part.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    expected = with_gradients(model, one_by_one(model, rows, rows.attention_mask))
    found = with_gradients(model, hidden_at(model, rows, rows.attention_mask, layout=layout))
    assert_same(found, expected, 1e-10)
    assert {name for name in found if "lora_A" in name}
    with policy.adapter_off(), torch.no_grad():
        off = hidden_at(model, rows, rows.attention_mask, layout=layout)
        torch.testing.assert_close(off, one_by_one(model, rows, rows.attention_mask), atol=1e-10, rtol=0)
    assert not torch.allclose(off, found["values"], atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_four_bit_weights(layout: Layout, tmp_path: Path) -> None:
    source = ModelSource(init_from=str(tiny.write_causal(tmp_path, "llama")))
    policy = source.load_policy(QLoRA(2, alpha=4.0, compute_dtype="float32"))
    rows = mixed_rows()
    expected = hidden_at(policy.model, rows, rows.attention_mask, layout="padded")
    found = hidden_at(policy.model, rows, rows.attention_mask, layout=layout)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_autocast(layout: Layout) -> None:
    model, rows = tiny.tiny_causal("gpt2", factor=4.0), mixed_rows()
    exact = hidden_at(model, rows, rows.attention_mask, layout="padded")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = hidden_at(tiny.tiny_causal("gpt2", factor=4.0), rows, rows.attention_mask, layout=layout)
    assert 1e-4 < (found - exact).abs().max() < 0.2  # it did compute in bfloat16, and did compute the same


@torch.no_grad()
def test_a_networks_own_scale_of_attention_is_kept() -> None:
    config = tiny.tiny_config("gpt2")
    config.scale_attn_by_inverse_layer_idx = True
    model = AutoModelForCausalLM.from_config(config).eval()
    tiny.make_peaky(model, 9.0)
    rows = mixed_rows()
    expected = one_by_one(model, rows, rows.attention_mask)
    torch.testing.assert_close(
        hidden_at(model, rows, rows.attention_mask, layout="shared"), expected, atol=1e-5, rtol=0
    )


def test_attention_dropout_is_applied_in_training_only() -> None:
    config = tiny.tiny_config("gpt2")
    config.attn_pdrop = 0.5
    model, rows = AutoModelForCausalLM.from_config(config), mixed_rows()
    tiny.make_peaky(model, 9.0)

    def states(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return hidden_at(model, rows, rows.attention_mask, layout="shared")

    model.train()
    assert states(0).equal(states(0)) and not states(0).equal(states(1))
    model.eval()
    assert states(0).equal(states(1))


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_attend_is_dense_attention_under_the_mask_of_the_definition(heads: tuple[int, int], scaling: float) -> None:
    pieces = (Piece(5), Piece(3, 0, 4), Piece(1), Piece(2, 0, 1), Piece(4, 2, 1))
    query, key, value = random_heads(heads, sum(piece.length for piece in pieces))
    dense = attended_to(pieces)
    repeat = heads[0] // heads[1]
    scores = query @ key.repeat_interleave(repeat, 1).mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    weights = scores.masked_fill(~dense, -torch.inf).softmax(-1)
    expected = (weights @ value.repeat_interleave(repeat, 1)).transpose(1, 2)
    torch.testing.assert_close(attend(query, key, value, make_segments(pieces, CPU), scaling=scaling), expected)


def random_heads(heads: tuple[int, int], length: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Query, key and value [1, heads, length, 16]."""
    generator = torch.Generator().manual_seed(0)
    counts = (heads[0], heads[1], heads[1])
    return tuple(torch.randn(1, n, length, 16, generator=generator, dtype=dtype) for n in counts)


def attended_to(pieces: tuple[Piece, ...]) -> Tensor:
    """The definition, token by token: [N, N], True where the row's token attends to the column's."""
    homes = [(number, place) for number, piece in enumerate(pieces) for place in range(piece.length)]

    def attends(q: tuple[int, int], k: tuple[int, int]) -> bool:
        piece = pieces[q[0]]
        return (k[0] == q[0] and k[1] <= q[1]) or (k[0] == piece.source and k[1] < piece.prefix)

    return torch.tensor([[attends(q, k) for k in homes] for q in homes])


FLEX_PIECES = (
    (Piece(256),),
    (Piece(100), Piece(60, 0, 30), Piece(96)),
    (Piece(200, -1, 0), Piece(150, 0, 140), Piece(10), Piece(20, 2, 9), Piece(4)),
    (Piece(200), Piece(184, 0, 127)),  # all of a block but its last token
)


@pytest.mark.parametrize("pieces", FLEX_PIECES)
def test_the_rule_for_flex_attention_is_the_definition(pieces: tuple[Piece, ...]) -> None:
    reach = flex.reach_of(pieces)
    token = torch.arange(reach.shape[1])
    dense = flex.mask_rule(reach)(0, 0, token[:, None], token[None])
    expected = attended_to(pieces)
    assert dense.equal(expected)
    blocks = expected.unfold(0, 128, 128).unfold(1, 128, 128)  # (Q, K, 128, 128)
    touched, filled = flex.blocks_of(reach)
    assert touched.equal(blocks.any(-1).any(-1)) and filled.equal(blocks.all(-1).all(-1))
    listed = flex.block_mask_of(pieces, CPU)
    assert listed.to_dense()[0, 0].bool().equal(touched) and listed.shape[-1] == len(token)


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_gives_what_the_loop_gives(heads: tuple[int, int]) -> None:
    for pieces in FLEX_PIECES:
        parts = random_heads(heads, sum(piece.length for piece in pieces), torch.float32)
        found = flex.flex(*parts, flex.block_mask_of(pieces, CPU), 0.3)
        torch.testing.assert_close(found, attend(*parts, make_segments(pieces, CPU), scaling=0.3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_networks_with_attention_of_their_own_stay_padded(layout: Layout) -> None:
    model, rows = tiny.tiny_causal("gpt_neo"), long_pairs(40)
    real = rows.attention_mask
    assert longest_packable(body_of(model)) == 0
    with pytest.raises(ModelError, match=f"layout={layout}: GPTNeoModel cannot be packed"):
        hidden_at(model, rows, real, layout=layout)
    assert hidden_at(model, rows, real).equal(hidden_states(model, rows.input_ids, real)[real])
    with pytest.raises(ModelError, match="layout='dense': one of auto, padded, packed, shared"):
        hidden_at(model, rows, real, layout="dense")  # type: ignore[arg-type]


@torch.no_grad()
def test_a_sliding_window_is_packed_up_to_its_length() -> None:
    config = Qwen2Config(
        **{**tiny.tiny_config("qwen2").to_dict(), "use_sliding_window": True, "sliding_window": 9},
    )
    config.layer_types = ["full_attention", "sliding_attention"]
    model = AutoModelForCausalLM.from_config(config).eval()
    tiny.make_peaky(model, 9.0)
    rows = mixed_rows()  # the longest has 8 tokens
    assert longest_packable(body_of(model)) == 9
    found = hidden_at(model, rows, rows.attention_mask, layout="shared")
    torch.testing.assert_close(found, one_by_one(model, rows, rows.attention_mask), atol=1e-5, rtol=0)
    long = long_pairs(30, replies=(60, 4, 6, 8))
    assert layout_taken(tiny.tiny_causal("qwen2"), long)[0] == "shared"  # so would this network be, but for its window
    with pytest.raises(ModelError, match=r"90 tokens is longer than the attention window of Qwen2Model, 9"):
        hidden_at(model, long, long.attention_mask, layout="shared")
    padded = hidden_states(model, long.input_ids, long.attention_mask)[long.attention_mask]
    assert hidden_at(model, long, long.attention_mask).equal(padded)


def test_asking_a_network_leaves_no_trace_and_happens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny.tiny_causal("llama").train(), mixed_rows()
    model.gradient_checkpointing_enable()
    body_of(model).layers[0].eval()  # type: ignore[union-attr]
    modes = [part.training for part in model.modules()]
    random_state, weights = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    asked: list[Any] = []
    probe = packed._probe
    monkeypatch.setattr(packed, "_probe", lambda body: asked.append(body) or probe(body))
    assert longest_packable(body_of(model)) > 1000
    assert torch.get_rng_state().equal(random_state)
    assert [part.training for part in model.modules()] == modes and model.is_gradient_checkpointing
    assert all(part.grad is None for part in model.parameters())
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())
    hidden_at(model, rows, rows.attention_mask, layout="packed")
    hidden_at(copy.deepcopy(model), rows, rows.attention_mask, layout="shared")
    assert len(asked) == 1
    model.set_attn_implementation("eager")  # which knows nothing of pieces
    assert longest_packable(body_of(model)) == 0


def test_an_eager_network_keeps_its_attention() -> None:
    model = tiny.tiny_causal("gpt2")
    model.set_attn_implementation("eager")
    assert longest_packable(body_of(model)) == 0
    assert model.config._attn_implementation == "eager"


class _LooksAhead(nn.Module):
    """A layer's attention that mixes in the whole row's mean: no mask can keep packed rows apart."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, *rest = self.inner(*args, **kwargs)
        return output + output.mean(1, keepdim=True), *rest


def test_a_network_that_mixes_rows_is_found_out_and_left_as_it_was() -> None:
    model = tiny.tiny_causal("gpt2")
    model.transformer.h[0].attn = _LooksAhead(model.transformer.h[0].attn)
    assert longest_packable(body_of(model)) == 0
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_a_packed_batch_it_is_sdpa(kind: str, tmp_path: Path) -> None:
    plain, model = tiny.tiny_causal(kind), tiny.tiny_causal(kind)
    assert longest_packable(body_of(model)) and model.config._attn_implementation == NAME
    rows = tiny.left_padded(tiny.tiny_sequences((9, 6, 3)))
    inputs = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask.long()}
    assert model(**inputs).logits.equal(plain(**inputs).logits)
    for cache in ("dynamic", "static"):
        settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "cache_implementation": cache}
        assert model.generate(**inputs, **settings).equal(plain.generate(**inputs, **settings))
    model.save_pretrained(tmp_path)
    saved = (tmp_path / "config.json").read_text()
    assert NAME not in saved and "_longest_packable" not in saved and json.loads(saved)["vocab_size"] == 49
    assert not any("_longest" in name for name in model.state_dict())


@torch.no_grad()
def test_another_network_in_the_same_step_is_not_touched() -> None:
    model, other, rows = tiny.tiny_causal("gpt2"), tiny.tiny_causal("llama"), mixed_rows()
    longest_packable(body_of(other))
    expected = hidden_states(other, *rows[:2])
    hidden_at(model, rows, rows.attention_mask, layout="shared")
    assert hidden_states(other, *rows[:2]).equal(expected)
    first = pack(rows, min_prefix=1)
    assert first is not None
    with pytest.raises(ModelError, match="reached a network that reads something else"), packed.running(first.segments):
        hidden_states(other, *rows[:2])
    assert hidden_states(other, *rows[:2]).equal(expected)  # also after an error


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reward_model_scores_and_learns_the_same(layout: Layout) -> None:
    rows = mixed_rows("left").take(slice(0, 8))
    model = RewardModel(tiny.tiny_classifier("llama", factor=4.0).double(), tokenizer=tiny.tiny_tokenizer())
    model.model.score.float()  # the head computes in float32
    assert model.layout == "auto"
    outputs = {}
    for model.layout in ("padded", layout):
        scores, values = model(rows), model.token_values(rows)
        assert values.shape == rows.input_ids.shape and not values[~rows.attention_mask].any()
        last = rows.attention_mask.shape[1] - 1 - rows.attention_mask.flip(1).long().argmax(1)
        torch.testing.assert_close(values.gather(1, last[:, None])[:, 0], scores)
        outputs[model.layout] = with_gradients(model, torch.cat([scores[:, None], values], dim=1).double())
    assert_same(outputs[layout], outputs["padded"], 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_critic_values_and_learns_the_same(layout: Layout) -> None:
    rows, policy = mixed_rows(), tiny.tiny_policy("gpt2")
    policy.layout = layout
    critic = Critic.from_policy(policy)
    nn.init.normal_(critic.value_head.linear.weight)
    assert critic.layout == layout
    found = with_gradients(critic, critic(rows).double())
    critic.layout = "padded"
    assert_same(found, with_gradients(critic, critic(rows).double()), 1e-5)


def long_pairs(prompt: int, *, shared: bool = True, replies: tuple[int, ...] = (10, 4, 6, 8)) -> Sequences:
    """Half as many prompts as replies; first the first reply of each, then the second."""
    rows = tiny.tiny_sequences([prompt + reply for reply in replies], prompt=prompt)
    half = len(replies) // 2
    if shared:
        rows.input_ids[half:, :prompt] = rows.input_ids[:half, :prompt]
    return rows


def layout_taken(model: nn.Module, rows: Sequences) -> tuple[str, int]:
    """What `auto` does with a batch, and the tokens that it runs."""
    chosen = packing._automatic(body_of(model), rows)
    if chosen is None:
        return "padded", rows.input_ids.numel()
    sharing = any(piece.prefix for piece in chosen.segments.pieces)
    return "shared" if sharing else "packed", chosen.segments.num_tokens


def test_auto_takes_what_costs_least() -> None:
    wide = tiny.tiny_architecture("gpt2") | {"n_embd": 256, "n_layer": 1, "n_head": 4}
    config = tiny.tiny_config("gpt2")
    config.update({name: wide[name] for name in ("n_embd", "n_layer", "n_head")})
    big, small = AutoModelForCausalLM.from_config(config), tiny.tiny_causal("gpt2")
    assert layout_taken(big, long_pairs(40)) == ("shared", 2 * 40 + 10 + 4 + 6 + 8)
    assert layout_taken(big, long_pairs(40, shared=False, replies=(60, 4, 6, 8))) == ("packed", 4 * 40 + 78)
    assert layout_taken(big, long_pairs(40, shared=False, replies=(9, 9, 9, 9))) == ("padded", 4 * 49)
    assert layout_taken(small, long_pairs(4)) == ("padded", 4 * 14)
    rows = long_pairs(40)
    assert hidden_at(big, rows, rows.attention_mask).shape == (188, 256)


def test_tiny_worlds_stay_padded_and_their_network_is_not_even_asked() -> None:
    model = tiny.tiny_causal("llama")
    rows = tiny.tiny_sequences([2 + i % 7 for i in range(512)], prompt=1)
    assert layout_taken(model, rows) == ("padded", 512 * 8)
    assert "_longest_packable" not in vars(body_of(model))


@torch.no_grad()
def test_a_row_without_tokens_moves_no_other_rows_score() -> None:
    model = RewardModel(tiny.tiny_classifier("gpt2"), tokenizer=tiny.tiny_tokenizer())
    for rows in (mixed_rows("left"), mixed_rows("right")):
        filled = rows.attention_mask.any(1)
        for model.layout in LAYOUTS:
            scores = model(rows)
            assert scores.shape == (11,) and filled.sum() == 10
            torch.testing.assert_close(scores[filled], model(rows.take(filled.nonzero().flatten())), atol=1e-5, rtol=0)
