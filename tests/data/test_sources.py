"""Files and hub sets as rows: every kind of file, every kind of damage, with its place."""

import csv
import gzip
import json
import subprocess
import sys

import pytest

from alignlab.data.formats import hh, plain
from alignlab.data.reading import read_records
from alignlab.data.sources import Files, Hub, file_digest
from alignlab.errors import ConfigError, DataError
from alignlab.rows import PreferenceRow, PromptRow, SFTRow

RECORDS = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(3)]
ROWS = [PreferenceRow(**record) for record in RECORDS]


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def rows_of(path, row_type=PreferenceRow):
    return list(Files(train=path, format=plain.preference).rows(row_type, "train"))


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "lines.json", "a.csv", "a.csv.gz", "a.parquet"]
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    if name == "a.parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
    elif ".csv" in name:
        plain_path = tmp_path / "plain"
        with plain_path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, RECORDS[0])
            writer.writeheader()
            writer.writerows(RECORDS)
        write(path, plain_path.read_bytes())
    else:
        write(
            path, json.dumps(RECORDS, indent=1) if name.startswith("a.json") and "jsonl" not in name else lines(RECORDS)
        )
    assert rows_of(path) == ROWS


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path):
    content = b"\xef\xbb\xbf" + lines(RECORDS).replace("\n", "\n\n").encode()
    assert rows_of(write(tmp_path / "a.jsonl", content)) == ROWS


def test_rows_serve_poorer_types_and_absent_splits_are_empty(tmp_path):
    source = Files(train=write(tmp_path / "a.jsonl", lines(RECORDS)), format=plain.preference)
    assert next(source.rows(SFTRow, "train")) == SFTRow("p0", "good 0")
    assert next(source.rows(PromptRow, "train")) == PromptRow("p0")
    assert list(source.rows(PreferenceRow, "test")) == []


def test_several_files_are_read_in_order(tmp_path):
    first, second = write(tmp_path / "b.jsonl", lines(RECORDS[:1])), write(tmp_path / "a.jsonl", lines(RECORDS[1:]))
    assert rows_of([first, second]) == ROWS


@pytest.mark.parametrize(
    ("bad_line", "message"),
    [
        (b'{"prompt": "a", "chosen": "b"', "broken JSON at column 30"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "c\xff"}', "byte 0xff at position 45: expected UTF-8"),
        (b'["a", "b"]', "got list of 2, expected an object"),
        (b'{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}', "field 'chosen': given twice"),
        (b'{"prompt": "a", "chosen": NaN, "rejected": "d"}', "NaN is not JSON"),
        (b'{"prompt": "a", "chosen": "b", "rejected": ' + b"9" * 5000 + b"}", "unreadable JSON"),
        (b'{"prompt": "a", "chosen": 1.5, "rejected": "d"}', "field 'chosen': got number 1.5, expected a string"),
        (b'{"prompt": "a", "chosen": null, "rejected": "d"}', "field 'chosen': got null"),
        (b'{"prompt": "a", "chosn": "b", "rejected": "d"}', "field 'chosen': missing.*did you mean 'chosn'"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "b"}', "fields 'chosen' and 'rejected': identical"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "  "}', "field 'rejected': the response is empty"),
        (b'{"prompt": ["a"], "chosen": "b", "rejected": "c"}', "field 'prompt': got list of 1"),
        (b'{"prompt": "a", "chosen": "\\ud83d", "rejected": "c"}', "field 'chosen': half of a surrogate pair"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_malformed_line_is_named_and_the_rest_can_be_read(tmp_path, name, bad_line, message):
    before, after = lines(RECORDS[:1]).encode(), lines(RECORDS[1:]).encode()
    path = write(tmp_path / name, before + bad_line + b"\n" + after)
    source = Files(train=path, format=plain.preference)
    with pytest.raises(DataError, match=rf"{name}:2: .*{message}"):
        list(source.rows(PreferenceRow, "train"))
    located = list(source.located_rows(PreferenceRow, "train"))
    assert [value for _, value in located if not isinstance(value, DataError)] == ROWS
    assert [where for where, value in located if isinstance(value, DataError)] == [f"{path}:2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.json", b'[{"prompt": "a"},\n {"prompt"]', "a.json:2: broken JSON at column"),
        ("a.json", b'["a"]', "a.json, item 1: got string 'a', expected an object"),
        ("a.json", b'[{"a": "\xff"}]', "a.json:1: byte 0xff"),
        ("a.csv", b"prompt,chosen,rejected\na,b\n", "a.csv:2: 2 values, expected 3: prompt, chosen, rejected"),
        ("a.csv", b"prompt,prompt\na,b\n", "a.csv:1: the first line must name each column once"),
        ("a.csv", b'prompt,chosen,rejected\na,"b"x,c\n', "a.csv:2: broken CSV"),
        ("a.csv", b"prompt,chosen,rejected\na,\xff,c\n", "a.csv:2: byte 0xff"),
        ("a.csv", b"prompt,chosen,rejected\na,,c\n", "a.csv:2: field 'chosen': the response is empty"),
        ("a.parquet", b"PAR1 not really", "not a readable parquet file"),
        ("a.txt", b"hello", "unknown kind of file, expected .jsonl"),
    ],
)
def test_damaged_file_is_named(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        rows_of(write(tmp_path / name, content))


def test_cut_off_gzip_file_is_an_error_and_not_a_shorter_data_set(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", lines(RECORDS * 1000))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="not a complete gzip file"):
        rows_of(path)
    path.write_text(lines(RECORDS))  # not zipped at all
    with pytest.raises(DataError, match="not a complete gzip file"):
        rows_of(path)


def test_numbers_in_parquet_are_not_taken_for_text(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "chosen": [3], "rejected": [None]}), path)
    with pytest.raises(DataError, match=r"a.parquet, row 1: field 'chosen': got number 3"):
        rows_of(path)


def test_missing_file_suggests_the_nearest_name(tmp_path):
    write(tmp_path / "train.jsonl.gz", lines(RECORDS))
    with pytest.raises(DataError, match=r"train.jsonl: no such file; did you mean .*train.jsonl.gz"):
        rows_of(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match="there is no folder"):
        rows_of(tmp_path / "nowhere" / "train.jsonl")
    with pytest.raises(ConfigError, match="no file given"):
        Files(format=plain.text)


def test_csv_rows_may_span_lines_and_are_all_text(tmp_path):
    path = write(tmp_path / "a.csv", 'prompt,chosen,rejected\n"two\nlines",1,0\n')
    assert rows_of(path) == [PreferenceRow("two\nlines", "1", "0")]


def test_fingerprint_follows_content_and_not_the_name(tmp_path):
    a, b = write(tmp_path / "a.jsonl", lines(RECORDS)), write(tmp_path / "b.jsonl", lines(RECORDS))
    of = lambda path: Files(train=path, format=plain.preference).fingerprint()  # noqa: E731
    assert of(a) == of(b) and file_digest(a) == file_digest(b)
    write(b, lines(RECORDS[:2]))
    assert of(a) != of(b)
    assert Files(train=a, format=plain.text).fingerprint() != Files(test=a, format=plain.text).fingerprint()


def test_hub_takes_local_files_for_splits_and_fetches_the_others_when_read(tmp_path, monkeypatch):
    calls = []

    def load_dataset(name, subset, *, data_dir, split, revision):
        calls.append((name, subset, data_dir, split, revision))
        return RECORDS

    import datasets

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    path = write(tmp_path / "mine.jsonl.gz", lines(RECORDS[:1]))
    hub = Hub("someone/pairs", revision="abc", train=path, test="test[:3]", folder="base", format=plain.preference)
    fingerprint = hub.fingerprint()
    assert list(hub.rows(PreferenceRow, "train")) == ROWS[:1] and calls == []
    assert list(hub.rows(PreferenceRow, "test")) == ROWS
    assert calls == [("someone/pairs", None, "base", "test[:3]", "abc")]
    other = Hub("someone/pairs", revision="abd", train=path, test="test[:3]", folder="base", format=plain.preference)
    assert other.fingerprint() != fingerprint


def test_hub_without_network_says_what_to_do(monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"someone/pairs@abc, split 'train'.*Couldn't reach.*data.source.train=path"):
        list(Hub("someone/pairs", revision="abc", train="train", format=plain.preference).rows(PreferenceRow, "train"))


def test_sources_and_formats_are_imported_without_torch():
    modules = "alignlab.data.sources, alignlab.data.formats.hh, alignlab.data.formats.ultrafeedback"
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_defects_of_real_transcripts_are_each_reported(real_data):
    folder = real_data / "pref-hh-rlhf"
    source = Files(train=[folder / "train.jsonl.gz", folder / "test.jsonl"], format=hh.transcripts)
    errors = [str(value) for _, value in source.located_rows(PreferenceRow, "train") if isinstance(value, DataError)]
    assert sum("identical" in e for e in errors) == 27
    assert sum("the response is empty" in e for e in errors) == 5
    assert sum("dialogues differ" in e for e in errors) == 10
    assert len(errors) == 42


def test_format_of_one_s_own_may_take_fields_as_they_come(tmp_path):
    source = Files(train=write(tmp_path / "a.jsonl", lines(RECORDS)), format=lambda record: SFTRow("", record["txt"]))
    with pytest.raises(DataError, match=r"a.jsonl:1: field 'txt': missing, the row has 'prompt', 'chosen', 'rejected'"):
        list(source.rows(SFTRow, "train"))


def test_records_know_their_line(tmp_path):
    path = write(tmp_path / "a.jsonl", "\n" + lines(RECORDS))
    assert [where for where, _ in read_records(path)] == [f"{path}:{n}" for n in (2, 3, 4)]
