"""Networks in an exact world: every response is put to them, through their ordinary forward pass.

With the masks, labels and end tokens of training, so that an error in any of them shows as probabilities that do not
add up to 1.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.batches import IGNORE, Sequences
from alignlab.worlds.exact.text import Script
from alignlab.worlds.exact.world import ExactWorld

Score = Callable[[Sequences], Tensor]
"""Per-token log-probs [B, T] (0 where nothing is scored) of any sequences: a policy or a reference."""


def every_response(world: ExactWorld) -> Sequences:
    """All prompts with all responses, prompt by prompt, as sequences of one batch: [K * N, prompt + L]."""
    script, tokens = Script(world), world.tree.tokens
    is_real = torch.arange(world.max_length) < world.lengths.unsqueeze(1)
    parts = []
    for prompt in range(len(script.prompts)):
        asked = torch.tensor(script.prompt_tokens(prompt)).expand(len(tokens), -1)
        ids = torch.cat([asked, tokens], 1)
        mask = torch.cat([torch.ones_like(asked, dtype=torch.bool), is_real], 1)
        labels = torch.cat([torch.full_like(asked, IGNORE), tokens.masked_fill(~is_real, IGNORE)], 1)
        parts.append(Sequences(ids, mask, labels))
    return Sequences(*(torch.cat(column) for column in zip(*parts, strict=True)))


def response_logprobs(
    score: Score, world: ExactWorld, *, device: torch.device | str = "cpu", batch_size: int = 1024
) -> Float[Tensor, "*K N"]:
    """log pi of every response, float64 on the CPU, `batch_size` sequences at a time. Differentiable."""
    everything, sums = every_response(world), []
    for start in range(0, everything.num_rows, batch_size):
        part = Sequences(*(x.to(device) for x in everything.take(slice(start, start + batch_size))))
        sums.append(score(part).double().sum(-1).cpu())
    return torch.cat(sums).reshape(world.rewards.shape)
