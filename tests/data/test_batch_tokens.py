"""Batches by a budget of tokens: every row once an epoch, equally many steps in each, no batch far from the budget."""

import numpy as np
import pytest

from alignlab.data.loader import step_rows_by_tokens, token_steps
from alignlab.errors import ConfigError
from alignlab.rows import PreferenceRow
from tests.data.test_module import Rows, module, pairs


@pytest.mark.parametrize("budget", [40, 41, 97, 250, 10_000])
def test_every_epoch_has_each_row_once_in_as_many_steps(budget: int):
    lengths = np.random.default_rng(1).integers(3, 41, size=60)
    steps = token_steps(lengths, budget)
    assert steps == min(-(-int(lengths.sum()) // budget), 60)
    orders = []
    for epoch in range(3):
        batches = [
            step_rows_by_tokens(epoch * steps + k, lengths=lengths, batch_tokens=budget, seed=5) for k in range(steps)
        ]
        orders.append([row for batch in batches for row in batch])
        assert sorted(orders[-1]) == list(range(60)) and all(batches)
        share = lengths.sum() / steps
        assert all(share - 41 < lengths[batch].sum() < share + 41 for batch in batches)
    assert orders[0] != orders[1] != orders[2]


def test_a_pair_counts_both_its_sequences():
    data = module(Rows(pairs(10)), batch_tokens=60)
    table_tokens = sum(int(table.lengths.sum()) for table in data.train_rows.tables)
    assert data.train_rows.lengths.sum() == table_tokens
    assert data.steps_per_epoch == -(-table_tokens // 60)
    batch = data.train_batch(1)
    assert batch.rows.tolist() == step_rows_by_tokens(1, lengths=data.train_rows.lengths, batch_tokens=60, seed=0)


def test_long_rows_take_a_batch_each_and_leave_one_for_the_others():
    lengths = np.array([100, 1, 1, 100, 1])
    batches = [step_rows_by_tokens(k, lengths=lengths, batch_tokens=100, seed=0) for k in range(3)]
    assert token_steps(lengths, 100) == 3 and all(batches) and sum(map(len, batches)) == 5


def test_a_budget_below_the_longest_row_is_refused():
    data = module(Rows([*pairs(4), PreferenceRow("n9:", " h" * 20, " no")]), batch_tokens=20)
    with pytest.raises(ConfigError, match=r"data.batch_tokens=20: the longest training row has \d+ tokens"):
        data.set_range(0, 1)


def test_several_processes_need_room_for_a_row_each():
    data = module(Rows(pairs(40)), batch_tokens=60)
    longest = int(data.train_rows.lengths.max())
    assert longest <= 60 < 4 * longest
    data.prepare(world_size=2, rank=0)
    with pytest.raises(ConfigError, match=f"expected at least {4 * longest}"):
        data.set_range(0, 1)
    data.batch_tokens = 4 * longest
    data.set_range(0, data.steps_per_epoch)
    assert all(len(batch.rows) for batch in data.train_dataloader())
