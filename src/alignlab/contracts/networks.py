"""Tiny random networks for contracts: made in a second, offline, peaky enough that a wrong position is seen."""

import functools
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from alignlab.models.heads import ValueHead
from alignlab.models.policy import Policy
from alignlab.models.reward_model import RewardModel

Positions = Literal["gpt2", "llama"]
"""Learned absolute positions, which wrong position ids break at once, and rotary ones, which are relative."""

VOCAB_SIZE, PAD, END = 24, 0, 1
_WIDTH = 16
_SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": _WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 64}
    | dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0),
    "llama": {
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    },
}


class Networks(NamedTuple):
    """What a pipeline may need: a policy with a value head, another one as its reference, a reward model."""

    policy: Policy
    reference: Policy
    reward_model: RewardModel


@functools.lru_cache(maxsize=2)
def tiny_networks(positions: Positions) -> Networks:
    """Float64 policies (their value heads and the reward model are float32 by their nature) in eval mode."""
    policy, reference = (_policy(positions, seed) for seed in (0, 1))
    return Networks(policy, reference, RewardModel(_network(positions, "classifier", 2), tokenizer=None).eval())


def _policy(positions: Positions, seed: int) -> Policy:
    policy = Policy(_network(positions, "causal", seed).double(), tokenizer=None, stop_token_ids=(END,))
    policy.value_head = ValueHead(_WIDTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nn.init.normal_(policy.value_head.linear.weight, std=0.5)
    return policy.eval()


def _network(positions: Positions, kind: Literal["causal", "classifier"], seed: int) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        positions,
        vocab_size=VOCAB_SIZE,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=END,
        initializer_range=0.5,  # at the usual 0.02 every next token is about as likely as any other
        **_SHAPES[positions],
    )
    config.num_labels = 1
    make = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make.from_config(config)
