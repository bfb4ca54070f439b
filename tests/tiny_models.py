"""Tiny tokenizers and networks for tests: 2 layers, 32 wide, a few milliseconds each.

Random nets of stock scale are nearly uniform and hide bugs (an off-by-one shift moves their loss by 0.003), so
these are made *peaky*: weight matrices are multiplied until the next-token entropy is well under 0.95 ln V.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from alignlab.batches import IGNORE, PromptBatch, Sequences
from alignlab.models.adapters import LoRA, NoAdapter
from alignlab.models.policy import Policy

CHARACTERS = " abcdefghijklmnopqrstuvwxyz.,!?':-0123456789\n"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
DECODERS = ("gpt2", "llama", "qwen2", "gpt_neox", "gpt_neo")
SCALED_HEADS = ("gemma2", "cohere", "granite")
"""Decoders whose logits are capped, multiplied, divided."""
ENCODERS = ("distilbert", "deberta-v2")


def tiny_tokenizer(*, pad: bool = True, chat: bool = False) -> PreTrainedTokenizerFast:
    """One token per lower-case character; 0 pad, 1 bos, 2 eos, 3 unk; with `pad=False` none is named."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    named = {"pad_token": "<pad>"} if pad else {}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", **named
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_architecture(kind: str) -> dict[str, Any]:
    """What `ModelSource(architecture=...)` takes for a 2-layer net of `kind` (see the tuples above)."""
    wide = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shapes: dict[str, dict[str, Any]] = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
        "llama": {**wide, "num_key_value_heads": 1, "max_position_embeddings": 128},
        "qwen2": {**wide, "num_key_value_heads": 1, "max_position_embeddings": 128, "tie_word_embeddings": True},
        "gpt_neox": {**wide, "max_position_embeddings": 128},
        "gemma2": {**wide, "num_key_value_heads": 1, "head_dim": 16, "final_logit_softcapping": 3.0},
        "cohere": {**wide, "num_key_value_heads": 1, "logit_scale": 0.3},
        "granite": {**wide, "num_key_value_heads": 1, "logits_scaling": 4.0},
        "gpt_neo": {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 128,
        },
        "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 128},
        "deberta-v2": {
            **wide,
            "max_position_embeddings": 128,
            "relative_attention": True,
            "position_biased_input": False,
        },
    }
    return {"model_type": kind, **shapes[kind]}


def tiny_config(kind: str, vocab_size: int | None = None) -> Any:
    """The transformers config of `tiny_architecture(kind)` with the tiny tokenizer's special ids and no dropout."""
    settings = {"vocab_size": vocab_size or len(tiny_tokenizer()), "pad_token_id": 0, **tiny_architecture(kind)}
    if kind in (*DECODERS, *SCALED_HEADS):
        settings |= {"bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    for name in vars(config):
        if "drop" in name and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    return config


def make_peaky(model: torch.nn.Module, factor: float) -> None:
    """Multiplies every weight matrix of `model` by `factor`, in place (norm gains and biases are left alone)."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(factor)


def tiny_causal(
    kind: str = "llama", *, seed: int = 0, vocab_size: int | None = None, factor: float = 9.0
) -> PreTrainedModel:
    """A peaky random causal LM in eval mode and float32; the global RNG is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(kind, vocab_size))
    make_peaky(model, factor)
    return model.eval()


def tiny_classifier(kind: str = "llama", *, seed: int = 0, factor: float = 6.0) -> PreTrainedModel:
    """A peaky random one-label sequence classifier (decoder or encoder), made like `tiny_causal`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = tiny_config(kind)
        config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(config)
    make_peaky(model, factor)
    return model.eval()


def tiny_policy(
    kind: str = "llama", *, adapter: LoRA | None = None, seed: int = 0, stop_token_ids: tuple[int, ...] = (2,)
) -> Policy:
    """A peaky `Policy` on `tiny_causal(kind)`, with `adapter` (not a quantising one) on it if given."""
    model = (adapter or NoAdapter()).attach(tiny_causal(kind, seed=seed), "causal", seed=seed)
    return Policy(model, tokenizer=tiny_tokenizer(), stop_token_ids=stop_token_ids)


def tiny_sequences(lengths: Sequence[int], *, prompt: int = 3, seed: int = 0, pad_id: int = 0) -> Sequences:
    """Right-padded rows of random characters of these lengths; all after the first `prompt` tokens is scored."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, len(tiny_tokenizer()), (len(lengths), max(lengths)), generator=generator)
    columns = torch.arange(max(lengths))
    mask = columns < torch.tensor(lengths)[:, None]
    labels = ids.masked_fill(~mask | (columns < prompt), IGNORE)
    return Sequences(ids.masked_fill(~mask, pad_id), mask, labels)


def left_padded(sequences: Sequences, *, pad_id: int = 0, extra: int = 0) -> Sequences:
    """The same rows padded on the left, with `extra` more padding columns."""
    num_rows, width = sequences.input_ids.shape
    ids = torch.full((num_rows, width + extra), pad_id)
    mask = torch.zeros(num_rows, width + extra, dtype=torch.bool)
    labels = torch.full((num_rows, width + extra), IGNORE)
    for b, length in enumerate(sequences.attention_mask.sum(1).tolist()):
        ids[b, -length:] = sequences.input_ids[b, :length]
        labels[b, -length:] = sequences.labels[b, :length]
        mask[b, -length:] = True
    return Sequences(ids, mask, labels)


def tiny_prompts(lengths: Sequence[int], *, seed: int = 0) -> PromptBatch:
    """Left-padded prompts of random characters of these lengths."""
    rows = left_padded(tiny_sequences(lengths, seed=seed))
    tokenizer = tiny_tokenizer()
    texts = tuple(tokenizer.decode(ids[mask]) for ids, mask in zip(rows.input_ids, rows.attention_mask, strict=True))
    return PromptBatch(rows.input_ids, rows.attention_mask, torch.arange(len(lengths)), texts)


def write_causal(folder: Path, kind: str = "llama", *, seed: int = 0) -> Path:
    """Saves `tiny_causal(kind)` and the tiny tokenizer as transformers would, and returns the folder."""
    tiny_causal(kind, seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
