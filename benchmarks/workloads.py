"""The work that every system is given: seeded token data, a tokenizer and random weights. Nothing is downloaded.

    S       GPT-2, 4 layers of 256, vocabulary 8,192        small: overheads and padding show
    M       GPT-2, 12 layers of 768, vocabulary 50,257      the 124 M shape
    Q       Qwen2, 4 layers of 512, vocabulary 151,936      a huge vocabulary on a thin body
    Qwen0.5B, Qwen1.5B                                      the published shapes, for a GPU

Prompts are log-uniform in 20-200 tokens, replies log-normal (median 100, sigma 0.6) in 20-300 and end with the end
token; tokens follow a Zipf-Mandelbrot law. All of it is a function of the workload alone, and lies in files that ours
and the peers read: `<root>/<key>/pairs.jsonl` and one folder per network.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

PAD, BOS, EOS, FIRST = 0, 1, 2, 3
"""Special ids; words start at FIRST, and word i is spelled `t<i>`."""

NUM_PAIRS = 256
SEED = 1234
LEARNING_RATE = 1e-4
BETA = 0.1
WARM_STEPS = 1
"""Steps before the clock starts: caches, the optimizer's state, a cached reference."""

Network = Literal["policy", "talker", "classifier", "value", "reward"]
"""policy: a causal LM. talker: the same, made to end its replies. classifier, value, reward: one label, other seeds."""


@dataclass(frozen=True)
class Rollouts:
    """What an iteration of PPO samples."""

    batch: int  # prompts
    response: int  # the longest reply, in tokens
    longest_prompt: int  # longer ones are cut on their right
    end_probability: float  # of the end token at each step: lengths are then geometric
    updates: int  # counted iterations


@dataclass(frozen=True)
class Workload:
    """One size of model and data."""

    name: str
    architecture: Literal["gpt2", "qwen2"]
    vocabulary: int
    layers: int
    width: int
    heads: int
    context: int
    steps: int  # counted ones
    rollouts: Rollouts
    kv_heads: int = 0  # qwen2
    mlp: int = 0  # qwen2
    pairs: int = 4  # of one optimizer step
    length: float = 1.0  # factor on all lengths of prompts and replies
    rank: int = 16  # of LoRA; alpha is twice that
    group: int = 1  # replies to each prompt, where a method compares them

    @property
    def key(self) -> str:
        """Folder name: the workload's own, with a hash of what was changed in it."""
        if WORKLOADS.get(self.name) == self:
            return self.name
        return f"{self.name}-{hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()[:10]}"

    @property
    def folder(self) -> Path:
        """Where its files lie, below $ALIGNLAB_BENCH (default: alignlab-bench in the temporary directory)."""
        root = os.environ.get("ALIGNLAB_BENCH")
        return (Path(root) if root else Path(tempfile.gettempdir()) / "alignlab-bench") / self.key


def _rollouts(batch: int, response: int, mean: int, updates: int) -> Rollouts:
    return Rollouts(batch, response, longest_prompt=64, end_probability=1 / mean, updates=updates)


def _listed(*workloads: Workload) -> dict[str, Workload]:
    return {workload.name: workload for workload in workloads}


_QWEN: dict[str, Any] = {"architecture": "qwen2", "vocabulary": 151936, "kv_heads": 2}
WORKLOADS: dict[str, Workload] = {}
WORKLOADS |= _listed(
    Workload("S", "gpt2", 8192, 4, 256, 4, 512, steps=4, rollouts=_rollouts(16, 96, 48, 4)),
    Workload("M", "gpt2", 50257, 12, 768, 12, 1024, steps=2, rollouts=_rollouts(8, 64, 32, 2)),
    Workload(
        "Q", layers=4, width=512, heads=8, mlp=1408, context=1024, steps=2, rollouts=_rollouts(8, 64, 32, 3), **_QWEN
    ),
    Workload(  # where the growth of cost is measured: small, so that one axis can be stretched
        "G", "gpt2", 4096, 2, 128, 4, 4096, steps=3, rollouts=_rollouts(4, 64, 32, 3)
    ),
    Workload(  # for tests
        "T", "gpt2", 64, 1, 16, 2, 64, steps=1, pairs=2, length=0.1, rollouts=_rollouts(2, 4, 4, 1)
    ),
    Workload(
        *("Qwen0.5B",),
        **{**_QWEN, "layers": 24, "width": 896, "heads": 14, "mlp": 4864, "context": 2048, "steps": 8, "pairs": 16},
        rollouts=_rollouts(64, 256, 128, 4),
    ),
    Workload(
        *("Qwen1.5B",),
        **{**_QWEN, "layers": 28, "width": 1536, "heads": 12, "mlp": 8960, "context": 2048, "steps": 8, "pairs": 16},
        rollouts=_rollouts(64, 256, 128, 4),
    ),
)


def workload(name: str, changes: dict[str, float] | None = None) -> Workload:
    """The workload of that name, with other numbers in some of its fields."""
    if name not in WORKLOADS:
        raise SystemExit(f"workload {name}: allowed are {', '.join(WORKLOADS)}")
    found = WORKLOADS[name]
    fields = {key: type(getattr(found, key))(value) for key, value in (changes or {}).items()}
    return replace(found, **fields)


