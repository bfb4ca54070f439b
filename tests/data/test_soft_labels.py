"""Soft labels and weights of pairs, from a file to a batch."""

import hashlib
import json
from functools import partial

import numpy as np
import pytest
import torch

from alignlab.data.formats import chat, plain
from alignlab.data.sources import Files
from alignlab.errors import DataError
from alignlab.rows import PreferenceRow, SFTRow, as_row_type
from tests.data.test_module import Rows, module, pairs

SOFT = [
    PreferenceRow("n0:", " yes", " no", preference=0.75, weight=2.0),
    PreferenceRow("n1:", " a", " bcd"),
    PreferenceRow("n2:", " e", " f", preference=0.0, weight=0.125),
]


def test_labels_and_weights_travel_with_their_rows():
    data = module(Rows(SOFT), batch_size=3)
    batch = data.train_batch(0)
    order = batch.rows.tolist()
    assert order != [0, 1, 2]  # else the next lines would prove little
    assert batch.preference.tolist() == [[0.75, 1.0, 0.0][row] for row in order]
    assert batch.weight.tolist() == [[2.0, 1.0, 0.125][row] for row in order]
    assert float(batch.total_weight) == 3.125
    held = module(Rows([], test=SOFT[::-1]))
    assert next(held.batches("test")).preference.tolist() == [0.0, 1.0, 0.75]
    assert held.test_rows.take(np.array([2, 0])).labels["weight"].tolist() == [2.0, 0.125]


def test_certain_labels_leave_no_trace():
    data = module(Rows(pairs(4)))
    assert data.train_batch(0).preference is None and data.train_batch(0).weight is None
    assert float(data.train_batch(0).total_weight) == 4.0
    only_weights = module(Rows([PreferenceRow("a", "b", "c", weight=3.0)])).train_batch(0)
    assert only_weights.preference is None and only_weights.weight.tolist() == [3.0]


def test_micro_batches_keep_their_own_labels():
    batch = module(Rows(SOFT), batch_size=3).train_batch(0)
    parts = list(batch.split(2))
    labels = batch.preference.tolist()
    assert [part.preference.tolist() for part in parts] == [labels[:2], labels[2:]]
    assert torch.cat([part.weight for part in parts]).tolist() == batch.weight.tolist()
    assert sum(float(part.total_weight) for part in parts) == float(batch.total_weight)


def test_held_out_rows_take_their_labels_along():
    rows = [PreferenceRow(f"n{i}:", " yes", " no", preference=(i % 11) / 11, weight=1.0 + i) for i in range(40)]
    data = module(Rows(rows), validation_fraction=0.2)
    for part in (data.train_rows, data.validation_rows):
        number = [int(prompt[1:-1]) for prompt in part.prompts]
        assert part.labels["weight"].tolist() == [1.0 + i for i in number]
        assert part.labels["preference"] == pytest.approx([(i % 11) / 11 for i in number])


def test_the_digest_follows_labels_and_that_of_certain_ones_is_what_it_was():
    hard = [PreferenceRow(row.prompt, row.chosen, row.rejected) for row in SOFT]
    data = module(Rows(hard))
    old = hashlib.sha256(b"PreferenceRow")  # ids, lengths and what is scored, as before there were soft labels
    for table in data.train_rows.tables:
        for array in (table.starts, table.prompt_lengths, table.ids):
            old.update(array.tobytes())
    assert data.digest() == old.hexdigest()
    assert len({module(Rows(rows)).digest() for rows in (hard, SOFT, [SOFT[0], *hard[1:]])}) == 3


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("form", [plain.preference, chat.preference])
def test_fields_are_read_where_they_are_named(tmp_path, suffix, form):
    if form is chat.preference and suffix == "csv":
        pytest.skip("csv holds no messages")
    path = tmp_path / f"train.{suffix}"
    prompt = [{"role": "user", "content": "a"}] if form is chat.preference else "a"
    if suffix == "jsonl":
        path.write_text(json.dumps({"prompt": prompt, "chosen": "b", "rejected": "c", "p": 0.25, "n": 3}))
    else:
        path.write_text("prompt,chosen,rejected,p,n\na,b,c,0.25,3\n")
    named = Files(train=path, format=partial(form, preference="p", weight="n"))
    (row,) = named.rows(PreferenceRow, "train")
    assert (row.preference, row.weight) == (0.25, 3)
    (row,) = Files(train=path, format=form).rows(PreferenceRow, "train")
    assert (row.preference, row.weight) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"p": 1.5}, r"train.jsonl:1: field 'p': got number 1.5, expected a probability: a number from 0 to 1"),
        ({"p": -0.1}, "field 'p': got number -0.1"),
        ({"p": "high"}, "field 'p': got string 'high'"),
        ({"p": "nan"}, "field 'p': got string 'nan'"),
        ({"p": True}, "field 'p': got boolean true"),
        ({"p": None}, "field 'p': got null"),
        ({}, "field 'p': missing"),
        ({"p": 0.5, "n": 0}, "field 'n': got number 0, expected a finite number above 0"),
        ({"p": 0.5, "n": "1e999"}, "field 'n': got number inf"),
        ({"p": 0.5, "n": -1}, "field 'n': got number -1"),
    ],
)
def test_labels_out_of_range_are_bad_rows_with_their_place(tmp_path, fields, message):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c", "n": 1, **fields}))
    source = Files(train=path, format=partial(plain.preference, preference="p", weight="n"))
    with pytest.raises(DataError, match=message):
        list(source.rows(PreferenceRow, "train"))


FAULTY = [{"preference": 1.01}, {"preference": "1"}, {"weight": 0.0}, {"weight": float("nan")}]


@pytest.mark.parametrize("faulty", FAULTY)
def test_a_world_that_makes_impossible_labels_is_refused(faulty):
    with pytest.raises(DataError, match=f"field '{next(iter(faulty))}'"):
        module(Rows([PreferenceRow("a", "b", "c", **faulty)])).prepare()


def test_sft_imitates_the_likelier_reply():
    assert [as_row_type(row, SFTRow).response for row in SOFT] == [" yes", " a", " f"]
