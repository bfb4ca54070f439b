"""The policy's log-probs: the right token, the right position, whatever the padding."""

import itertools
import math

import pytest
import torch
from torch import nn

from alignlab.batches import IGNORE, Sequences
from alignlab.errors import ModelError
from alignlab.models.backbone import check_plain_head, evaluating, hidden_states, lm_head
from alignlab.models.heads import ValueHead
from alignlab.models.policy import Policy
from tests import tiny_models as tiny

LENGTHS = (11, 7, 5)


def naive_logprobs(policy: Policy, sequences: Sequences, temperature: float = 1.0) -> torch.Tensor:
    """Row by row, without padding, token by token, in float64: the twin."""
    out = torch.zeros(sequences.input_ids.shape, dtype=torch.float64)
    for b in range(sequences.num_rows):
        columns = sequences.attention_mask[b].nonzero().flatten().tolist()
        row = sequences.input_ids[b, columns]
        logits = policy.model(input_ids=row[None]).logits[0].double() / temperature
        for place, column in enumerate(columns[1:], start=1):
            if sequences.labels[b, column] != IGNORE:
                chosen = logits[place - 1]
                out[b, column - 1] = chosen[row[place]] - chosen.exp().sum().log()
    return out


@pytest.mark.parametrize("kind", tiny.DECODERS)
@torch.no_grad()
def test_logprobs_are_those_of_each_row_alone_whatever_the_padding(kind: str) -> None:
    policy = tiny.tiny_policy(kind)
    rows = tiny.tiny_sequences(LENGTHS)
    for sequences in (rows, tiny.left_padded(rows, extra=3)):
        out = policy(sequences)
        expected = naive_logprobs(policy, sequences)
        torch.testing.assert_close(out.logprobs.double(), expected, atol=2e-5, rtol=0)
        assert out.mask.equal(expected != 0)
        assert out.logprobs.dtype == torch.float32


@torch.no_grad()
def test_the_probabilities_of_all_two_token_replies_sum_to_one() -> None:
    model = tiny.tiny_causal("gpt2", vocab_size=7)
    policy = Policy(model, tokenizer=tiny.tiny_tokenizer(), stop_token_ids=(2,))
    replies = torch.tensor(list(itertools.product(range(7), repeat=2)))
    ids = torch.cat([torch.tensor([[3, 5]]).expand(49, 2), replies], 1)
    labels = ids.clone()
    labels[:, :2] = IGNORE
    out = policy(Sequences(ids, torch.ones_like(ids, dtype=torch.bool), labels))
    assert out.logprobs.sum(1).exp().sum().item() == pytest.approx(1.0, abs=1e-5)


@torch.no_grad()
def test_temperature_divides_the_logits() -> None:
    policy, rows = tiny.tiny_policy("qwen2"), tiny.tiny_sequences(LENGTHS)
    cool = policy(rows, temperature=0.7).logprobs
    torch.testing.assert_close(cool.double(), naive_logprobs(policy, rows, 0.7), atol=2e-5, rtol=0)
    assert (cool - policy(rows).logprobs).abs().max() > 0.1


@torch.no_grad()
def test_a_heads_bias_counts_in_log_probs_in_parts_and_in_greedy_choice() -> None:
    policy, rows = tiny.tiny_policy("llama"), tiny.tiny_sequences(LENGTHS)
    without = policy(rows).logprobs
    bias = torch.nn.Parameter(torch.linspace(-2.0, 2.0, 49))  # Phi and GPT-J have one
    policy.model.get_submodule("lm_head").register_parameter("bias", bias)
    expected = naive_logprobs(policy, rows)
    out = policy(rows)
    torch.testing.assert_close(out.logprobs.double(), expected, atol=2e-5, rtol=0)
    assert (out.logprobs - without).abs().max() > 0.1
    index = [torch.tensor([1]), torch.tensor([0, 2])]
    pieces = [(units, rows.take(units)) for units in index]
    loss = policy.loss_in_parts(rows, pieces, lambda number, part: ((number + 1) * part.logprobs.sum(), {})).loss
    torch.testing.assert_close(loss.double(), expected[1].sum() + 2 * expected[[0, 2]].sum(), atol=1e-4, rtol=0)
    token = rows.input_ids[0, 5]
    bias[token] += 1e3
    greedy = policy(rows, greedy=True).greedy
    assert greedy is not None and greedy.any()
    assert greedy[:, :-1].equal((rows.input_ids[:, 1:] == token) & out.mask[:, :-1])


@torch.no_grad()
def test_the_pad_id_never_matters_not_even_the_end_tokens() -> None:
    policy = tiny.tiny_policy("gpt2")
    with_pad, with_eos = (tiny.tiny_sequences(LENGTHS, pad_id=pad) for pad in (0, 2))
    assert not with_pad.input_ids.equal(with_eos.input_ids)
    torch.testing.assert_close(policy(with_pad).logprobs, policy(with_eos).logprobs, atol=1e-6, rtol=0)


@torch.no_grad()
def test_entropy_is_that_of_the_tempered_distribution() -> None:
    policy, rows = tiny.tiny_policy("llama"), tiny.tiny_sequences((9, 9))
    out = policy(rows, temperature=1.3, entropy=True)
    logits = policy.model(input_ids=rows.input_ids).logits / 1.3
    expected = torch.distributions.Categorical(logits=logits).entropy()
    assert out.entropy is not None
    torch.testing.assert_close(out.entropy[out.mask], expected[out.mask], atol=1e-5, rtol=0)
    assert out.entropy[~out.mask].eq(0).all()


