"""Evaluation of a tiny policy against loops over its logits, written without any of alignlab's log-prob code."""

import copy
import json
import math

import pytest
import torch

from alignlab.batches import PromptBatch
from alignlab.errors import ConfigError, DataError, ModelError, NonFiniteError
from alignlab.evaluate.policy import evaluate_policy
from alignlab.evaluate.text_metrics import rouge
from alignlab.models.policy import Policy
from alignlab.models.reference import FrozenCopy
from alignlab.models.source import ModelSource
from alignlab.statistics import share_interval
from tests.tiny_models import make_peaky, tiny_architecture, tiny_causal, tiny_tokenizer

PROMPTS = ("a cat", "hello dog.", "so", "what is it?", "a cat")
SETTINGS = {"max_new_tokens": 6, "temperature": 1.0, "seed": 5}


def count_vowels(prompts, responses):
    return torch.tensor([float(sum(letter in "aeiou" for letter in response)) for response in responses])


def batches(prompts=PROMPTS, size=3):
    """Left-padded prompt batches, characters as tokens."""
    tokenizer = tiny_tokenizer()
    found = []
    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]
        ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in some]
        width = max(map(len, ids))
        tokens = torch.tensor([[0] * (width - len(each)) + each for each in ids])
        mask = torch.tensor([[False] * (width - len(each)) + [True] * len(each) for each in ids])
        found.append(PromptBatch(tokens, mask, torch.arange(start, start + len(some)), tuple(some)))
    return found


def make_policy(seed=0):
    return Policy(tiny_causal("llama", seed=seed, factor=5.0), tokenizer=tiny_tokenizer(), stop_token_ids=(2,))


@pytest.fixture(scope="module")
def policy():
    return make_policy()


@pytest.fixture(scope="module")
def reference(policy):
    """A policy somewhat off: the same net with its weights stretched."""
    other = copy.deepcopy(policy)
    make_peaky(other, 0.9)
    return FrozenCopy(other)


@pytest.fixture(scope="module")
def evaluation(policy, reference):
    return evaluate_policy(
        policy, reference=reference, prompts=batches(), gold=count_vowels, proxy=count_vowels, **SETTINGS
    )


def reply_logprobs(model, sample, *, temperature=1.0):
    """log p of every token of a reply, from plain logits, one sequence at a time."""
    tokenizer = tiny_tokenizer()
    prompt = tokenizer(sample["prompt"], add_special_tokens=False)["input_ids"]
    reply = tokenizer(sample["response"], add_special_tokens=False)["input_ids"]
    reply += [2] if sample["complete"] else []
    assert len(reply) == sample["length"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + reply])).logits[0].double() / temperature
    return [
        float(logits[position - 1].log_softmax(-1)[token])
        for position, token in enumerate(prompt + reply)
        if position >= len(prompt)
    ]


def is_plain(sample):
    """Whether the reply reads back as the tokens it came from (a tiny net also says <pad> and <unk>)."""
    tokenizer = tiny_tokenizer()
    tokens = tokenizer(sample["response"], add_special_tokens=False)["input_ids"]
    return len(tokens) + sample["complete"] == sample["length"] and 3 not in tokens


def test_kl_is_the_sum_over_the_reply_of_policy_minus_reference(policy, reference, evaluation):
    plain = [sample for sample in evaluation.samples if is_plain(sample)]
    assert len(plain) >= 2
    for sample in plain:
        ours = sum(reply_logprobs(policy.model, sample))
        theirs = sum(reply_logprobs(reference.policy.model, sample))
        assert sample["kl"] == pytest.approx(ours - theirs, abs=1e-4)
    mean = sum(sample["kl"] for sample in evaluation.samples) / len(PROMPTS)
    assert evaluation.metrics["kl"] == pytest.approx(mean)


def test_many_samples_give_a_positive_kl_and_its_own_model_gives_zero(policy, reference):
    many = evaluate_policy(policy, reference=reference, prompts=batches(), samples_per_prompt=60, **SETTINGS)
    assert many.metrics["kl"] > 3 * many.metrics["kl_stderr"] > 0
    itself = evaluate_policy(policy, reference=FrozenCopy(policy), prompts=batches(), **SETTINGS)
    assert itself.metrics["kl"] == 0.0
    assert itself.metrics["kl_stderr"] == 0.0