# -- data ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Pair:
    """Token ids of one preference; both replies end with the end token."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    def lengths(self, *sides: str) -> list[int]:
        """Tokens of the prompt with each of the named replies."""
        return [len(self.prompt_ids) + len(getattr(self, f"{side}_ids")) for side in sides]

    def texts(self) -> dict[str, str]:
        """The same as text, one word per token; the space between prompt and reply belongs to the prompt."""
        prompt, chosen, rejected = (spelled(ids) for ids in (self.prompt_ids, self.chosen_ids, self.rejected_ids))
        return {"prompt": f"{prompt} ", "chosen": chosen, "rejected": rejected}


def make_pairs(of: Workload) -> Iterator[Pair]:
    """All pairs of a workload, from its seed."""
    import numpy as np

    random = np.random.default_rng([SEED, int.from_bytes(of.name.encode())])
    num_words = of.vocabulary - FIRST
    cumulative = np.cumsum(1.0 / (np.arange(1, num_words + 1) + 2.7))
    cumulative /= cumulative[-1]
    words = random.permutation(num_words)
    low, high, longest = max(2, round(20 * of.length)), max(3, round(200 * of.length)), max(4, round(300 * of.length))

    def tokens(count: int) -> list[int]:
        return (words[np.searchsorted(cumulative, random.random(count))] + FIRST).tolist()

    def reply_length() -> int:
        return int(np.clip(round(math.exp(random.normal(math.log(100 * of.length), 0.6))), low, longest))

    for _ in range(NUM_PAIRS):
        prompt = round(math.exp(random.uniform(math.log(low), math.log(high))))
        chosen, rejected = reply_length(), reply_length()
        yield Pair(tokens(prompt), [*tokens(chosen - 1), EOS], [*tokens(rejected - 1), EOS])


def load_pairs(of: Workload, count: int) -> list[Pair]:
    """The first `count` pairs, from the file, which is written where it is missing."""
    file = of.folder / "pairs.jsonl"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in make_pairs(of)))
        scratch.replace(file)
    if count > NUM_PAIRS:
        raise SystemExit(f"{of.name}: {count} pairs are asked for, a workload has {NUM_PAIRS}; take fewer steps")
    return [Pair(**json.loads(line)) for line in file.read_text().splitlines()[:count]]


def load_batches(of: Workload, steps: int) -> list[list[Pair]]:
    """The pairs of each optimizer step, uncounted ones first."""
    pairs = load_pairs(of, of.pairs * (WARM_STEPS + steps))
    return [pairs[start : start + of.pairs] for start in range(0, len(pairs), of.pairs)]


def load_prompts(of: Workload) -> list[list[int]]:
    """Prompts to sample replies to."""
    return [pair.prompt_ids[: of.rollouts.longest_prompt] for pair in load_pairs(of, of.rollouts.batch)]


def word(token: int) -> str:
    """How a token is spelled."""
    return ("<pad>", "<s>", "</s>")[token] if token < FIRST else f"t{token}"


def spelled(ids: list[int]) -> str:
    """Tokens as text."""
    return " ".join(word(token) for token in ids)


# -- networks --------------------------------------------------------------------------------------------------------
def make_tokenizer(of: Workload) -> Any:
    """Word by word, so that text and ids are the same data."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word(token): token for token in range(of.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def make_config(of: Workload, **more: Any) -> Any:
    """The transformers config; no dropout."""
    from transformers import GPT2Config, Qwen2Config

    common = {"vocab_size": of.vocabulary, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, **more}
    if of.architecture == "gpt2":
        shape = {"n_positions": of.context, "n_embd": of.width, "n_layer": of.layers, "n_head": of.heads}
        return GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **common)
    return Qwen2Config(
        hidden_size=of.width,
        intermediate_size=of.mlp,
        num_hidden_layers=of.layers,
        num_attention_heads=of.heads,
        num_key_value_heads=of.kv_heads,
        max_position_embeddings=of.context,
        tie_word_embeddings=True,
        **common,
    )


_CLASSIFIERS: dict[str, int] = {"classifier": 0, "value": 1, "reward": 2}  # name -> added to the seed


def make_network(of: Workload, network: Network) -> Any:
    """The network with random weights: the same for the same workload, everywhere."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if network in _CLASSIFIERS:
        torch.manual_seed(SEED + _CLASSIFIERS[network])
        config = make_config(of, num_labels=1)
        return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(make_config(of), dtype=torch.float32)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    if network == "talker":
        let_it_end(model, of)
    return model


def let_it_end(model: Any, of: Workload) -> None:
    """Give the end token about its wanted probability at every step: random weights would hardly ever end a reply.

    All embeddings share a component in dimension 0, and the end token's is moved until the mean logit fits.
    """
    import torch

    embedding = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        embedding[:, 0] = 2.0
        probe = torch.randint(FIRST, of.vocabulary, (8, 48), generator=generator)
        last = model.base_model(probe).last_hidden_state[:, -1]
        logits = last @ embedding.t()
        behind = torch.logsumexp(logits, -1) - logits[:, EOS]
        odds = of.rollouts.end_probability / (1 - of.rollouts.end_probability)
        embedding[EOS, 0] += ((math.log(odds) + behind).mean() / last[:, 0].mean()).item()


def network_folder(of: Workload, network: Network) -> Path:
    """The folder of a saved network with its tokenizer, written where it is missing."""
    folder = of.folder / network
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_network(of, network).save_pretrained(folder)
        make_tokenizer(of).save_pretrained(folder)
        (folder / "done").touch()
    return folder
