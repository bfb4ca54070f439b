"""Published counts of adapter weights, on networks of the real shape that hold no numbers (meta device)."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from alignlab.models.adapters import LoRA
from alignlab.models.heads import ValueHead


def gpt_neo_125m(**more: int):
    """The published configuration of EleutherAI/gpt-neo-125m."""
    attention = [[["global", "local"], 6]]
    shape = {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "attention_types": attention, "vocab_size": 50257}
    return AutoConfig.for_model(
        "gpt_neo", max_position_embeddings=2048, window_size=256, pad_token_id=0, **shape, **more
    )


def trained(model: torch.nn.Module) -> dict[str, int]:
    return {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["causal", "classifier"])
def test_lora_on_q_and_v_of_gpt_neo_125m_has_294912_weights(kind: str):
    """12 layers x 2 matrices x (8 x 768 + 768 x 8); the value and score heads are counted apart."""
    with torch.device("meta"):
        if kind == "causal":
            model = AutoModelForCausalLM.from_config(gpt_neo_125m())
        else:
            model = AutoModelForSequenceClassification.from_config(gpt_neo_125m(num_labels=1))
        assert sum(p.numel() for p in model.transformer.parameters()) == 125_198_592
        sizes = trained(LoRA(8, alpha=16, target_modules=["q_proj", "v_proj"]).attach(model, kind, seed=0))
    adapter = {name: size for name, size in sizes.items() if ".lora_" in name}
    assert len(adapter) == 12 * 2 * 2 and sum(adapter.values()) == 294_912
    assert sum(sizes.values()) - 294_912 == (768 if kind == "classifier" else 0)


def test_the_value_head_beside_it_has_769():
    assert sum(p.numel() for p in ValueHead(768).parameters()) == 769