def test_kl_at_a_temperature_divides_both_models_logits(policy, reference):
    settings = SETTINGS | {"temperature": 0.6}
    evaluation = evaluate_policy(policy, reference=reference, prompts=batches(), **settings)
    plain = [sample for sample in evaluation.samples if is_plain(sample)]
    assert plain
    for sample in plain:
        ours = sum(reply_logprobs(policy.model, sample, temperature=0.6))
        theirs = sum(reply_logprobs(reference.policy.model, sample, temperature=0.6))
        assert sample["kl"] == pytest.approx(ours - theirs, abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_perplexity_is_of_the_untempered_reference_over_all_tokens(policy, reference, temperature):
    seen = []

    def spying(sequences, *, temperature=1.0):
        logprobs = reference(sequences, temperature=temperature)
        if temperature == 1.0:
            seen.append((float(logprobs.sum()), int((logprobs != 0).sum())))
        return logprobs

    settings = SETTINGS | {"temperature": temperature}
    metrics = evaluate_policy(policy, reference=spying, prompts=batches(), **settings).metrics
    total, tokens = map(sum, zip(*seen))
    assert metrics["perplexity_reference"] == pytest.approx(math.exp(-total / tokens), rel=1e-5)
    assert metrics["perplexity_reference"] > 1


def test_rewards_lengths_and_endings_are_the_samples_own(evaluation):
    metrics, samples = evaluation.metrics, evaluation.samples
    vowels = [sum(letter in "aeiou" for letter in sample["response"]) for sample in samples]
    assert [sample["gold_reward"] for sample in samples] == vowels
    assert metrics["gold_reward"] == pytest.approx(sum(vowels) / 5)
    assert metrics["gold_reward_low"] <= metrics["gold_reward"] <= metrics["gold_reward_high"]
    assert metrics["response_length"] == pytest.approx(sum(sample["length"] for sample in samples) / 5)
    assert metrics["eos_rate"] == sum(sample["complete"] for sample in samples) / 5
    assert all(1 <= sample["length"] <= 6 for sample in samples)
    assert [sample["row"] for sample in samples] == [0, 1, 2, 3, 4]
    assert [sample["prompt"] for sample in samples] == list(PROMPTS)
    assert metrics["num_prompts"] == metrics["num_samples"] == 5


def test_the_same_seed_gives_the_same_evaluation_and_another_seed_another(policy, reference, evaluation):
    state = torch.random.get_rng_state()
    again = evaluate_policy(
        policy, reference=reference, prompts=batches(), gold=count_vowels, proxy=count_vowels, **SETTINGS
    )
    assert again == evaluation
    assert torch.equal(torch.random.get_rng_state(), state)  # the training's own random numbers are left alone
    other = evaluate_policy(policy, reference=reference, prompts=batches(), **SETTINGS | {"seed": 6})
    assert [sample["response"] for sample in other.samples] != [sample["response"] for sample in again.samples]


def test_several_replies_per_prompt_are_averaged_before_the_interval(policy):
    calls = iter([[0.0, 2.0, 5.0, 5.0, 1.0, 3.0]])
    evaluation = evaluate_policy(
        policy,
        reference=None,
        prompts=batches(("a", "b", "c")),
        gold=lambda prompts, responses: torch.tensor(next(calls)),
        samples_per_prompt=2,
        **SETTINGS,
    )
    # prompt means 1, 5, 2: mean 8/3, s^2 = 13/3, t(2, 97.5%) = 4.302653
    half = 4.302653 * math.sqrt(13 / 3 / 3)
    assert evaluation.metrics["gold_reward"] == pytest.approx(8 / 3)
    assert evaluation.metrics["gold_reward_high"] == pytest.approx(8 / 3 + half, rel=1e-6)
    assert [sample["prompt"] for sample in evaluation.samples] == ["a", "a", "b", "b", "c", "c"]
    assert evaluation.metrics["num_prompts"] == 3 and evaluation.metrics["num_samples"] == 6


def test_without_a_reference_or_rewards_their_figures_are_absent(policy):
    evaluation = evaluate_policy(policy, reference=None, prompts=batches(), **SETTINGS)
    assert not {"kl", "perplexity_reference", "gold_reward", "proxy_reward", "win_rate"} & evaluation.metrics.keys()
    assert evaluation.samples[0]["kl"] is None and evaluation.samples[0]["gold_reward"] is None
    assert json.dumps(evaluation.samples)


def test_the_policy_is_put_back_into_its_mode_and_gets_no_gradients(policy):
    policy.train()
    policy.model.eval()  # a mixed state, as Lightning leaves it
    evaluate_policy(policy, reference=None, prompts=batches(), **SETTINGS)
    assert policy.training and not policy.model.training
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_dropout_is_off_while_a_policy_is_measured():
    """Read with dropout, it would be some nats away from a copy of itself."""
    source = ModelSource(architecture=tiny_architecture("gpt2"), tokenizer=tiny_tokenizer(), dropout=0.5)
    policy = source.load_policy().train()
    metrics = evaluate_policy(policy, reference=FrozenCopy(policy), prompts=batches(), **SETTINGS).metrics
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-4) and policy.training


