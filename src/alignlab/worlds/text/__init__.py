"""The text world: short questions and replies in readable English, whose true worth is known.

`TextWorld` yields the rows, `build_tokenizer` the pieces, `GoldReward` the worth of a reply.
"""

from alignlab.worlds.text.generator import TextWorld
from alignlab.worlds.text.gold import GoldReward
from alignlab.worlds.text.tokenizer import build_tokenizer

__all__ = ["GoldReward", "TextWorld", "build_tokenizer"]
