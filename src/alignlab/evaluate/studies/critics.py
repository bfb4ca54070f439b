"""A critic that is never wrong: the exact values of a policy in an exact world, in the place of a value network."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignlab.batches import IGNORE, Sequences
from alignlab.errors import ConfigError
from alignlab.kernels.logprobs import shift_labels
from alignlab.worlds.exact import ExactWorld, Script


class ExactValues(nn.Module):
    """V of the prefix before each token of a reply, looked up; of the policy that was given, whatever it is now."""

    def __init__(self, world: ExactWorld, logprobs: Float[Tensor, "N"]):
        """ConfigError for a world of several prompts."""
        super().__init__()
        if world.num_prompts is not None:
            raise ConfigError(
                f"ExactValues: num_prompts={world.num_prompts}; it knows the prefixes of one prompt (null)"
            )
        self._values = world.values(logprobs).values  # one tensor per depth
        self._start = Script(world).prompt_length
        words = torch.zeros(world.vocab_size, dtype=torch.int64)
        words[world.tree.words] = torch.arange(len(world.tree.words))
        self._words, self._num_words = words, len(world.tree.words)

    def forward(self, sequences: Sequences) -> Float[Tensor, "B T"]:
        """In shifted coordinates, 0 outside the reply; prompts are not padded."""
        mask = shift_labels(sequences.labels) != IGNORE
        values = torch.zeros(mask.shape, dtype=torch.float64)
        prefix = torch.zeros(len(mask), dtype=torch.int64)  # its number among those of its depth
        for depth, table in enumerate(self._values):
            column = self._start + depth
            if column >= mask.shape[1]:
                break
            here = mask[:, column - 1]
            values[here, column - 1] = table[prefix[here]]
            prefix = prefix * self._num_words + self._words[sequences.input_ids[:, column]]
        return values
