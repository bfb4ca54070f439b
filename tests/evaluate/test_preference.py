"""Figures of held-out pairs, held to a closed form (a uniform policy), to loops over logits, and to identities."""

import math

import pytest
import torch

from alignlab.batches import IGNORE, PreferenceBatch, Sequences
from alignlab.errors import DataError
from alignlab.evaluate.preference import evaluate_pairs
from alignlab.models.policy import Policy
from alignlab.models.reference import FrozenCopy
from alignlab.models.source import ModelSource
from alignlab.rows import PairFacts
from alignlab.statistics import clustered_interval, clustered_share_interval
from tests.tiny_models import tiny_architecture, tiny_causal, tiny_tokenizer

PAIRS = (("a cat", " purrs", " bites me"), ("so", " it is", " no"), ("hello", " you!", " dog"))
"""Prompt, chosen, rejected; a token is a character."""


def batch(pairs=PAIRS) -> PreferenceBatch:
    """Right-padded, the chosen replies first; only replies are scored."""
    tokenizer = tiny_tokenizer()
    prompts = [prompt for prompt, _, _ in pairs] * 2
    replies = [pair[1] for pair in pairs] + [pair[2] for pair in pairs]
    ids = [
        [tokenizer(text, add_special_tokens=False)["input_ids"] for text in both]
        for both in zip(prompts, replies, strict=True)
    ]
    width = max(len(prompt) + len(reply) for prompt, reply in ids)
    tokens = torch.zeros(len(ids), width, dtype=torch.long)
    labels = torch.full_like(tokens, IGNORE)
    for row, (prompt, reply) in enumerate(ids):
        tokens[row, : len(prompt) + len(reply)] = torch.tensor(prompt + reply)
        labels[row, len(prompt) : len(prompt) + len(reply)] = torch.tensor(reply)
    mask = torch.arange(width)[None] < torch.tensor([len(prompt) + len(reply) for prompt, reply in ids])[:, None]
    return PreferenceBatch(Sequences(tokens, mask, labels), torch.arange(len(pairs)))


def make_policy(seed: int = 0) -> Policy:
    return Policy(tiny_causal("llama", seed=seed, factor=5.0), tokenizer=tiny_tokenizer(), stop_token_ids=(2,))


def by_loops(policy: Policy) -> list[tuple[float, float]]:
    """log pi of the chosen and of the rejected reply of each pair, a token at a time."""
    sequences, sums = batch().sequences, []
    for ids, mask, labels in zip(*sequences, strict=True):
        logprobs = policy.model(input_ids=ids[mask][None]).logits[0].double().log_softmax(-1)
        sums.append(sum(float(logprobs[t - 1, ids[t]]) for t in range(len(ids)) if labels[t] != IGNORE))
    return list(zip(sums[: len(PAIRS)], sums[len(PAIRS) :], strict=True))


def test_a_uniform_policy_finds_each_token_as_likely():
    policy = make_policy()
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.zero_()
        policy.model.get_output_embeddings().weight.zero_()
    size = policy.model.get_output_embeddings().weight.shape[0]
    found = evaluate_pairs(policy, reference=None, batches=[batch()])
    lengths = [(len(chosen), len(rejected)) for _, chosen, rejected in PAIRS]
    margins = [(rejected - chosen) * math.log(size) for chosen, rejected in lengths]
    assert found["pair_margin"] == pytest.approx(sum(margins) / 3, rel=1e-6)
    assert found["chosen_perplexity"] == pytest.approx(size) == found["rejected_perplexity"]
    assert found["pair_accuracy"] == pytest.approx(1 / 3)  # " purrs" is shorter; the two others are longer
    assert found["num_pairs"] == 3 and "implicit_margin" not in found


