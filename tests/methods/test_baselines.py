"""Baselines, worked by hand."""

import pytest
import torch

from alignlab.errors import ConfigError
from alignlab.methods.baselines import GroupMean, GroupStandardized, LeaveOneOut, RunningMean


def alone(x: torch.Tensor) -> torch.Tensor:
    """One process: its sum is the total."""
    return x


SCORES = torch.tensor([1.0, 2, 3, 6, 5, 5, 5, 5])


def test_group_baselines_by_hand():
    """Of 1, 2, 3, 6 the mean is 3, the others' means are 11/3, 10/3, 3 and 2, the squares sum to 14."""
    std = (14 / 3) ** 0.5 + 1e-4
    for baseline, expected in (
        (LeaveOneOut(), [-8 / 3, -4 / 3, 0, 4]),
        (GroupMean(), [-2, -1, 0, 3]),
        (GroupStandardized(), [-2 / std, -1 / std, 0, 3 / std]),
    ):
        advantages = baseline.advantages(SCORES, 4, alone)
        torch.testing.assert_close(advantages, torch.tensor([*expected, 0.0, 0.0, 0.0, 0.0]))


def test_the_running_mean_is_of_earlier_steps_alone():
    baseline = RunningMean(decay=0.9)
    first = baseline.advantages(torch.tensor([1.0, 3.0]), 1, alone)
    assert first.tolist() == [-2.0, 2.0]  # 1 against 3, and 3 against 1
    second = baseline.advantages(torch.tensor([4.0, 6.0]), 1, alone)
    assert second.tolist() == [2.0, 4.0]  # against 2, the mean of the first step
    third = baseline.advantages(torch.tensor([2.3]), 1, alone)
    assert third.tolist() == pytest.approx([0.0], abs=1e-6)  # against 0.9 * 2 + 0.1 * 5


def test_without_decay_every_earlier_reply_counts_alike():
    baseline = RunningMean(decay=None)
    for rewards in ([1.0, 3.0], [4.0, 6.0, 10.0]):
        baseline.advantages(torch.tensor(rewards), 1, alone)
    assert baseline.state() == {"mean": pytest.approx(24 / 5), "count": 5.0}


def test_the_running_mean_is_over_all_processes():
    """This process holds 1 and 3, the other one 8; what is added up is the number of replies and their sum."""
    others = iter((1.0, 8.0, 1.0, 6.0))
    baseline = RunningMean(decay=0.5)

    def total(x: torch.Tensor) -> torch.Tensor:
        return x + next(others)

    first = baseline.advantages(torch.tensor([1.0, 3.0]), 1, total)
    assert first.tolist() == [-4.5, -1.5]  # 1 against (3 + 8) / 2, and 3 against (1 + 8) / 2
    assert baseline.advantages(torch.tensor([2.0, 4.0]), 1, total).tolist() == [-2.0, 0.0]
    assert baseline.mean == 4.0


def test_a_step_of_one_reply_has_nothing_to_learn_at_first():
    assert RunningMean(decay=0.9).advantages(torch.tensor([7.0]), 1, alone).tolist() == [0.0]


def test_what_it_remembers_can_be_stored():
    baseline, again = RunningMean(decay=0.9), RunningMean(decay=0.9)
    baseline.advantages(torch.tensor([1.0, 2.5]), 1, alone)
    again.load_state(baseline.state())
    rewards = torch.tensor([0.3, 0.7])
    assert torch.equal(baseline.advantages(rewards, 1, alone), again.advantages(rewards, 1, alone))
    assert LeaveOneOut().state() == {}


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_an_impossible_decay_is_refused(decay: float):
    with pytest.raises(ConfigError, match="decay"):
        RunningMean(decay=decay)
