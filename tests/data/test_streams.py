"""Sources that make fresh rows at each step: batches as a function of (seed, step), and what has no meaning there."""

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignlab.batches import PreferenceBatch, PromptBatch, UnpairedBatch
from alignlab.errors import ConfigError, DataError
from alignlab.methods.reference_cache import ReferenceCache
from alignlab.rows import PreferenceRow, PromptRow, SFTRow, UnpairedRow, as_row_type, rows_as, stream_of
from tests.data.small_tokenizers import small_tokenizer
from tests.data.test_module import Rows, assert_equal, module, pairs
from tests.methods.setting import make_method

TEXTS = [" yes", " no, not at all", " a cat", " the dog sat", " ok"]


class Stream:
    """Pairs that depend on seed and step alone, soft labels and weights among them."""

    asked: list[tuple[int, int, int]]

    def __init__(self, faulty_step: int | None = None, extra: int = 0):
        self.asked, self.faulty_step, self.extra = [], faulty_step, extra

    def rows(self, row_type, split):
        assert split != "train"
        return (row for pair in pairs(5 if split == "test" else 0) for row in rows_as(pair, row_type))

    def fresh_rows(self, row_type, *, step, batch_size, seed):
        self.asked.append((step, batch_size, seed))
        rng = Random(f"{seed}/{step}")
        made: list[Any] = []
        while len(made) < batch_size + self.extra:
            chosen, rejected = rng.sample(TEXTS, 2)
            prompt = f"{seed}.{step}.{len(made)}:"
            if row_type is UnpairedRow:
                made.append(UnpairedRow(prompt, chosen, rng.random() < 0.5))
            else:
                pair = PreferenceRow(prompt, chosen, rejected, rng.random(), 1 + rng.random())
                made.append(as_row_type(pair, row_type))
        if step == self.faulty_step:
            made[1] = PreferenceRow("a", "same", "same")
        return made


class Either(Stream):
    """A stream or not, as its setting has it."""

    def __init__(self, is_stream):
        super().__init__()
        self.is_stream = is_stream

    @property
    def fresh_rows(self):
        return super().fresh_rows if self.is_stream else None

    def rows(self, row_type, split):
        return (as_row_type(row, row_type) for row in pairs(3))


def texts(data, batch):
    tokenizer = data.tokenizer
    return ["".join(tokenizer.convert_ids_to_tokens(ids[mask])) for ids, mask in zip(*batch.sequences[:2], strict=True)]


def test_batch_k_holds_the_rows_that_were_made_for_step_k():
    source = Stream()
    data = module(source, seed=7, batch_size=3)
    batch = data.train_batch(5)
    made = Stream().fresh_rows(PreferenceRow, step=5, batch_size=3, seed=7)
    assert source.asked == [(5, 3, 7)]
    assert isinstance(batch, PreferenceBatch) and batch.rows.tolist() == [15, 16, 17]
    expected = [f"<s>{row.prompt}{row.chosen}</s>" for row in made] + [f"<s>{r.prompt}{r.rejected}</s>" for r in made]
    assert texts(data, batch) == expected
    assert batch.preference.tolist() == pytest.approx([row.preference for row in made])
    assert batch.weight.tolist() == pytest.approx([row.weight for row in made])


@pytest.mark.parametrize(("row_type", "kind"), [(PromptRow, PromptBatch), (UnpairedRow, UnpairedBatch), (SFTRow, None)])
def test_every_row_type_can_be_streamed(row_type, kind):
    batch = module(Stream(), row_type).train_batch(2)
    assert kind is None or isinstance(batch, kind)
    assert batch.rows.tolist() == [8, 9, 10, 11]


def test_the_same_seed_gives_the_same_batches_and_another_seed_others():
    used, fresh = module(Stream(), seed=3), module(Stream(), seed=3)
    for k in (4, 0, 9):
        used.train_batch(k)
    assert_equal(used.train_batch(6), fresh.train_batch(6))
    other = module(Stream(), seed=4)
    assert texts(other, other.train_batch(6)) != texts(fresh, fresh.train_batch(6))
    assert texts(fresh, fresh.train_batch(7)) != texts(fresh, fresh.train_batch(6))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_starts_where_it_is_told_with_or_without_workers(num_workers):
    data = module(Stream(), num_workers=num_workers)
    data.prepare()
    before = torch.get_rng_state()
    data.set_range(5, 9)
    loaded = list(data.train_dataloader())
    assert torch.equal(before, torch.get_rng_state())
    assert [batch.rows.tolist()[0] for batch in loaded] == [20, 24, 28, 32]
    for k, batch in enumerate(loaded, start=5):
        assert_equal(batch, module(Stream()).train_batch(k))