def test_targets_give_rouge_and_their_number_is_checked(policy, evaluation):
    wanted = [sample["response"] for sample in evaluation.samples]
    metrics = evaluate_policy(policy, reference=None, prompts=batches(), targets=wanted, **SETTINGS).metrics
    worded = [any(letter.isalnum() for letter in text) for text in wanted]
    assert metrics["rouge_l"] == metrics["rouge_1"] == pytest.approx(sum(worded) / 5)
    assert metrics["rouge_l_low"] <= metrics["rouge_l"] <= metrics["rouge_l_high"]
    with pytest.raises(DataError, match="2 targets for 5 prompts"):
        evaluate_policy(policy, reference=None, prompts=batches(), targets=["a", "b"], **SETTINGS)


def test_impossible_settings_and_empty_data_are_named(policy):
    with pytest.raises(ConfigError, match="temperature=0"):
        evaluate_policy(policy, reference=None, prompts=batches(), max_new_tokens=2, temperature=0, seed=0)
    with pytest.raises(DataError, match="no prompts"):
        evaluate_policy(policy, reference=None, prompts=[], **SETTINGS)


@pytest.mark.parametrize("role", ["gold", "proxy"])
def test_a_reward_that_does_not_answer_with_one_number_per_reply_is_refused(policy, role):
    """Its mean would be NaN, or that of the wrong replies."""
    for answer, error in (([1.0, float("nan"), 2.0], NonFiniteError), ([1.0, 2.0, 3.0, 4.0], ModelError)):
        reward = {role: lambda prompts, responses, answer=answer: torch.tensor(answer)}
        with pytest.raises(error):
            evaluate_policy(policy, reference=None, prompts=batches(("a", "b", "c")), **reward, **SETTINGS)


def test_entropy_is_the_tempered_policys_per_token(policy):
    """One token a reply: the mean over prompts of the entropy of softmax(logits / T); in a uniform policy log V."""
    tokenizer, expected = tiny_tokenizer(), []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            probabilities = (policy.model(torch.tensor([ids])).logits[0, -1].double() / 0.6).softmax(-1)
        expected.append(float(-(probabilities * probabilities.log()).sum()))
    settings = {"max_new_tokens": 1, "temperature": 0.6, "seed": 5}
    metrics = evaluate_policy(policy, reference=None, prompts=batches(), **settings).metrics
    assert metrics["entropy"] == pytest.approx(sum(expected) / 5, rel=1e-4)
    uniform = make_policy()
    with torch.no_grad():
        uniform.model.get_input_embeddings().weight.zero_()
        uniform.model.get_output_embeddings().weight.zero_()
    size = uniform.model.get_output_embeddings().weight.shape[0]
    metrics = evaluate_policy(uniform, reference=None, prompts=batches(), **SETTINGS).metrics
    assert metrics["entropy"] == pytest.approx(math.log(size)) and metrics["response_length"] > 1


def test_every_figure_of_several_replies_is_over_prompts(policy, reference):
    settings = {"prompts": batches(("a cat", "so", "what?")), "samples_per_prompt": 2, **SETTINGS}
    samples = evaluate_policy(policy, reference=reference, **settings).samples
    wanted = [samples[first]["response"] for first in (0, 2, 4)]  # what each prompt's first reply said
    metrics = evaluate_policy(policy, reference=reference, targets=wanted, **settings).metrics
    kls = [(samples[first]["kl"] + samples[first + 1]["kl"]) / 2 for first in (0, 2, 4)]
    mean = sum(kls) / 3
    assert metrics["kl"] == pytest.approx(mean)
    assert metrics["kl_stderr"] == pytest.approx(math.sqrt(sum((kl - mean) ** 2 for kl in kls) / 2 / 3))
    scores = rouge([sample["response"] for sample in samples], [text for text in wanted for _ in range(2)])["rouge_1"]
    assert metrics["rouge_1"] == pytest.approx(sum(scores) / 6) and len(set(scores)) > 1
    cut = sum(not sample["complete"] for sample in samples)
    assert metrics["problem_cut_off"] == cut / 6 and cut > 0
    spoilt = [float(bool({"empty", "repetition", "gibberish", "broken"} & set(each["problems"]))) for each in samples]
    shares = [1 - (spoilt[first] + spoilt[first + 1]) / 2 for first in (0, 2, 4)]
    wilson = share_interval(sum(shares), 3)  # being cut off is no fault
    assert (metrics["quality_rate"], metrics["quality_rate_low"]) == pytest.approx((wilson.mean, wilson.low))
    assert wilson.mean > 1 - cut / 6
