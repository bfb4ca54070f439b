"""The decode loop: the same text as the networks' own greedy search, log-probs that training agrees with."""

import pytest
import torch
from transformers import GenerationConfig

from alignlab.batches import IGNORE, PromptBatch
from alignlab.errors import ConfigError, DataError
from alignlab.models.adapters import LoRA
from alignlab.models.decoding import Decoder
from alignlab.models.policy import Policy
from alignlab.rollout.generate import _closed_up, continuation_text, generate
from tests import tiny_models as tiny

LENGTHS = (9, 4, 6, 1)


def seeded(seed: int = 0) -> torch.Generator:
    """A fresh generator."""
    return torch.Generator().manual_seed(seed)


def one_row(prompts: PromptBatch, row: int) -> PromptBatch:
    """A prompt alone, without padding."""
    mask = prompts.attention_mask[row]
    ids = prompts.input_ids[row, mask][None]
    return PromptBatch(
        ids, torch.ones_like(ids, dtype=torch.bool), prompts.rows[row : row + 1], prompts.prompts[row : row + 1]
    )


def reply_ids(rollout, row: int) -> list[int]:
    """The scored tokens of a row."""
    labels = rollout.sequences.labels[row]
    return labels[labels != IGNORE].tolist()


def hf_greedy(policy: Policy, prompts: PromptBatch, max_new_tokens: int) -> list[list[int]]:
    """transformers' greedy search, row by row."""
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=list(policy.stop_token_ids), pad_token_id=0
    )
    replies = []
    for row in range(len(prompts.rows)):
        alone = one_row(prompts, row)
        ids = policy.model.generate(
            input_ids=alone.input_ids, attention_mask=alone.attention_mask.long(), generation_config=config
        )
        replies.append(ids[0, alone.input_ids.shape[1] :].tolist())
    return replies


@pytest.mark.parametrize("kind", (*tiny.DECODERS, *tiny.SCALED_HEADS))
@pytest.mark.parametrize("decoder", ["auto", "general"])
def test_greedy_replies_equal_transformers_for_each_prompt_alone(kind: str, decoder: Decoder) -> None:
    policy = tiny.tiny_policy(kind, stop_token_ids=(2, 11, 17))
    prompts = tiny.tiny_prompts(LENGTHS)
    expected = hf_greedy(policy, prompts, 12)
    rollout = generate(policy, prompts, max_new_tokens=12, greedy=True, decoder=decoder)
    assert [reply_ids(rollout, row) for row in range(4)] == expected
    assert rollout.complete.tolist() == [reply[-1] in (2, 11, 17) for reply in expected]


@pytest.mark.parametrize("kind", (*tiny.DECODERS, *tiny.SCALED_HEADS))
def test_sampler_logprobs_equal_the_training_forwards_at_any_temperature(kind: str) -> None:
    policy = tiny.tiny_policy(kind, stop_token_ids=(2, 11, 17))
    for temperature in (1.0, 0.7):
        rollout = generate(
            policy, tiny.tiny_prompts(LENGTHS), max_new_tokens=16, temperature=temperature, generator=seeded()
        )
        with torch.no_grad():
            out = policy(rollout.sequences, temperature=temperature)
        assert (out.logprobs - rollout.sampler_logprobs).abs().max() < 1e-5
        assert out.mask.equal(rollout.sampler_logprobs != 0)
        assert (
            (out.logprobs - policy(rollout.sequences, temperature=temperature).logprobs).exp() - 1
        ).abs().max() < 1e-6


@pytest.mark.parametrize("kind", tiny.DECODERS)
def test_both_decoders_draw_the_same_tokens_with_the_same_generator(kind: str) -> None:
    policy = tiny.tiny_policy(kind, adapter=LoRA(4, alpha=16.0), stop_token_ids=(2, 11, 17, 20))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=seeded(7))
    prompts = tiny.tiny_prompts((19, 4, 6, 1, 12, 9))
    ours, general = (
        generate(policy, prompts, max_new_tokens=30, generator=seeded(2), temperature=1.5, top_k=20, decoder=decoder)
        for decoder in ("auto", "general")
    )
    assert ours.sequences.input_ids.equal(general.sequences.input_ids)
    assert ours.complete.equal(general.complete) and ours.complete.any()
    assert (ours.sampler_logprobs - general.sampler_logprobs).abs().max() < 2e-5


