"""Single replies, desirable or not: from files and pairs to batches, and the mismatched pairs of a batch."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from alignlab.batches import IGNORE, UnpairedBatch
from alignlab.data.collate import mismatched
from alignlab.data.formats import chat, plain
from alignlab.data.sources import Files
from alignlab.errors import DataError
from alignlab.rows import PreferenceRow, PromptRow, SFTRow, UnpairedRow, as_row_type, rows_as
from tests.data.test_module import Rows, assert_equal, module, pairs

REPLIES = [" yes", " no", " a cat", " ok", " one two", " the dog", " h"]


def singles(num):
    return [UnpairedRow(f"n{i}:", REPLIES[i % len(REPLIES)], i % 3 == 0) for i in range(num)]


def texts(data, sequences):
    """Each row as text, and what of it is scored."""
    found = []
    for ids, mask, labels in zip(*sequences, strict=True):
        whole = "".join(data.tokenizer.convert_ids_to_tokens(ids[mask]))
        scored = "".join(data.tokenizer.convert_ids_to_tokens(labels[labels != IGNORE]))
        assert torch.equal(labels[labels != IGNORE], ids[labels != IGNORE])
        found.append((whole, scored))
    return found


def test_a_pair_gives_a_desirable_and_an_undesirable_row():
    assert rows_as(PreferenceRow("a", "b", "c"), UnpairedRow) == (
        UnpairedRow("a", "b", True),
        UnpairedRow("a", "c", False),
    )
    turned = rows_as(PreferenceRow("a", "b", "c", preference=0.0), UnpairedRow)
    assert turned == (UnpairedRow("a", "b", False), UnpairedRow("a", "c", True))
    single = UnpairedRow("a", "b", False)
    assert rows_as(single, UnpairedRow) == (single,) and as_row_type(single, PromptRow) == PromptRow("a")


@pytest.mark.parametrize("row", [PreferenceRow("a", "b", "c", 0.8), PreferenceRow("a", "b", "c", 1.0, 2.0)])
def test_what_single_replies_cannot_say_of_a_pair_is_refused(row):
    with pytest.raises(DataError, match=r"preference=.*, weight=.* cannot serve as unpaired rows"):
        rows_as(row, UnpairedRow)


def test_single_replies_serve_no_method_that_imitates_or_compares():
    for row_type in (SFTRow, PreferenceRow):
        with pytest.raises(DataError, match=f"UnpairedRow cannot serve as a {row_type.__name__}"):
            as_row_type(UnpairedRow("a", "b", True), row_type)


def test_a_file_of_pairs_is_read_as_twice_as_many_rows(tmp_path):
    path = tmp_path / "train.jsonl"
    lines = [json.dumps({"prompt": f"n{i}:", "chosen": f" yes {i}", "rejected": f" no {i}"}) for i in range(3)]
    path.write_text("\n".join([*lines, "{broken"]))
    source = Files(train=path, format=plain.preference)
    with pytest.raises(DataError, match=r"train.jsonl:4: broken JSON"):
        list(source.rows(UnpairedRow, "train"))
    data = module(source, UnpairedRow, on_bad_row="skip", batch_size=6)
    batch = data.train_batch(0)
    assert isinstance(batch, UnpairedBatch) and data.num_train == 6 and len(data.bad_rows) == 1
    for (text, _), row, desirable in zip(texts(data, batch.sequences), batch.rows.tolist(), batch.desirable.tolist()):
        reply = f" yes {row // 2}" if row % 2 == 0 else f" no {row // 2}"
        assert text == f"<s>n{row // 2}:{reply}</s>" and desirable == (row % 2 == 0)
    assert module(source, UnpairedRow, train_rows=5).num_train == 5


@pytest.mark.parametrize("label", [True, False, 1, 0, "true", "False", "1"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_labels_in_files(tmp_path, label, suffix):
    path = tmp_path / f"train.{suffix}"
    if suffix == "jsonl":
        path.write_text(json.dumps({"prompt": "a", "completion": " b", "label": label}))
    else:
        path.write_text(f"prompt,completion,label\na, b,{label}\n")
    source = Files(train=path, format=partial(plain.unpaired, response="completion", desirable="label"))
    expected = str(label) in ("True", "true", "1")
    assert list(source.rows(UnpairedRow, "train")) == [UnpairedRow("a", " b", expected)]


@pytest.mark.parametrize("label", [2, -1, 1.5, "yes", None, [], ""])
def test_other_labels_are_bad_rows(tmp_path, label):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"prompt": "a", "response": " b", "desirable": label}))
    with pytest.raises(DataError, match=r"train.jsonl:1: field 'desirable': got .*, expected true or false"):
        list(Files(train=path, format=plain.unpaired).rows(UnpairedRow, "train"))


@pytest.mark.parametrize("response", ["Blue.", [{"role": "assistant", "content": "Blue."}]])
def test_chat_replies_are_text_or_one_message(response):
    ask = {"role": "user", "content": "Which?"}
    row = chat.unpaired({"prompt": [ask], "response": response, "desirable": False})
    assert row == UnpairedRow((ask,), "Blue.", False)


def test_a_world_that_gives_no_truth_value_is_refused():
    wrong = UnpairedRow("a", " b", "no")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="field 'desirable': got string 'no', expected true or false"):
        module(Rows([wrong]), UnpairedRow).prepare()
    with pytest.raises(DataError, match="response is empty"):
        module(Rows([UnpairedRow("a", "  ", True)]), UnpairedRow).prepare()


def test_digest_follows_the_labels():
    turned = [UnpairedRow(row.prompt, row.response, not row.desirable) for row in singles(4)]
    assert module(Rows(singles(4)), UnpairedRow).digest() != module(Rows(turned), UnpairedRow).digest()


# -- mismatched pairs ------------------------------------------------------------------------------------------------
def test_each_prompt_meets_the_reply_of_the_next_row():
    data = module(Rows(singles(7)), UnpairedRow, batch_size=7)
    batch = data.train_batch(0)
    order, rows = batch.rows.tolist(), singles(7)
    assert texts(data, batch.sequences) == [
        (f"<s>{rows[i].prompt}{rows[i].response}</s>", f"{rows[i].response}</s>") for i in order
    ]
    others = [*order[1:], order[0]]
    assert texts(data, batch.kl_sequences) == [
        (f"<s>{rows[i].prompt}{rows[j].response}</s>", f"{rows[j].response}</s>")
        for i, j in zip(order, others, strict=True)
    ]
    assert batch.desirable.tolist() == [rows[i].desirable for i in order]


def least_shift(groups: list[int]) -> int:
    """The definition, by loops."""
    best, fewest = 0, len(groups) + 1
    for shift in range(1, len(groups)):
        own = sum(groups[i] == groups[(i + shift) % len(groups)] for i in range(len(groups)))
        if own < fewest:
            best, fewest = shift, own
    return best


@pytest.mark.parametrize(
    ("groups", "shift"),
    [
        ([1, 2, 3, 4], 1),
        ([1, 1, 2, 2, 3, 3], 2),  # both replies of a pair stand side by side
        ([1, 1, 1, 2, 2, 2], 3),
        ([1, 1, 1, 1, 2], 1),  # some prompts must get a reply of their own
        ([5, 5, 5], 1),
    ],
)
def test_the_shift_is_the_least_that_leaves_the_fewest_prompts_their_own_reply(groups, shift):
    index = [7 * i % len(groups) if len(groups) != 7 else i for i in range(len(groups))]
    by_row = np.zeros(len(groups), dtype=np.uint64)
    by_row[index] = groups
    assert least_shift(groups) == shift
    assert mismatched(by_row, index) == [index[(i + shift) % len(index)] for i in range(len(index))]


def test_the_shift_of_random_batches_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(50):
        groups = rng.integers(0, 5, size=rng.integers(2, 12)).astype(np.uint64)
        index = rng.permutation(len(groups)).tolist()
        shift = least_shift([int(groups[i]) for i in index])
        assert mismatched(groups, index) == [index[(i + shift) % len(index)] for i in range(len(index))]


def test_a_row_alone_borrows_the_reply_of_the_next_row_of_the_data():
    data = module(Rows([], test=singles(5)), UnpairedRow, batch_size=4)
    whole, last = data.batches("test")
    assert [text for text, _ in texts(data, last.kl_sequences)] == ["<s>n4: yes</s>"]
    assert len(whole.kl_sequences.input_ids) == 4
    assert module(Rows(singles(1)), UnpairedRow).train_batch(0).kl_sequences is None


def test_mismatched_pairs_are_cut_where_rows_are():
    rows = [UnpairedRow("x" * 13, " no", True), UnpairedRow("n", "y" * 15, False)]
    data = module(Rows(rows, test=rows), UnpairedRow, max_length=18)
    (batch,) = data.batches("test")
    assert [text for text, _ in texts(data, batch.kl_sequences)] == ["<s>" + "x" * 13 + "yyyy", "<s>n no</s>"]
    assert int(batch.kl_sequences.attention_mask.sum(1).max()) == 18


def test_micro_batches_and_processes_keep_the_pairs_of_the_whole_batch():
    data = module(Rows(singles(7)), UnpairedRow, batch_size=7)
    whole = data.train_batch(0)
    parts = list(whole.split(3))
    assert [len(part.rows) for part in parts] == [3, 3, 1]
    cut = [text for part in parts for text in texts(data, part.kl_sequences)]
    assert cut == texts(data, whole.kl_sequences)
    assert [row for part in parts for row in part.desirable.tolist()] == whole.desirable.tolist()
    for rank in range(2):
        data.prepare(world_size=2, rank=rank)
        share = data.train_batch(0)
        assert share.rows.tolist() == whole.rows.tolist()[rank::2]
        assert texts(data, share.kl_sequences) == texts(data, whole.kl_sequences)[rank::2]


def test_workers_change_nothing():
    loaded = []
    for num_workers in (0, 2):
        data = module(Rows(pairs(4), test=pairs(2)), PreferenceRow, num_workers=num_workers)
        loaded.append(list(data.test_dataloader()))
    assert_equal(*loaded)
