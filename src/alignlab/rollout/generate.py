"""Replies from a policy: our own decode loop.

Why not transformers' `generate`: in train mode with gradient checkpointing it returns wrong text (the cache is dropped
inside the layers), it applies top_k=50 unasked, and it draws from the global RNG. Here the policy is in eval mode
without gradients and afterwards as it was, every sampling setting is an argument, and the caller's generator is the
only randomness.

Prompts are padded on the left and positions come from the mask, so a row's reply does not depend on its batch-mates.
The reply ends at the first stop token, which belongs to it; what would follow is padding. A row that has ended leaves
the batch at once. No scores are kept: of a step's logits there remain one token and one log-prob per row.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignlab.batches import IGNORE, PromptBatch, Rollout, Sequences
from alignlab.errors import ConfigError, DataError
from alignlab.kernels.precision import upcast
from alignlab.models.backbone import evaluating, lm_head, unwrapped
from alignlab.models.decoding import Decoder, decoding_network
from alignlab.models.decoding.logits import next_logits
from alignlab.models.policy import Policy
from alignlab.rollout.sampling import Choice, check_sampling, log_distribution, most_likely, sample

OnTokens = Callable[[Int[Tensor, "L"], Int[Tensor, "L"]], None]
"""(rows of the batch, the token that each has just been given): told of every step of `generate`, stop tokens too."""


class Replies(NamedTuple):
    """R columns of reply tokens, right-padded."""

    tokens: Int[Tensor, "B R"]
    mask: Bool[Tensor, "B R"]  # True: a token of the reply, its stop token included
    logprobs: Float[Tensor, "B R"]
    complete: Bool[Tensor, "B"]


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: PromptBatch,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    greedy: bool = False,
    generator: torch.Generator | None = None,
    decoder: Decoder | None = None,
    on_tokens: OnTokens | None = None,
) -> Rollout:
    """A reply of at most `max_new_tokens` tokens to each prompt.

    `top_k=0` and `top_p=1.0` are off. `greedy` takes the most likely token and needs no generator; sampling needs one,
    and the same one gives the same replies. `sampler_logprobs` are of the distribution that was drawn from.
    `decoder` (None: the policy's own setting) changes the speed only: see `models.decoding`. `on_tokens` sees tokens as
    they are drawn (see `rollout.streaming`); what it raises ends the generation.
    ConfigError for impossible settings or a reply that would pass the network's longest position; DataError for
    prompts that are empty or padded on the right.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    _check_prompts(policy, prompts, max_new_tokens)
    if not greedy and generator is None:
        raise ConfigError("sampling needs a torch.Generator: there is no hidden randomness (or set greedy=True)")
    prompts = prompts._replace(
        input_ids=prompts.input_ids.to(policy.device), attention_mask=prompts.attention_mask.to(policy.device)
    )
    uniform = None if greedy else _uniform(len(prompts.rows), max_new_tokens, generator, policy.device)
    with evaluating(policy.model):
        network = decoding_network(
            policy.model, prompts.attention_mask, max_tokens=max_new_tokens - 1, decoder=decoder or policy.decoder
        )
        head = lm_head(policy.model)
        writer = _Writer(policy, len(prompts.rows), max_new_tokens, dtype=upcast(head.weight[:0]).dtype)
        hidden = network.read_prompts(prompts.input_ids)
        for step in range(max_new_tokens):
            logits = next_logits(hidden, head)
            logprobs = log_distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)
            choice = most_likely(logprobs) if uniform is None else sample(logprobs, uniform[writer.live, step])
            rows = writer.live
            kept = writer.write(choice, step)
            if on_tokens is not None:
                on_tokens(rows, choice.tokens)
            if len(writer.live) == 0 or step == max_new_tokens - 1:
                break
            tokens = choice.tokens
            if kept is not None:
                network.keep(kept)
                tokens = tokens[kept]
            hidden = network.read_tokens(tokens)
    return _rollout(policy, prompts, writer.replies())