@pytest.mark.parametrize("row_type", [PreferenceRow, UnpairedRow])
def test_two_processes_share_the_rows_of_a_step(row_type):
    one, parts = module(Stream(), row_type, batch_size=5), [module(Stream(), row_type, batch_size=5) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.prepare(world_size=2, rank=rank)
    for k in (0, 3):
        whole, shares = one.train_batch(k), [part.train_batch(k) for part in parts]
        assert [share.rows.tolist() for share in shares] == [whole.rows.tolist()[rank::2] for rank in range(2)]
        replies = texts(one, whole)[:5]
        assert [texts(one, share)[: len(share.rows)] for share in shares] == [replies[rank::2] for rank in range(2)]
        if row_type is PreferenceRow:
            assert [share.weight.tolist() for share in shares] == [whole.weight.tolist()[rank::2] for rank in range(2)]
        else:  # a prompt's mismatched reply is the same however the batch is shared
            mixed = [texts(one, whole._replace(sequences=whole.kl_sequences))]
            mixed += [texts(one, share._replace(sequences=share.kl_sequences)) for share in shares]
            assert mixed[1:] == [mixed[0][rank::2] for rank in range(2)]


class Counted:
    """A tokenizer that counts its calls."""

    def __init__(self):
        self.inner, self.calls = small_tokenizer(), 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.inner(*args, **kwargs)


def test_a_steps_rows_are_tokenised_in_as_many_calls_as_one_row():
    counts = []
    for batch_size in (1, 64):
        tokenizer = Counted()
        data = module(Stream(), tokenizer=tokenizer, batch_size=batch_size)
        before = tokenizer.calls
        data.train_batch(0)
        counts.append(tokenizer.calls - before)
    assert counts == [2, 2]  # the prompts, and the prompts with their replies


def test_there_are_no_epochs_so_the_number_of_steps_must_be_said():
    data = module(Stream())
    data.prepare()
    assert data.steps_per_epoch is None
    assert make_method("dpo", max_steps=7).num_steps(data.steps_per_epoch) == 7
    with pytest.raises(ConfigError, match=r"the source makes fresh rows at each step: set method.max_steps"):
        make_method("dpo", epochs=2).num_steps(data.steps_per_epoch)
    with pytest.raises(ConfigError, match="fresh rows at each step"):
        data.train_dataloader()


def test_held_out_splits_are_read_as_ever():
    data = module(Stream())
    data.prepare()
    assert set(data.statistics) == {"validation", "test"} and data.statistics["test"]["rows"] == 5
    assert "prompts_in_train" not in data.statistics["test"]
    assert data.val_dataloader() == [] and len(list(data.test_dataloader())) == 2
    assert data.longest_prompt == len("<s>n0:") - 2


@pytest.mark.parametrize("what", ["train_rows", "num_train"])
def test_training_rows_cannot_be_listed(what):
    with pytest.raises(ConfigError, match="Stream makes fresh rows at each step"):
        getattr(module(Stream()), what)


def test_digest_and_reference_cache_say_why_they_cannot(tmp_path):
    data = module(Stream())
    with pytest.raises(ConfigError, match="makes fresh rows at each step"):
        data.digest()
    policy: Any = SimpleNamespace()
    with pytest.raises(ConfigError, match=r"method.reference=cached: .* fresh rows .*method.reference=copy"):
        ReferenceCache(policy, tmp_path).fill(data, precision="32-true")


def test_the_first_training_rows_are_those_of_the_first_steps():
    """What a reward model fixes its scale on."""
    data = module(Stream(), batch_size=4)
    data.prepare(world_size=2, rank=1)
    batches = list(data.batches("train", limit=7))
    assert [batch.rows.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]  # not shared out
    with pytest.raises(ConfigError, match="fresh rows"):
        list(data.batches("train"))


@pytest.mark.parametrize("settings", [{"train_rows": 10}, {"validation_fraction": 0.1}])
def test_settings_that_need_a_training_split_are_refused(settings):
    with pytest.raises(ConfigError, match="there is no training split to take rows of"):
        module(Stream(), **settings)


def test_a_source_may_be_a_stream_in_some_modes_only():
    assert stream_of(Either(True)) is not None and stream_of(Either(False)) is None
    assert stream_of(Rows([])) is None
    finite = module(Either(False))
    assert finite.num_train == 3 and finite.steps_per_epoch == 1


def test_bad_fresh_rows_stop_the_run_with_step_and_row():
    data = module(Stream(faulty_step=1), on_bad_row="skip")
    data.train_batch(0)
    with pytest.raises(DataError, match="Stream, step 1, row 1: fields 'chosen' and 'rejected': identical"):
        data.train_batch(1)
    with pytest.raises(DataError, match=r"Stream, step 0: 5 rows of PreferenceRow, expected 4 \(data.batch_size\)"):
        module(Stream(extra=1)).train_batch(0)


def test_a_batch_smaller_than_the_number_of_processes_is_refused():
    data = module(Stream(), batch_size=2)
    data.prepare(world_size=3, rank=0)
    with pytest.raises(ConfigError, match=r"data.batch_size=2: a batch cannot be shared by 3 processes"):
        data.set_range(0, 4)
