"""Real weights and real tokenizers, where a folder of them is at hand."""

from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from alignlab.batches import IGNORE, PromptBatch, Sequences
from alignlab.models.adapters import LoRA, QLoRA
from alignlab.models.reference import AdapterOff
from alignlab.models.source import ModelSource
from alignlab.rollout.generate import generate
from tests import tiny_models as tiny

GREETING = "Once upon a time, there was a little"


def prompt_of(tokenizer, text: str) -> PromptBatch:
    """One prompt."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    return PromptBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([0]), (text,))


def test_stories_continue_as_under_transformers_and_stop_at_either_token(real_data: Path) -> None:
    source = ModelSource(init_from=str(real_data / "models" / "stories260K"))
    policy = source.load_policy()
    assert policy.stop_token_ids == (1, 2)
    prompt = prompt_of(policy.tokenizer, GREETING)
    rollout = generate(policy, prompt, max_new_tokens=40, greedy=True)
    config = GenerationConfig(max_new_tokens=40, do_sample=False, eos_token_id=[1, 2], pad_token_id=2)
    theirs = policy.model.generate(
        input_ids=prompt.input_ids, attention_mask=prompt.attention_mask.long(), generation_config=config
    )
    assert rollout.sequences.input_ids.equal(theirs)
    assert rollout.responses[0].startswith(" ")  # the space between prompt and reply is kept
    with torch.no_grad():
        assert (policy(rollout.sequences).logprobs - rollout.sampler_logprobs).abs().max() < 1e-5


def test_stories_take_both_kinds_of_adapter(real_data: Path) -> None:
    source = ModelSource(init_from=str(real_data / "models" / "stories260K"))
    rows = tiny.tiny_sequences((20, 12))
    plain = source.load_policy()(rows).logprobs.detach()
    for adapter, close in ((LoRA(4, alpha=8.0), 0.0), (QLoRA(4, alpha=8.0), 2.0)):
        policy = source.load_policy(adapter)
        out = policy(rows).logprobs
        assert (out - plain).abs().max() <= close
        assert AdapterOff(policy)(rows).equal(out)
        out.sum().backward()


@pytest.mark.parametrize("model_type, name", [("gpt2", "gpt2"), ("distilbert", "bert-base-uncased")])
def test_random_networks_are_sized_for_real_tokenizers(real_data: Path, model_type: str, name: str) -> None:
    source = ModelSource(
        architecture=tiny.tiny_architecture(model_type), tokenizer=str(real_data / "tokenizers" / name)
    )
    reward_model = source.load_reward_model()
    tokenizer = reward_model.tokenizer
    assert tokenizer.pad_token_id is not None
    assert reward_model.model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert source.stop_tokens() == ((50256,) if name == "gpt2" else (tokenizer.sep_token_id,))
    ids = torch.tensor([tokenizer("good")["input_ids"]])
    sequences = Sequences(ids, torch.ones_like(ids, dtype=torch.bool), torch.full_like(ids, IGNORE))
    assert reward_model(sequences).shape == (1,)
