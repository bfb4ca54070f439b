"""The data module: batches as a function of (seed, step), shares of processes, padding, limits, bad rows."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from alignlab.batches import IGNORE, PreferenceBatch, PromptBatch, SFTBatch
from alignlab.data.formats import plain
from alignlab.data.module import DataModule
from alignlab.data.sources import Files
from alignlab.errors import ConfigError, DataError
from alignlab.rows import PreferenceRow, PromptRow, SFTRow, as_row_type
from tests.data.small_tokenizers import CHATML, EOS, PAD, small_tokenizer

WORDS = ["red", "green", "blue", "cat", "dog", "bird", "tree", "house", "river", "stone"]


class Rows:
    """A source of given rows, as a world is one."""

    def __init__(self, train, validation=(), test=()):
        self.splits = {"train": train, "validation": validation, "test": test}

    def rows(self, row_type, split):
        return (as_row_type(row, row_type) for row in self.splits[split])


def pairs(num):
    return [PreferenceRow(f"n{i}:", " h" * (1 + i % 5), f" no {i}") for i in range(num)]


def module(source, row_type=PreferenceRow, *, tokenizer=None, **settings):
    settings = {"max_length": 64, "batch_size": 4, "seed": 0, "stop_token_ids": (EOS,), **settings}
    return DataModule(source=source, tokenizer=tokenizer or small_tokenizer(), row_type=row_type, **settings)


def numbers(batches):
    return [batch.rows.tolist() for batch in batches]


def assert_equal(a, b):
    for x, y in zip(torch.utils._pytree.tree_leaves(a), torch.utils._pytree.tree_leaves(b), strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def test_training_rows_are_padded_on_the_right_and_masked_by_length():
    tokenizer = small_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token  # a pad id that is a real token too
    batch = module(Rows(pairs(3)), tokenizer=tokenizer, batch_size=3).train_batch(0)
    ids, mask, labels = batch.sequences
    assert isinstance(batch, PreferenceBatch) and ids.shape[0] == 6
    for row in range(6):
        length = int(mask[row].sum())
        assert mask[row, :length].all() and not mask[row, length:].any()
        assert ids[row, length - 1] == EOS and labels[row, length - 1] == EOS
        assert (labels[row, length:] == IGNORE).all() and labels[row, 0] == IGNORE
        scored = labels[row] != IGNORE
        assert torch.equal(labels[row][scored], ids[row][scored])


def test_chosen_replies_come_first_and_share_their_prompt_with_the_rejected():
    data = module(Rows(pairs(3)), batch_size=3)
    batch, tokenizer = data.train_batch(0), data.tokenizer
    for place, row in enumerate(batch.rows.tolist()):
        texts = ["".join(tokenizer.convert_ids_to_tokens(batch.sequences.input_ids[i])) for i in (place, place + 3)]
        source = pairs(3)[row]
        expected = [f"<s>{source.prompt}{reply}</s>" for reply in (source.chosen, source.rejected)]
        assert [text.replace("<pad>", "") for text in texts] == expected


def test_prompts_are_padded_on_the_left():
    data = module(Rows(pairs(12)), PromptRow, batch_size=12)
    batch = data.train_batch(0)
    assert isinstance(batch, PromptBatch)
    assert batch.attention_mask[:, -1].all() and not batch.attention_mask[:, 0].all()
    for b, row in enumerate(batch.rows.tolist()):
        assert batch.prompts[b] == f"n{row}:"
        real = batch.input_ids[b][batch.attention_mask[b]]
        assert "".join(data.tokenizer.convert_ids_to_tokens(real)) == f"<s>n{row}:"
        assert (batch.input_ids[b][~batch.attention_mask[b]] == PAD).all()


def test_prompts_to_sample_from_are_those_of_any_row_type_each_once():
    rows = [*pairs(6), PreferenceRow("n0:", "another", "pair")]
    sft = [SFTRow(row.prompt, row.chosen) for row in rows]
    of_type = {
        row_type: list(module(Rows([rows[0]], test=made), row_type).prompt_batches("test", limit=5, batch_size=2))
        for row_type, made in ((PreferenceRow, rows), (SFTRow, sft), (PromptRow, [PromptRow(r.prompt) for r in rows]))
    }
    first = of_type[PreferenceRow]
    assert numbers(first) == [[0, 1], [2, 3], [4]]
    for other in of_type.values():
        assert_equal(first, other)
    everything = list(module(Rows([], test=rows)).prompt_batches("test"))
    assert sum(len(batch.rows) for batch in everything) == 6  # the repeated prompt once


def test_the_replies_of_the_data_stand_in_the_order_of_the_prompts():
    rows = [SFTRow("a:", " one"), SFTRow("b:", " two"), SFTRow("a:", " three"), SFTRow("c:", " four five six")]
    data = module(Rows([], test=rows), SFTRow, max_length=8, max_prompt_length=4)
    prompts = [prompt for batch in data.prompt_batches("test") for prompt in batch.prompts]
    assert prompts == ["a:", "b:", "c:"]
    replies = data.replies("test")
    assert replies[:2] == [" one", " two"], "the first of two replies to a prompt; no end token"
    assert " four five six".startswith(replies[2]) and len(replies[2]) < 14, "cut where the row was"
    assert data.replies("test", limit=2) == replies[:2]
    assert module(Rows([], test=pairs(3))).replies("test") == [" h", " h h", " h h h"], "of a pair the chosen one"
    with pytest.raises(DataError, match="prompts alone"):
        module(Rows([], test=rows), PromptRow).replies("test")


def test_each_epoch_sees_every_row_once_in_another_order():
    data = module(Rows(pairs(10)))
    assert data.steps_per_epoch == 3 and data.num_train == 10
    epochs = [[row for k in range(e * 3, e * 3 + 3) for row in data.train_batch(k).rows.tolist()] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert len(data.train_batch(2).rows) == 2  # the partial last batch is kept


def test_step_k_depends_on_seed_and_k_alone():
    fresh, used = module(Rows(pairs(10)), seed=3), module(Rows(pairs(10)), seed=3)
    for k in (9, 0, 4):
        used.train_batch(k)
    assert_equal(fresh.train_batch(7), used.train_batch(7))
    assert fresh.train_batch(7).rows.tolist() != module(Rows(pairs(10)), seed=4).train_batch(7).rows.tolist()


def test_the_loader_starts_where_it_is_told():
    data = module(Rows(pairs(10)))
    data.set_range(0, 8)
    whole = list(data.train_dataloader())
    data.set_range(5, 8)
    rest = list(data.train_dataloader())
    assert len(whole) == 8 and len(rest) == 3
    for k, batch in enumerate(whole):
        assert_equal(batch, data.train_batch(k))
    assert_equal(rest, whole[5:])


def test_workers_change_nothing():
    loaded = []
    for num_workers in (0, 2):
        data = module(Rows(pairs(10)), num_workers=num_workers)
        data.set_range(1, 6)
        loaded.append(list(data.train_dataloader()))
    assert_equal(*loaded)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_never_touch_the_global_generator(num_workers):
    data = module(Rows(pairs(10), test=pairs(4)), num_workers=num_workers)
    data.prepare()
    before = torch.get_rng_state()
    list(data.train_dataloader())
    list(data.test_dataloader())
    list(data.prompt_batches("train"))
    assert torch.equal(before, torch.get_rng_state())


def test_processes_share_each_step_and_lose_nothing():
    one = module(Rows(pairs(10), test=pairs(7)))
    parts = [module(Rows(pairs(10), test=pairs(7))) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.prepare(world_size=2, rank=rank)
    for k in range(6):
        a, b = (part.train_batch(k).rows.tolist() for part in parts)
        assert [a, b] == [one.train_batch(k).rows.tolist()[i::2] for i in range(2)]
    held = [row for part in parts for batch in part.test_dataloader() for row in batch.rows.tolist()]
    assert sorted(held) == list(range(7))
    assert numbers(parts[1].batches("test")) == [[0, 1, 2, 3], [4, 5, 6]]  # whole batches, for one process's use


def test_plain_lightning_prepares_it_through_setup():
    from types import SimpleNamespace

    data = module(Rows(pairs(10)))
    data.trainer = SimpleNamespace(world_size=2, global_rank=1)
    data.setup("fit")
    assert data.train_batch(0).rows.tolist() == module(Rows(pairs(10))).train_batch(0).rows.tolist()[1::2]


def test_a_batch_smaller_than_the_number_of_processes_is_refused():
    data = module(Rows(pairs(9)))
    data.prepare(world_size=2, rank=0)
    with pytest.raises(ConfigError, match=r"a batch of 1 rows cannot be shared by 2 processes; set data.train_rows=8"):
        data.set_range(0, 3)


def test_held_out_loaders_keep_the_order_of_the_data():
    data = module(Rows(pairs(3), validation=pairs(5), test=pairs(6)), eval_batch_size=2)
    assert numbers(data.val_dataloader()) == [[0, 1], [2, 3], [4]] == numbers(data.validation_dataloader())
    assert numbers(data.test_dataloader()) == [[0, 1], [2, 3], [4, 5]]
    assert module(Rows(pairs(3))).val_dataloader() == []


def test_validation_is_held_out_by_prompt_and_the_same_for_all_seeds():
    rows = [PreferenceRow(f"n{i % 20}:", f"yes {i}", f"no {i}") for i in range(40)]  # a prompt's rows stand far apart
    first, second = (module(Rows(rows), validation_fraction=0.2, seed=seed) for seed in (0, 1))
    held, kept = set(first.validation_rows.prompts), set(first.train_rows.prompts)
    assert not held & kept and len(held) + len(kept) == 20
    assert 4 <= len(first.validation_rows) <= 8 and len(first.validation_rows) + first.num_train == 40
    assert first.digest("validation") == second.digest("validation")
    own = module(Rows(rows, validation=pairs(3)), validation_fraction=0.2)
    assert len(own.validation_rows) == 3 and own.num_train == 40  # the source's own split is used


def test_limits_take_the_first_usable_rows():
    rows = [*pairs(3), PreferenceRow("a", "same", "same"), *pairs(9)[3:]]
    data = module(Rows(rows, test=pairs(9)), train_rows=5, test_rows=2, on_bad_row="skip")
    assert data.train_rows.prompts == tuple(f"n{i}:" for i in range(5)) and len(data.test_rows) == 2
    module(Rows(rows), train_rows=3).prepare()  # the bad row after the limit is never reached


def test_bad_row_stops_or_is_left_out_counted_and_listed(tmp_path):
    lines = [json.dumps({"prompt": f"n{i}", "chosen": "a", "rejected": "b"}) for i in range(4)]
    lines[1] = "{broken"
    lines[2] = json.dumps({"prompt": "x" * 99, "chosen": "a", "rejected": "b"})
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(lines))
    source = Files(train=path, format=plain.preference)
    with pytest.raises(DataError, match=r"train.jsonl:2: broken JSON.*set data.on_bad_row=skip"):
        module(source).prepare()
    data = module(source, on_bad_row="skip")
    data.prepare()
    assert data.num_train == 2 and data.statistics["train"]["dropped"] == 2
    assert [message.removeprefix(str(path))[:2] for message in data.bad_rows] == [":2", ":3"]
    assert "cut away whole, the prompt's 100 tokens fill data.max_length=64" in data.bad_rows[1]
    assert data.fingerprint == source.fingerprint()


def test_pair_that_differs_only_where_it_was_cut_is_a_bad_row():
    with pytest.raises(DataError, match=r"same tokens, cut at data.max_length=8"):
        module(Rows([PreferenceRow("a", "long reply one", "long reply two")]), max_length=8).prepare()


def test_no_usable_row_is_an_error():
    with pytest.raises(DataError, match="no usable row in the train split; the first"):
        module(Rows([PreferenceRow("a", "b", "b")]), on_bad_row="skip").prepare()
    with pytest.raises(DataError, match="no training rows"):
        module(Rows([], test=pairs(2))).train_batch(0)


def test_prompt_as_long_as_max_length_is_a_bad_row_for_sampling_too():
    with pytest.raises(DataError, match="cut away whole"):
        module(Rows([PromptRow("x" * 70)]), PromptRow).prepare()
    kept = module(Rows([PromptRow("x" * 70)]), PromptRow, max_prompt_length=10).train_batch(0)
    assert kept.input_ids.shape == (1, 10)


def test_dialogue_that_the_template_refuses_is_one_bad_row_of_many():
    template = "{% if messages[0]['content'] == 'no' %}{{ raise_exception('refused') }}{% endif %}" + CHATML
    rows = [SFTRow(({"role": "user", "content": text},), "yes") for text in ("a", "no", "b")]
    data = module(Rows(rows), SFTRow, tokenizer=small_tokenizer(chat_template=template), on_bad_row="skip")
    assert data.num_train == 2 and len(data.bad_rows) == 1 and "refused" in data.bad_rows[0]


def test_statistics_count_tokens_truncation_and_boundaries():
    rows = [SFTRow("ab", "cd"), SFTRow("is 4", "2"), SFTRow("a", "b" * 99)]
    data = module(Rows(rows, test=[SFTRow("ab", "x")]), SFTRow)
    data.prepare()
    train = data.statistics["train"]
    assert train["rows"] == 3 and train["truncated"] == 1 and train["split_boundary"] == 1 and train["dropped"] == 0
    assert train["mean_prompt_tokens"] == pytest.approx((3 + 5 + 2) / 3)
    assert train["mean_response_tokens"] == pytest.approx((3 + 2 + 62) / 3)
    assert train["max_tokens"] == 64 and data.statistics["test"]["prompts_in_train"] == 1


def test_the_longest_prompt_is_that_of_all_splits_as_it_is_sampled_from():
    rows = [SFTRow("ab", "cd"), SFTRow("is 4", "2")]
    assert module(Rows(rows, test=[SFTRow("abcdefgh", "x")]), SFTRow).longest_prompt == 1 + 8  # BOS
    assert module(Rows(rows, validation=[SFTRow("abcdefgh", "x")]), SFTRow, max_prompt_length=6).longest_prompt == 6
    assert module(Rows(pairs(3)), PromptRow).longest_prompt == 1 + 3
    assert module(Rows([])).longest_prompt == 0


def test_digest_follows_ids_and_labels():
    digest = module(Rows(pairs(4))).digest()
    assert digest == module(Rows(pairs(4)), seed=5, batch_size=2).digest("train")
    assert digest != module(Rows(pairs(4)), append_eos=False).digest()
    assert digest != module(Rows(pairs(4)[::-1])).digest()
    moved = [SFTRow("a", "bc")], [SFTRow("ab", "c")]  # the same ids, other labels
    assert len({module(Rows(rows), SFTRow).digest() for rows in moved}) == 2
    turned = [SFTRow("a", "bc")], [SFTRow("a", "cb")]  # as many ids, others
    assert len({module(Rows(rows), SFTRow).digest() for rows in turned}) == 2


def test_plain_text_is_scored_from_its_first_token():
    batch = module(Rows([SFTRow("", "abc")]), SFTRow).train_batch(0)
    assert isinstance(batch, SFTBatch)
    assert batch.sequences.labels[0, 0] == IGNORE and (batch.sequences.labels[0, 1:] != IGNORE).all()
    assert batch.sequences.labels.shape == (1, 5)


def test_all_faulty_settings_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        module(Rows([]), max_length=1, batch_size=0, validation_fraction=1.5, on_bad_row="ignore", train_rows=-1)
    for name in ("max_length=1", "batch_size=0", "validation_fraction=1.5", "on_bad_row=ignore", "train_rows=-1"):
        assert f"data.{name}" in str(error.value)


def test_every_option_of_the_group_fits_its_constructors():
    import inspect
    from pathlib import Path

    from hydra import compose, initialize_config_dir
    from hydra.utils import get_method, instantiate
    from omegaconf import OmegaConf

    conf = Path(__file__).parents[2] / "conf"
    options = sorted(path.stem for path in (conf / "data").glob("*.yaml") if "data.sources." in path.read_text())
    assert len(options) >= 12
    injected = {"tokenizer": None, "row_type": None, "stop_token_ids": None, "seed": 0}
    with initialize_config_dir(str(conf / "data"), version_base=None):
        for option in options:
            config = compose(option)
            node = OmegaConf.create({"data": config, "paths": {"data": "folder"}, "hardware": {"num_workers": 0}})
            OmegaConf.resolve(node)
            inspect.signature(DataModule).bind(
                **{k: v for k, v in node.data.items() if not k.startswith("_")}, **injected
            )
            source = instantiate(node.data.source)
            assert isinstance(source, Files) and isinstance(source.format, partial)
            arguments = {k: v for k, v in node.data.source.format.items() if not k.startswith("_")}
            inspect.signature(get_method(node.data.source.format._target_)).bind({}, **arguments)


def test_stories_generate_from_bos_and_end_without_a_stop_token(real_data):
    from transformers import AutoTokenizer

    folder = real_data / "pref-stories-sentiment"
    tokenizer = AutoTokenizer.from_pretrained(real_data / "models" / "stories260K")
    source = Files(train=folder / "train.jsonl", test=folder / "test.jsonl", format=plain.preference)
    data = module(source, tokenizer=tokenizer, stop_token_ids=(1, 2), append_eos=False, max_length=192)
    data.prepare()
    prompts = next(data.prompt_batches("test", limit=4))
    starts = prompts.attention_mask.int().argmax(1)
    assert (prompts.input_ids[torch.arange(4), starts] == 1).all() and (prompts.input_ids == 1).sum() == 4
    batch = data.train_batch(0)
    assert not np.isin(batch.sequences.labels.numpy(), (1, 2)).any()
    assert data.statistics["train"]["rows"] == 1353 and not data.bad_rows