@torch.no_grad()
def test_figures_are_those_of_loops_over_logits():
    policy, other = make_policy(0), make_policy(1)
    found = evaluate_pairs(policy, reference=FrozenCopy(other), batches=[batch(PAIRS[:2]), batch(PAIRS[2:])])
    ours, theirs = by_loops(policy), by_loops(other)
    margins = [chosen - rejected for chosen, rejected in ours]
    gains = [margin - (chosen - rejected) for margin, (chosen, rejected) in zip(margins, theirs, strict=True)]
    assert found["pair_margin"] == pytest.approx(sum(margins) / 3, abs=1e-4)
    assert found["pair_accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / 3)
    assert found["implicit_margin"] == pytest.approx(sum(gains) / 3, abs=1e-4)
    assert found["implicit_accuracy"] == pytest.approx(sum(gain > 0 for gain in gains) / 3)
    tokens = sum(len(chosen) for _, chosen, _ in PAIRS)
    assert found["chosen_perplexity"] == pytest.approx(math.exp(-sum(c for c, _ in ours) / tokens), rel=1e-4)
    assert found["pair_margin_low"] < found["pair_margin"] < found["pair_margin_high"]


def test_swapped_pairs_have_the_opposite_margin_and_the_other_share():
    policy = make_policy()
    swapped = tuple((prompt, rejected, chosen) for prompt, chosen, rejected in PAIRS)
    found, other = (evaluate_pairs(policy, reference=None, batches=[batch(pairs)]) for pairs in (PAIRS, swapped))
    assert other["pair_margin"] == pytest.approx(-found["pair_margin"])
    assert other["pair_accuracy"] == pytest.approx(1 - found["pair_accuracy"])
    assert other["chosen_perplexity"] == pytest.approx(found["rejected_perplexity"])


def test_a_policy_has_gained_nothing_on_itself():
    policy = make_policy()
    found = evaluate_pairs(policy, reference=FrozenCopy(policy), batches=[batch()])
    assert found["implicit_margin"] == 0 and found["implicit_accuracy"] == 0.5  # all ties


def test_without_pairs_there_is_nothing_to_say():
    with pytest.raises(DataError, match=r"evaluation\.num_pairs: the test split has no pairs"):
        evaluate_pairs(make_policy(), reference=None, batches=[])


def test_dropout_is_off_while_pairs_are_measured():
    """Read with dropout, a policy would be some nats away from a copy of itself."""
    source = ModelSource(architecture=tiny_architecture("gpt2"), tokenizer=tiny_tokenizer(), dropout=0.5)
    policy = source.load_policy().train()
    found = evaluate_pairs(policy, reference=FrozenCopy(policy), batches=[batch()])
    assert found["implicit_margin"] == pytest.approx(0.0, abs=1e-4) and policy.training


@torch.no_grad()
def test_pairs_of_one_prompt_are_counted_by_prompt():
    """Rows come in any order and in several batches; their facts are found by number."""
    policy, facts = make_policy(), [PairFacts(prompt, 1, 1) for prompt in (7, 7, 8)]
    batches = [batch(PAIRS[1:])._replace(rows=torch.tensor([1, 2])), batch(PAIRS[:1])._replace(rows=torch.tensor([0]))]
    margins = [chosen - rejected for chosen, rejected in by_loops(policy)]
    found = evaluate_pairs(policy, reference=FrozenCopy(make_policy(1)), batches=batches, facts=facts)
    margin = clustered_interval(margins, [7, 7, 8])
    share = clustered_share_interval([float(each > 0) for each in margins], [7, 7, 8])
    assert (found["pair_margin_low"], found["pair_margin_high"]) == pytest.approx((margin.low, margin.high), rel=1e-4)
    assert (found["pair_accuracy_low"], found["pair_accuracy_high"]) == pytest.approx((share.low, share.high))
    apart = evaluate_pairs(policy, reference=FrozenCopy(make_policy(1)), batches=batches)
    for name in ("pair_margin", "pair_accuracy", "implicit_margin", "implicit_accuracy"):
        assert apart[name] == pytest.approx(found[name]) and apart[f"{name}_low"] != found[f"{name}_low"]
