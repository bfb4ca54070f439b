"""The exact world in letters: its tokens as text, so that real tokenizers, collators and policies can read it.

Token ids are those of the world: a letter for each word, `<eos>` for the end. The network's vocabulary is exactly the
world's, so every reply it can give is one of the world's responses. A prompt is a string of letters too.
"""

import string
from collections.abc import Sequence

import torch
from jaxtyping import Float
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from alignlab.errors import ConfigError
from alignlab.rows import Prompt
from alignlab.worlds.exact.tree import Tokens
from alignlab.worlds.exact.world import ExactWorld

EOS = "<eos>"
LETTERS = string.ascii_letters + string.digits


def build_tokenizer(vocab_size: int, eos_id: int = 0) -> PreTrainedTokenizerFast:
    """One letter per word, in the order of the ids, and `<eos>`; nothing is put before a text.

    ConfigError for more words than there are letters.
    """
    if not 2 <= vocab_size <= len(LETTERS) + 1 or not 0 <= eos_id < vocab_size:
        raise ConfigError(
            f"exact world: vocab_size={vocab_size}, eos_id={eos_id}; at least 2 tokens, at most {len(LETTERS)} letters "
            "and the end token can be written down"
        )
    pieces = letters(vocab_size, eos_id)
    tokenizer = Tokenizer(models.WordLevel({piece: token for token, piece in enumerate(pieces)}, unk_token=EOS))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")  # pyright: ignore
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, clean_up_tokenization_spaces=False)


def letters(vocab_size: int, eos_id: int = 0) -> list[str]:
    """What each token is written as."""
    words = iter(LETTERS)
    return [EOS if token == eos_id else next(words) for token in range(vocab_size)]


class Script:
    """Reads and writes one world's prompts and responses."""

    def __init__(self, world: ExactWorld):
        self.world = world
        self._pieces = letters(world.vocab_size, world.eos_id)
        self._tokens = {piece: token for token, piece in enumerate(self._pieces)}
        words, number = len(world.tree.words), world.num_prompts or 1
        self.prompt_length = next(length for length in range(1, 99) if words == 1 or words**length >= number)
        self.prompts = [self._prompt(prompt) for prompt in range(number)]
        self._prompt_numbers = {text: prompt for prompt, text in enumerate(self.prompts)}

    def response(self, tokens: Tokens) -> str:
        """A response as text, without its EOS; of a response that is nothing else, the EOS (no text is empty)."""
        return "".join(self._pieces[token] for token in tokens if token != self.world.eos_id) or EOS

    def number(self, text: str) -> int:
        """The place of a response, given as text without its EOS, among `world.responses`."""
        tokens = [self._tokens[letter] for letter in text.removesuffix(EOS)]
        ends = [self.world.eos_id] if len(tokens) < self.world.max_length else []
        return self.world.tree.number([*tokens, *ends])

    def prompt_number(self, prompt: Prompt) -> int:
        """Which prompt of the world this is."""
        return self._prompt_numbers[str(prompt)]

    def prompt_tokens(self, prompt: int) -> list[int]:
        """A prompt as token ids."""
        return [self._tokens[letter] for letter in self.prompts[prompt]]

    def _prompt(self, number: int) -> str:
        written = []
        for _ in range(self.prompt_length):
            number, word = divmod(number, len(self.world.tree.words))
            written.insert(0, self._pieces[self.world.tree.words[word]])
        return "".join(written)


class ExactReward:
    """The world's reward as a reward of replies: (prompts, responses) -> float32 [B]."""

    def __init__(self, world: ExactWorld):
        self.world = world
        self._script = Script(world)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, "B"]:
        """The reward of each reply."""
        at = torch.tensor([self._script.number(response) for response in responses], dtype=torch.int64)
        if self.world.num_prompts is None:
            return self.world.rewards[at].float()
        asked = torch.tensor([self._script.prompt_number(prompt) for prompt in prompts], dtype=torch.int64)
        return self.world.rewards[asked, at].float()
