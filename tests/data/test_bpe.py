"""A tokenizer learnt from files: always the same, able to write anything, of the size asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alignlab.data.bpe import END, train_bpe
from alignlab.errors import ConfigError, DataError

LINES = ["the cat sat on the mat", "the cat ate the rat<br /><br />that sat", "a rat is not a cat"]


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "texts.jsonl", LINES)


def test_another_process_learns_the_very_same_tokenizer(file: str):
    learn = f"train_bpe([{file!r}], vocab_size=280).backend_tokenizer.to_str()"
    code = f"from alignlab.data.bpe import train_bpe; print({learn})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == train_bpe([file], vocab_size=280).backend_tokenizer.to_str()


def test_frequent_pairs_become_pieces_and_any_text_comes_back(file: str):
    tokenizer = train_bpe([file], vocab_size=280)
    assert len(tokenizer) == 280
    # "at" is by far the most frequent pair, so it is the first merge after END and the bytes
    assert tokenizer.convert_ids_to_tokens([257]) == ["at"]
    for text in ("the cat", " Zürich\n\t<br />", "🦆 never seen"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert "<" not in "".join(tokenizer.convert_ids_to_tokens(range(257, 280)))  # breaks were read as spaces


def test_the_end_token_stands_first_and_is_bos_eos_and_pad(file: str):
    tokenizer = train_bpe([file], vocab_size=260)
    assert tokenizer("cat")["input_ids"][0] == 0
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 0)
    assert tokenizer.convert_ids_to_tokens(0) == END


def test_only_the_first_texts_of_all_files_count(tmp_path: Path, file: str):
    more = write(tmp_path / "more.jsonl", ["zzzz zzzz zzzz"] * 9)
    alone, both = train_bpe([file], vocab_size=280), train_bpe([file, more], vocab_size=280)
    assert train_bpe([file, more], vocab_size=280, num_texts=3).get_vocab() == alone.get_vocab()
    assert "zz" in both.get_vocab() and "zz" not in alone.get_vocab()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"files": []}, "files: none given"),
        ({"vocab_size": 256}, "vocab_size=256: expected at least 257"),
        ({"num_texts": 0}, "num_texts=0: expected at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(file: str, settings: dict, says: str):
    with pytest.raises(ConfigError, match=says):
        train_bpe(**({"files": [file], "vocab_size": 280} | settings))


def test_a_row_without_the_field_is_told_with_its_place(file: str):
    with pytest.raises(DataError, match=r"texts.jsonl:1: field 'txt': missing.*did you mean 'text'"):
        train_bpe([file], vocab_size=280, text="txt")
    with pytest.raises(DataError, match="no such file"):
        train_bpe([file + "x.jsonl"], vocab_size=280)