@pytest.mark.parametrize("decoder", ["auto", "general"])
def test_sampler_logprobs_are_exact_in_float64(decoder: Decoder) -> None:
    policy = tiny.tiny_policy("gpt2", stop_token_ids=(2, 11, 17)).double()
    rollout = generate(policy, tiny.tiny_prompts(LENGTHS), max_new_tokens=16, generator=seeded(), decoder=decoder)
    with torch.no_grad():
        out = policy(rollout.sequences)
    assert rollout.sampler_logprobs.dtype == torch.float64
    assert (out.logprobs - rollout.sampler_logprobs).abs().max() < 1e-10


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_replies_of_two_tokens_follow_the_policys_distribution(kind: str) -> None:
    policy = Policy(
        tiny.tiny_causal(kind, vocab_size=6, factor=3.0), tokenizer=tiny.tiny_tokenizer(), stop_token_ids=(2,)
    )
    draws, prompt = 6000, torch.tensor([[3, 5, 4]])
    prompts = PromptBatch(
        prompt.expand(draws, -1), torch.ones(draws, 3, dtype=torch.bool), torch.arange(draws), ("",) * draws
    )
    rollout = generate(policy, prompts, max_new_tokens=2, generator=seeded(11))
    replies: list[tuple[int, ...]] = [(2,), *((a, b) for a in range(6) if a != 2 for b in range(6))]  # 2 ends a reply
    with torch.no_grad():
        first = policy.model(prompt).logits[0, -1].log_softmax(-1)
        second = [
            policy.model(torch.cat([prompt, torch.tensor([[a]])], 1)).logits[0, -1].log_softmax(-1) for a in range(6)
        ]
    expected = torch.stack([first[r[0]] + (second[r[0]][r[1]] if len(r) == 2 else 0.0) for r in replies]).exp() * draws
    assert expected.sum().item() == pytest.approx(draws, rel=1e-5) and expected.min() > 5
    counts = torch.zeros(len(replies))
    for row in range(draws):
        counts[replies.index(tuple(reply_ids(rollout, row)))] += 1
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 59.7  # the 0.1 % point of chi-square with 30 degrees of freedom


def test_gaps_of_finished_rows_are_filled_from_the_end() -> None:
    going = torch.tensor([True, False, True, False, False, True, True])
    assert _closed_up(going).tolist() == [0, 5, 2, 6]
    assert _closed_up(~going).tolist() == [3, 1, 4]
    assert _closed_up(torch.zeros(3, dtype=torch.bool)).tolist() == []


def test_a_rollout_holds_prompt_reply_and_nothing_after_the_first_stop_token() -> None:
    policy = tiny.tiny_policy("llama", stop_token_ids=(2, 11, 17, 20, 30, 41))
    prompts = tiny.tiny_prompts(LENGTHS)
    rollout = generate(policy, prompts, max_new_tokens=20, generator=seeded(1))
    ids, mask, labels = rollout.sequences
    width = prompts.input_ids.shape[1]
    assert ids[:, :width].equal(prompts.input_ids) and mask[:, :width].equal(prompts.attention_mask)
    assert (labels[:, :width] == IGNORE).all()
    stops = set(policy.stop_token_ids)
    lengths = [len(reply_ids(rollout, row)) for row in range(4)]
    assert len(set(lengths)) > 1 and max(lengths) == ids.shape[1] - width
    for row in range(4):
        reply = reply_ids(rollout, row)
        assert not stops & set(reply[:-1])
        assert rollout.complete[row].item() == (reply[-1] in stops)
        assert ids[row, width + len(reply) :].eq(0).all() and not mask[row, width + len(reply) :].any()
        text = reply[:-1] if rollout.complete[row] else reply
        assert rollout.responses[row] == policy.tokenizer.decode(text, skip_special_tokens=True)
    assert rollout.prompts == prompts.prompts


def test_a_reply_cut_at_the_longest_is_not_complete() -> None:
    policy = tiny.tiny_policy("gpt2", stop_token_ids=(2,))
    rollout = generate(policy, tiny.tiny_prompts((3, 3)), max_new_tokens=3, greedy=True)
    assert rollout.complete.tolist() == [reply_ids(rollout, row)[-1] == 2 for row in range(2)]
    assert not rollout.complete.all()


def test_the_same_generator_gives_the_same_replies_and_the_global_rng_is_untouched() -> None:
    policy, prompts = tiny.tiny_policy("qwen2"), tiny.tiny_prompts(LENGTHS)
    before = torch.get_rng_state()
    first, again, other = (
        generate(policy, prompts, max_new_tokens=10, generator=seeded(seed)).sequences.input_ids for seed in (3, 3, 4)
    )
    assert torch.get_rng_state().equal(before)
    assert first.equal(again)
    assert first.shape != other.shape or not first.equal(other)


def test_a_rows_sample_depends_on_its_own_numbers_not_on_its_batch_mates() -> None:
    policy = tiny.tiny_policy("gpt2", stop_token_ids=(2, 11, 17, 20, 30, 41))
    prompts = tiny.tiny_prompts(LENGTHS)
    others = prompts._replace(input_ids=prompts.input_ids.clone())
    others.input_ids[:3, -1] = 9
    one, two = (generate(policy, p, max_new_tokens=10, generator=seeded(6)) for p in (prompts, others))
    assert reply_ids(one, 3) == reply_ids(two, 3)
    lengths = [[len(reply_ids(rollout, row)) for row in range(4)] for rollout in (one, two)]
    assert lengths[0][:3] != lengths[1][:3] and min(lengths[0]) < lengths[0][3]  # they leave the batch at other steps


