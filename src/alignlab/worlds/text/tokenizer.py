"""The text world's own tokenizer: one piece per word of its lexicon, single characters for everything else.

A word and the space before it are one piece (" bread"), so decoding is plain joining and any printable ASCII text comes
back exactly as it went in. "Q:" and a line break with "A:", the frame of a prompt, are pieces too. Nothing is
downloaded or trained: the pieces follow from the lexicon, in a fixed order.
"""

import re
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from alignlab.worlds.text.lexicon import (
    CLOSINGS,
    FILLERS,
    LEADS,
    MODIFIERS,
    OPENINGS,
    PHRASINGS,
    RUDE,
    TOPICS,
    as_prompt,
    as_sentence,
)

BOS, EOS, PAD, UNK = "<bos>", "<eos>", "<pad>", "<unk>"

_PIECE = r"Q:|\nA:| ?[A-Za-z]+|[^A-Za-z]"


@cache
def pieces() -> tuple[str, ...]:
    """All pieces in id order: specials, printable ASCII and the line break, the prompt's frame, the words."""
    prompts = [as_prompt(phrasing, topic) for topic in TOPICS for phrasing in PHRASINGS]
    points = [lead + point for topic in TOPICS for point in topic.points for lead in LEADS]
    replies = [as_sentence(text) for text in (*points, *OPENINGS, *CLOSINGS, *RUDE, *FILLERS)]
    texts = prompts + list(MODIFIERS) + [" " + reply for reply in replies]
    words = {piece for text in texts for piece in re.findall(_PIECE, text) if len(piece) > 1}
    characters = ["\n", *(chr(code) for code in range(32, 127))]
    return (PAD, BOS, EOS, UNK, *characters, *sorted(words))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The world's tokenizer: fewer than 512 pieces, `<bos>` put before every text, `<eos>` left to the data module."""
    vocabulary = {piece: index for index, piece in enumerate(pieces())}
    # Without merges, a stretch that is no piece as a whole falls apart into its characters.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNK, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")  # pyright: ignore
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )
