"""The reward model: one score per text, whatever the padding; its scale; critics made from it."""

from pathlib import Path

import pytest
import torch

from alignlab.batches import IGNORE, Sequences
from alignlab.errors import ModelError
from alignlab.models.adapters import LoRA, QLoRA
from alignlab.models.critic import Critic
from alignlab.models.heads import ValueHead, init_reward_head
from alignlab.models.reward_model import RewardModel, TextFormat, left_aligned
from alignlab.models.saving import load_reward_model, save_policy, save_reward_model
from alignlab.models.source import ModelSource
from tests import tiny_models as tiny

LENGTHS = (11, 7, 5)
BACKBONES = ("gpt2", "llama", "gpt_neo", *tiny.ENCODERS)


def reward_model(kind: str, seed: int = 0) -> RewardModel:
    """A peaky reward model."""
    return RewardModel(tiny.tiny_classifier(kind, seed=seed), tokenizer=tiny.tiny_tokenizer())


def alone(sequences: Sequences, row: int) -> Sequences:
    """One row without padding."""
    mask = sequences.attention_mask[row]
    return Sequences(*(part[row, mask][None] for part in sequences))


@pytest.mark.parametrize("kind", BACKBONES)
@torch.no_grad()
def test_a_score_is_the_same_alone_padded_left_and_padded_right(kind: str) -> None:
    model, rows = reward_model(kind), tiny.tiny_sequences(LENGTHS)
    expected = torch.cat([model(alone(rows, row)) for row in range(3)])
    assert expected.unique().numel() == 3 and expected.dtype == torch.float32
    torch.testing.assert_close(model(rows), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(tiny.left_padded(rows, extra=2)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", BACKBONES)
@torch.no_grad()
def test_the_end_token_as_pad_token_moves_no_score(kind: str) -> None:
    model = reward_model(kind)
    with_pad, with_eos = (tiny.tiny_sequences(LENGTHS, pad_id=pad) for pad in (0, 2))
    with_pad.input_ids[0, -1] = with_eos.input_ids[0, -1] = 2  # a real end token, to be scored at
    torch.testing.assert_close(model(with_pad), model(with_eos), atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_decoders_score_agrees_with_transformers_on_unpadded_rows() -> None:
    model, rows = reward_model("llama"), tiny.tiny_sequences((9, 9))
    torch.testing.assert_close(model(rows), model.model(input_ids=rows.input_ids).logits[:, 0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_token_values_are_the_scores_of_prefixes() -> None:
    model, rows = reward_model("gpt2"), tiny.left_padded(tiny.tiny_sequences((8, 5)))
    values = model.token_values(rows)
    prefix = Sequences(*(part[:, :6] for part in rows))
    torch.testing.assert_close(values[:, 5], model(prefix), atol=1e-5, rtol=0)
    assert values[~rows.attention_mask].eq(0).all()
    with pytest.raises(ModelError, match="encoder"):
        reward_model("distilbert").token_values(rows)


def test_left_aligned_moves_padding_and_keeps_order() -> None:
    ids = torch.tensor([[0, 0, 7, 8], [5, 6, 0, 0]])
    mask = torch.tensor([[False, False, True, True], [True, True, False, False]])
    tidy = left_aligned(Sequences(ids, mask, ids.clone()))
    assert tidy.input_ids.tolist() == [[7, 8, 0, 0], [5, 6, 0, 0]]
    assert tidy.attention_mask.tolist() == [[True, True, False, False]] * 2


def test_a_fresh_head_has_the_standard_deviation_of_the_paper_and_no_bias() -> None:
    head = torch.nn.Linear(399, 50)
    init_reward_head(head, seed=0)
    assert head.weight.std().item() == pytest.approx(1 / 400**0.5, rel=0.02)
    assert head.bias.eq(0).all()


def test_the_value_head_starts_at_zero_and_answers_in_float32() -> None:
    head = ValueHead(8)
    values = head(torch.randn(2, 3, 8, dtype=torch.bfloat16))
    assert values.shape == (2, 3) and values.eq(0).all() and values.dtype == torch.float32


def test_normalised_scores_have_mean_0_and_deviation_1_also_after_a_reload(tmp_path: Path) -> None:
    model = reward_model("llama")
    scores = torch.tensor([1.0, 2.0, 6.0, 11.0])
    model.normalize(scores)
    model.text_format = TextFormat(template="plain", append_eos=False, stop_token_ids=(2,), max_length=99)
    save_reward_model(model, tmp_path)
    (tmp_path / "run.json").write_text("{}")
    loaded = load_reward_model(tmp_path)
    for some in (model, loaded):
        assert some.normalized(scores).mean().item() == pytest.approx(0, abs=1e-6)
        assert some.normalized(scores).std().item() == pytest.approx(1, abs=1e-6)
    assert loaded.text_format == model.text_format and loaded.stop_token_ids == (2,)
    again = ModelSource(init_from=str(tmp_path)).load_reward_model()
    assert again.gain.equal(model.gain) and again.bias.equal(model.bias)


def test_equal_scores_cannot_set_a_scale() -> None:
    with pytest.raises(ModelError, match="two different scores"):
        reward_model("llama").normalize(torch.ones(5))


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("adapter", [None, LoRA(2, alpha=4.0), QLoRA(2, alpha=4.0, compute_dtype="float32")])
def test_reward_models_train_save_and_reload(kind: str, adapter: LoRA | None, tmp_path: Path) -> None:
    source = ModelSource(architecture=tiny.tiny_architecture(kind), tokenizer=tiny.tiny_tokenizer())
    model, rows = source.load_reward_model(adapter), tiny.tiny_sequences(LENGTHS)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(rows).pow(2).sum().backward()
        optimizer.step()
    model.normalize(torch.tensor([0.0, 4.0]))
    save_reward_model(model, tmp_path)
    (tmp_path / "run.json").write_text("{}")
    loaded = load_reward_model(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(rows), model.eval()(rows), atol=1e-5, rtol=0)
        fresh = source.load_reward_model(adapter)(rows)
        assert (fresh - loaded(rows)).abs().max() > 1e-3
    heads = [
        name for name, p in model.named_parameters() if p.requires_grad and ("score" in name or "classifier" in name)
    ]
    assert heads and all("original_module" not in name for name in heads)


def test_a_reward_model_starts_from_a_policys_body_adapter_included(tmp_path: Path) -> None:
    policy = tiny.tiny_policy("llama", adapter=LoRA(2, alpha=16.0))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    save_policy(policy, tmp_path)
    (tmp_path / "run.json").write_text("{}")
    rows = tiny.tiny_sequences((9, 9))
    model = ModelSource(init_from=str(tmp_path), seed=3).load_reward_model()
    with torch.no_grad():
        hidden = policy.model.get_base_model().model(input_ids=rows.input_ids).last_hidden_state[:, -1]
        expected = torch.nn.functional.linear(hidden, model.model.score.weight)[:, 0]
        torch.testing.assert_close(model(rows), expected, atol=1e-5, rtol=0)
    again = ModelSource(init_from=str(tmp_path), seed=3).load_reward_model()
    assert again.model.score.weight.equal(model.model.score.weight)


def test_a_critic_from_a_reward_model_values_the_last_token_as_its_normalised_score() -> None:
    model, rows = reward_model("gpt2"), tiny.tiny_sequences((9, 9))
    model.normalize(torch.tensor([-1.0, 2.5]))
    critic = Critic.from_reward_model(model, tokenizer=tiny.tiny_tokenizer())
    longer = Sequences(*(torch.cat([part, part[:, -1:]], 1) for part in rows))  # one more scored token: a state at 9
    with torch.no_grad():
        values = critic(longer)
        torch.testing.assert_close(values[:, 8], model.normalized(model(rows)), atol=1e-5, rtol=0)
    assert values[:, :2].eq(0).all() and values[:, 9].eq(0).all()
    with pytest.raises(ModelError, match="encoder"):
        Critic.from_reward_model(reward_model("deberta-v2"), tokenizer=tiny.tiny_tokenizer())
    other = tiny.tiny_tokenizer()
    other.add_tokens(["more"])
    with pytest.raises(ModelError, match="other token ids"):
        Critic.from_reward_model(model, tokenizer=other)


def test_a_critic_from_a_frozen_reward_model_trains_weights_of_its_own() -> None:
    model = reward_model("gpt2").requires_grad_(False)  # as a reward is
    critic = Critic.from_reward_model(model, tokenizer=tiny.tiny_tokenizer())
    assert all(parameter.requires_grad for parameter in critic.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not {p.data_ptr() for p in critic.parameters()} & {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("adapter", [None, LoRA(2, alpha=4.0)])
def test_a_critic_from_a_policy_is_a_copy_that_starts_at_zero(adapter: LoRA | None) -> None:
    policy, rows = tiny.tiny_policy("llama", adapter=adapter), tiny.tiny_sequences(LENGTHS)
    critic = Critic.from_policy(policy)
    values = critic(rows)
    assert values.eq(0).all() and values.dtype == torch.float32
    of_policy = {p.data_ptr() for p in policy.parameters()}
    shared = [p for p in critic.parameters() if p.data_ptr() in of_policy]
    assert not any(p.requires_grad for p in shared)  # what is frozen beside an adapter is there once
    assert bool(shared) == (adapter is not None)
    critic.value_head.linear.weight.data.fill_(1.0)
    critic(rows).sum().backward()
    trained = [name for name, p in critic.named_parameters() if p.requires_grad]
    assert all(p.grad is not None for p in critic.parameters() if p.requires_grad)
    assert all("lora_" in name or "value_head" in name for name in trained) == (adapter is not None)
    assert not (rows.labels == IGNORE).all()


@pytest.mark.parametrize("kind", ["distilbert", "llama"])
def test_scores_are_computed_in_float32_under_autocast(kind: str):
    """In bfloat16 every score would be a multiple of 2^-7 or coarser near 2: margins would be coarse and pairs tie."""
    model = RewardModel(tiny.tiny_classifier(kind), tokenizer=tiny.tiny_tokenizer())
    sequences = tiny.tiny_sequences([5, 9, 12, 7])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(sequences)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())
