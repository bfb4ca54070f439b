"""A small tokenizer learnt from a data set's own text: byte-pair encoding (Sennrich et al. 2016) over bytes.

A network of a few million weights cannot afford a large vocabulary: its embedding would hold most of them. The files
stand in `model.tokenizer.files`, so a run's key knows them by content. The same files give the same tokenizer.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from alignlab.data.formats import fields
from alignlab.data.formats.labelled import without_breaks
from alignlab.data.reading import read_records
from alignlab.errors import ConfigError, DataError

END = "<|endoftext|>"
"""Begins, ends and pads a text, as in GPT-2."""

SMALLEST = 257
"""Pieces that are always there: the 256 bytes, so that any text can be written, and END."""


def train_bpe(files: Sequence[str], *, vocab_size: int, text: str = "text", num_texts: int | None = None) -> Any:
    """A byte-level BPE tokenizer of `vocab_size` pieces, learnt from field `text` of the files' first `num_texts` rows.

    Words keep the space before them, line breaks written as HTML are read as one space, and END stands first in every
    text (it is BOS, EOS and pad, id 0). Fewer pieces come out where the texts do not hold so many.

    Raises:
        ConfigError: no files, or a vocabulary with no room for the bytes.
        DataError: a file that cannot be read, or a row without the field; with its place.
    """
    if not files:
        raise ConfigError("model.tokenizer.files: none given; expected the files whose text it is learnt from")
    if vocab_size < SMALLEST:
        raise ConfigError(
            f"model.tokenizer.vocab_size={vocab_size}: expected at least {SMALLEST}, the bytes and the end"
        )
    if num_texts is not None and num_texts < 1:
        raise ConfigError(f"model.tokenizer.num_texts={num_texts}: expected at least 1, or null for all")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # pyright: ignore
    tokenizer.train_from_iterator(islice(_texts(files, text), num_texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single=f"{END} $A", pair=f"{END} $A $B", special_tokens=[(END, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
    )


def _texts(files: Sequence[str], name: str) -> Iterator[str]:
    """The field of every record, in order."""
    for file in files:
        for where, record in read_records(Path(file).expanduser()):
            try:
                if isinstance(record, DataError):
                    raise record
                yield without_breaks(fields.text(record, name))
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