@pytest.mark.parametrize("decoder", ["auto", "general"])
def test_dropout_is_off_while_replies_are_written_and_on_again_afterwards(decoder: Decoder) -> None:
    policy, prompts = tiny.tiny_policy("gpt2"), tiny.tiny_prompts(LENGTHS)
    expected = generate(policy, prompts, max_new_tokens=10, greedy=True, decoder=decoder)
    dropouts = [module for module in policy.modules() if isinstance(module, torch.nn.Dropout)]
    for module in dropouts:
        module.p = 0.5
    policy.train()
    found = generate(policy, prompts, max_new_tokens=10, greedy=True, decoder=decoder)
    assert found.sequences.input_ids.equal(expected.sequences.input_ids)
    torch.testing.assert_close(found.sampler_logprobs, expected.sampler_logprobs, atol=1e-6, rtol=0)
    assert dropouts and all(module.training for module in dropouts)


@pytest.mark.parametrize("decoder", ["auto", "general"])
def test_train_mode_with_gradient_checkpointing_on_the_callers_side_changes_nothing(decoder: Decoder) -> None:
    policy, prompts = tiny.tiny_policy("qwen2"), tiny.tiny_prompts(LENGTHS)
    expected = generate(policy, prompts, max_new_tokens=10, greedy=True, decoder=decoder)
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.train()
    policy.model.lm_head.eval()
    found = generate(policy, prompts, max_new_tokens=10, greedy=True, decoder=decoder)
    assert found.sequences.input_ids.equal(expected.sequences.input_ids)
    torch.testing.assert_close(found.sampler_logprobs, expected.sampler_logprobs, atol=1e-6, rtol=0)
    assert policy.training and policy.model.model.training and not policy.model.lm_head.training
    assert policy.model.is_gradient_checkpointing


def test_rollouts_can_be_trained_on() -> None:
    policy = tiny.tiny_policy("gpt2")
    rollout = generate(policy, tiny.tiny_prompts((4, 2)), max_new_tokens=5, generator=seeded())
    assert not rollout.sampler_logprobs.requires_grad
    policy(rollout.sequences).logprobs.sum().backward()
    assert policy.model.transformer.wte.weight.grad.abs().sum() > 0


def test_adapters_are_at_work_in_rollouts_and_off_where_they_are_off() -> None:
    policy, prompts = tiny.tiny_policy("llama", adapter=LoRA(4, alpha=64.0)), tiny.tiny_prompts(LENGTHS)
    plain = tiny.tiny_policy("llama")
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=seeded(7))
    adapted = generate(policy, prompts, max_new_tokens=10, greedy=True).responses
    expected = generate(plain, prompts, max_new_tokens=10, greedy=True).responses
    assert adapted != expected
    with policy.adapter_off():
        assert generate(policy, prompts, max_new_tokens=10, greedy=True).responses == expected


def test_settings_that_cannot_work_are_refused() -> None:
    policy, prompts = tiny.tiny_policy("llama"), tiny.tiny_prompts((3, 2))
    with pytest.raises(ConfigError, match="Generator"):
        generate(policy, prompts, max_new_tokens=4)
    with pytest.raises(ConfigError, match="temperature"):
        generate(policy, prompts, max_new_tokens=4, temperature=0.0, generator=seeded())
    with pytest.raises(ConfigError, match="128 positions"):
        generate(policy, prompts, max_new_tokens=126, greedy=True)
    with pytest.raises(ConfigError, match="at least 1"):
        generate(policy, prompts, max_new_tokens=0, greedy=True)
    flipped = prompts._replace(input_ids=prompts.input_ids.flip(1), attention_mask=prompts.attention_mask.flip(1))
    with pytest.raises(DataError, match="left padding"):
        generate(policy, flipped, max_new_tokens=4, greedy=True)
    blank = prompts._replace(attention_mask=prompts.attention_mask & torch.tensor([[True], [False]]))
    with pytest.raises(DataError, match=r"prompts \[1\]"):
        generate(policy, blank, max_new_tokens=4, greedy=True)


def test_a_replys_text_is_what_it_adds_to_the_prompts_text() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"\u2581once": 0, "\u2581upon": 1, "\u2581a": 2, "<unk>": 3}, unk_token="<unk>"))
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert tokenizer.decode([1, 2]) == "upon a"
    assert continuation_text(tokenizer, [0], [1, 2]) == " upon a"


def test_sliding_window_layers_get_the_cache_they_expect() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**tiny.tiny_architecture("qwen2"), "vocab_size": 49, "pad_token_id": 0}
    config = AutoConfig.for_model(
        settings.pop("model_type"), **settings, use_sliding_window=True, sliding_window=5, max_window_layers=0
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    tiny.make_peaky(model, 9.0)
    policy = Policy(model, tokenizer=tiny.tiny_tokenizer(), stop_token_ids=(2,))
    prompts = tiny.tiny_prompts((9, 9))
    rollout = generate(policy, prompts, max_new_tokens=8, greedy=True)
    assert [reply_ids(rollout, row) for row in range(2)] == hf_greedy(policy, prompts, 8)
    with torch.no_grad():
        assert (policy(rollout.sequences).logprobs - rollout.sampler_logprobs).abs().max() < 1e-5
