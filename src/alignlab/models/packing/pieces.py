"""What a packed row of tokens is cut into.

A piece is a sequence of its own, or the rest of one whose first tokens (its prefix) are those of an earlier piece: two
replies to one prompt are the pieces [prompt, reply 1] and [reply 2].
"""

from typing import NamedTuple


class Piece(NamedTuple):
    """Tokens next to each other, with the prefix that they continue."""

    length: int
    source: int = -1  # which earlier piece its prefix is the beginning of; -1: it has none
    prefix: int = 0  # how many of that piece's first tokens