def test_values_start_at_exactly_zero_and_reach_the_trunk_once_the_head_has_moved() -> None:
    policy, rows = tiny.tiny_policy("llama"), tiny.tiny_sequences(LENGTHS)
    policy.value_head = ValueHead(policy.hidden_size)
    assert policy(rows, values=True).values.eq(0).all()
    torch.nn.init.ones_(policy.value_head.linear.weight)
    out = policy(rows, values=True)
    assert out.values[~out.mask].eq(0).all()
    out.values.sum().backward()
    assert policy.model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_values_are_of_the_states_before_the_scored_tokens() -> None:
    policy, rows = tiny.tiny_policy("llama"), tiny.tiny_sequences(LENGTHS)
    head = policy.value_head = ValueHead(policy.hidden_size)
    torch.nn.init.normal_(head.linear.weight)
    states = hidden_states(policy.model, rows.input_ids, rows.attention_mask)
    values = policy(rows, values=True).values
    for b, t in (rows.labels[:, 1:] != IGNORE).nonzero().tolist():
        torch.testing.assert_close(values[b, t], head(states[b, t]))
    assert values.unique().numel() == 1 + int(rows.num_scored)


def test_the_head_is_applied_at_scored_positions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    import alignlab.models.policy as module

    real = module.linear_logprobs
    monkeypatch.setattr(
        module, "linear_logprobs", lambda hidden, *a, **k: seen.append(len(hidden)) or real(hidden, *a, **k)
    )
    rows = tiny.tiny_sequences(LENGTHS)
    tiny.tiny_policy("llama")(rows)
    assert seen == [int(rows.num_scored)] == [8 + 4 + 2]


def test_gradients_equal_those_through_full_logits() -> None:
    policy, rows = tiny.tiny_policy("gpt2"), tiny.tiny_sequences((8, 8))
    policy(rows).logprobs.sum().backward()
    ours = {name: p.grad.clone() for name, p in policy.named_parameters()}
    policy.zero_grad()
    naive_logprobs(policy, rows).sum().backward()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_forward_is_float32_under_bfloat16_autocast_and_close_to_full_precision() -> None:
    policy, rows = tiny.tiny_policy("llama"), tiny.tiny_sequences(LENGTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = policy(rows)
    assert out.logprobs.dtype == torch.float32
    assert 0 < (out.logprobs - policy(rows).logprobs).abs().max() < 0.5


@pytest.mark.parametrize("kind", tiny.SCALED_HEADS)
def test_scale_and_soft_cap_of_a_head_count_in_log_probs_in_parts_and_in_gradients(kind: str) -> None:
    policy, rows = tiny.tiny_policy(kind), tiny.tiny_sequences(LENGTHS)
    check_plain_head(policy.model)
    head = lm_head(policy.model)
    plain = nn.functional.linear(hidden_states(policy.model, rows.input_ids, rows.attention_mask), head.weight)
    assert (plain - policy.model(rows.input_ids, rows.attention_mask).logits).abs().max() > 1  # else this shows nothing
    out, expected = policy(rows, temperature=0.7), naive_logprobs(policy, rows, 0.7)
    torch.testing.assert_close(out.logprobs.double(), expected, atol=2e-5, rtol=0)
    parts = [(torch.tensor([k]), rows.take(torch.tensor([k]))) for k in range(rows.num_rows)]
    in_parts = policy.loss_in_parts(rows, parts, lambda _, own: (own.logprobs.sin().sum(), {}), temperature=0.7)
    weights = list(policy.parameters())
    theirs = torch.autograd.grad(expected.sin().sum(), weights, allow_unused=True)
    for loss in (out.logprobs.sin().sum(), in_parts.loss):
        for one, other in zip(torch.autograd.grad(loss, weights, allow_unused=True), theirs, strict=True):
            if other is not None:
                torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


def test_a_head_scaled_under_another_name_is_refused_because_the_network_itself_is_asked() -> None:
    model = tiny.tiny_causal("cohere")
    check_plain_head(model)
    model.config.logit_scale = 1.0  # the network has read it already
    with pytest.raises(ModelError, match="CohereForCausalLM does not compute logits as head"):
        check_plain_head(model)
    check_plain_head(tiny.tiny_causal("gpt_neox"))


def test_an_adapted_head_is_refused() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny.tiny_causal("llama"), LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    )
    with pytest.raises(ModelError, match="LM head"):
        lm_head(model)


def test_evaluating_restores_each_modules_own_mode() -> None:
    model = tiny.tiny_causal("llama").train()
    model.lm_head.eval()
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert model.training and not model.lm_head.training


@torch.no_grad()
def test_test_models_are_peaky_enough_to_show_a_shifted_label() -> None:
    for kind in tiny.DECODERS:
        rows = tiny.tiny_sequences((12, 12))
        out = tiny.tiny_policy(kind)(rows, entropy=True)
        assert out.entropy[out.mask].mean() < 0.95 * math.log(49), kind
        hidden = hidden_states(tiny.tiny_causal(kind), rows.input_ids, rows.attention_mask)
        assert hidden.shape == (2, 12, 32)
