"""Perplexity of held-out responses against loops over plain logits."""

import copy
import math

import pytest
import torch

from alignlab.batches import IGNORE, Sequences
from alignlab.evaluate.perplexity import heldout_perplexity
from alignlab.models.policy import Policy
from alignlab.models.reference import FrozenCopy
from alignlab.models.source import ModelSource
from tests.tiny_models import make_peaky, tiny_architecture, tiny_causal, tiny_tokenizer

ROWS = [([5, 6, 7, 8, 9], 2), ([6, 5, 9], 1), ([8, 7, 6, 5], 3)]  # ids, tokens of the prompt


def batch(rows):
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*each, *[0] * (width - len(each))] for each, _ in rows])
    mask = torch.tensor([[True] * len(each) + [False] * (width - len(each)) for each, _ in rows])
    scored = torch.arange(width)[None] >= torch.tensor([[prompt] for _, prompt in rows])
    return Sequences(ids, mask, ids.masked_fill(~(mask & scored), IGNORE))


def logprobs(model, ids, prompt):
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(table[at - 1, ids[at]]) for at in range(prompt, len(ids))]


@pytest.fixture(scope="module")
def policy():
    return Policy(tiny_causal("llama", seed=0, factor=5.0), tokenizer=tiny_tokenizer(), stop_token_ids=(2,))


def test_perplexity_and_its_drift_are_over_all_scored_tokens(policy):
    other = copy.deepcopy(policy)
    make_peaky(other, 0.7)
    reference = FrozenCopy(other)
    own = [each for ids, prompt in ROWS for each in logprobs(policy.model, ids, prompt)]
    theirs = [each for ids, prompt in ROWS for each in logprobs(reference.policy.model, ids, prompt)]
    assert len(own) == 6
    figures = heldout_perplexity(policy, [batch(ROWS[:2]), batch(ROWS[2:])], reference=reference)
    expected = math.exp(-sum(own) / 6)
    assert figures["perplexity_heldout"] == pytest.approx(expected, rel=1e-5)
    assert figures["perplexity_drift"] == pytest.approx(expected / math.exp(-sum(theirs) / 6), rel=1e-5)
    assert figures["num_heldout"] == 3
    ratios = [their - our for their, our in zip(theirs, own, strict=True)]
    for name, values in (("heldout", [-each for each in own]), ("drift", ratios)):
        mean, rows = sum(values) / 6, (values[:3], values[3:5], values[5:])  # tokens of a row are not independent
        without = [(sum(values) - sum(row)) / (6 - len(row)) for row in rows]  # means, a row left out
        half = 4.302653 * math.sqrt(2 / 3 * sum((each - mean) ** 2 for each in without))  # t(2, 97.5%)
        assert figures[f"perplexity_{name}_low"] == pytest.approx(math.exp(mean - half), rel=1e-4)
        assert figures[f"perplexity_{name}_high"] == pytest.approx(math.exp(mean + half), rel=1e-4)


def test_a_model_does_not_drift_from_itself(policy):
    figures = heldout_perplexity(policy, [batch(ROWS)], reference=FrozenCopy(policy))
    assert figures["perplexity_drift"] == figures["perplexity_drift_low"] == figures["perplexity_drift_high"] == 1.0


def test_without_a_reference_or_scored_tokens_figures_are_absent(policy):
    assert "perplexity_drift" not in heldout_perplexity(policy, [batch(ROWS)])
    assert heldout_perplexity(policy, []) == {}


def test_dropout_is_off_while_responses_are_measured():
    """Read with dropout, a policy would have another perplexity than a copy of itself."""
    source = ModelSource(architecture=tiny_architecture("gpt2"), tokenizer=tiny_tokenizer(), dropout=0.5)
    policy = source.load_policy().train()
    figures = heldout_perplexity(policy, [batch(ROWS)], reference=FrozenCopy(policy))
    assert figures["perplexity_drift"] == pytest.approx(1.0, abs=1e-5) and policy.training