class _Writer:
    """What has been written so far, and which rows are still going."""

    def __init__(self, policy: Policy, num_rows: int, max_new_tokens: int, *, dtype: torch.dtype) -> None:
        """`dtype`: of the log-probs."""
        device = policy.device
        self.stops = torch.tensor(policy.stop_token_ids, device=device)
        self.live = torch.arange(num_rows, device=device)  # numbers of the unfinished rows, in the network's order
        pad = policy.tokenizer.pad_token_id
        self.tokens = torch.full((num_rows, max_new_tokens), pad, dtype=torch.int64, device=device)
        self.mask = torch.zeros(num_rows, max_new_tokens, dtype=torch.bool, device=device)
        self.logprobs = torch.zeros(num_rows, max_new_tokens, dtype=dtype, device=device)
        self.complete = torch.zeros(num_rows, dtype=torch.bool, device=device)

    def write(self, choice: Choice, step: int) -> Int[Tensor, "K"] | None:
        """Writes one token per unfinished row; which of them go on and in what order, None for all as they are."""
        rows = self.live
        self.tokens[rows, step] = choice.tokens
        self.mask[rows, step] = True
        self.logprobs[rows, step] = choice.logprobs
        stopped = torch.isin(choice.tokens, self.stops)
        self.complete[rows] = stopped
        if not bool(stopped.any()):
            return None
        kept = _closed_up(~stopped)
        self.live = rows[kept]
        return kept

    def replies(self) -> Replies:
        """Everything written, without columns that no row has used."""
        used = int(self.mask.any(0).sum())
        return Replies(self.tokens[:, :used], self.mask[:, :used], self.logprobs[:, :used], self.complete)


def _closed_up(going: Bool[Tensor, "L"]) -> Int[Tensor, "K"]:
    """The places that are True, in an order that leaves most where they are: the last ones fill the gaps."""
    count = int(going.sum())
    kept = torch.arange(count, device=going.device)
    kept[~going[:count]] = going[count:].nonzero().flatten() + count
    return kept


def _uniform(rows: int, steps: int, generator: Any, device: torch.device) -> Float[Tensor, "B R"]:
    """One number per row and step, all drawn at once: a row's numbers do not depend on when others finish."""
    numbers = torch.rand(rows, steps, generator=generator, device=generator.device, dtype=torch.float64)
    return numbers.to(device)


def _check_prompts(policy: Policy, prompts: PromptBatch, max_new_tokens: int) -> None:
    """See `generate`."""
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens} must be at least 1")
    lengths = prompts.attention_mask.sum(1)
    if empty := (lengths == 0).nonzero().flatten().tolist():
        raise DataError(f"prompts {empty} of the batch have no tokens: a reply needs at least one (BOS) to start from")
    if not bool(prompts.attention_mask[:, -1].all()):
        raise DataError(
            "prompts are padded on the right; generation needs left padding (the reply follows the last column)"
        )
    check_room(policy, int(lengths.max()), max_new_tokens)


def check_room(policy: Policy, longest: int, max_new_tokens: int) -> None:
    """ConfigError if a prompt of `longest` tokens and a reply would pass the network's longest position."""
    limit = getattr(unwrapped(policy.model).config, "max_position_embeddings", None)
    if limit is not None and longest + max_new_tokens > limit:
        raise ConfigError(
            f"max_new_tokens={max_new_tokens} after a prompt of {longest} tokens passes the network's {limit} "
            "positions; lower it or data.max_prompt_length"
        )


def _rollout(policy: Policy, prompts: PromptBatch, replies: Replies) -> Rollout:
    """Prompt and reply in one tensor, in the coordinates that training uses."""
    prompt_ids, prompt_mask = prompts.input_ids, prompts.attention_mask
    labels = replies.tokens.masked_fill(~replies.mask, IGNORE)
    sequences = Sequences(
        input_ids=torch.cat([prompt_ids, replies.tokens], 1),
        attention_mask=torch.cat([prompt_mask, replies.mask], 1),
        labels=torch.cat([torch.full_like(prompt_ids, IGNORE), labels], 1),
    )
    logprobs = replies.logprobs.new_zeros(sequences.input_ids.shape)
    start = prompt_ids.shape[1] - 1  # shifted: the first reply token stands at the last prompt column
    logprobs[:, start : start + replies.logprobs.shape[1]] = replies.logprobs
    return Rollout(sequences, logprobs, replies.complete, prompts.prompts, decode_replies(policy, prompts, replies))


def decode_replies(policy: Policy, prompts: PromptBatch, replies: Replies) -> tuple[str, ...]:
    """The replies' texts up to, not including, the stop token; special tokens are left out."""
    lengths = (replies.mask.sum(1) - replies.complete.long()).tolist()
    asked = [ids[mask].tolist() for ids, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True)]
    told = replies.tokens.tolist()
    return tuple(
        continuation_text(policy.tokenizer, prompt, tokens[:length])
        for prompt, tokens, length in zip(asked, told, lengths, strict=True)
    )


def continuation_text(tokenizer: Any, prompt: Sequence[int], reply: Sequence[int]) -> str:
    """What `reply` adds to the text of `prompt`.

    Decoding the reply alone would lose its first space with tokenizers that mark words by a leading one.
    """

    def text(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    before, both = text(prompt), text([*prompt, *reply])
    return both[len(before) :] if both.startswith(before) else text(reply)
