"""Which runs are seeds of one row, which are settings of a sweep, and what their intervals are."""

import math

import pytest

from alignlab.report.hacking import find_warnings
from alignlab.report.summary import Row, summarise
from tests.report.fabricated import write_policy, write_run


def sweep(tmp_path, betas=(0.1, 0.5), seeds=(0, 1)):
    """DPO over beta and seed; the parents' keys differ from seed to seed, as they do in a build."""
    runs = []
    for beta in betas:
        for seed in seeds:
            config = {
                "method": {"loss": {"beta": beta}},
                "needs": {"sft": {"path": f"runs/sft-abc12{seed}f", "paths": [f"runs/sft-abc12{seed}f"]}},
            }
            gold = 10 * beta + seed
            name, key = f"dpo{beta}", f"aa{seed}1b2c3"
            runs.append(
                write_policy(tmp_path, name, method="dpo", seed=seed, gold=gold, proxy=0, kl=1, key=key, config=config)
            )
    return runs


def test_runs_that_differ_in_the_seed_alone_are_one_row(tmp_path):
    rows = summarise({"dpo": sweep(tmp_path)}, baseline=None)
    assert [row.label for row in rows] == ["dpo beta=0.1", "dpo beta=0.5"]
    assert [row.num_seeds for row in rows] == [2, 2]
    assert [row.need for row in rows] == ["dpo", "dpo"]


def test_a_row_of_seeds_has_the_t_interval_over_seeds(tmp_path):
    row = summarise({"dpo": sweep(tmp_path, betas=(0.1,), seeds=(0, 1, 2))}, baseline=None)[0]
    # gold 1, 2, 3: mean 2, s = 1, t(2, 97.5%) = 4.302653
    assert row.label == "dpo"
    assert row.values["gold_reward"] == pytest.approx(2.0)
    assert row.values["gold_reward_high"] == pytest.approx(2 + 4.302653 / math.sqrt(3), rel=1e-6)
    assert row.values["gold_reward_low"] == pytest.approx(2 - 4.302653 / math.sqrt(3), rel=1e-6)


def test_one_seed_keeps_the_interval_over_prompts(tmp_path):
    row = summarise({"dpo": sweep(tmp_path, betas=(0.1,), seeds=(0,))}, baseline=None)[0]
    assert row.values["gold_reward_low"] == pytest.approx(1 - 0.32)
    assert row.values["kl_high"] == pytest.approx(1 + 1.96 * 0.15)


def test_one_seed_twice_is_not_two_seeds(tmp_path):
    runs = [
        write_policy(tmp_path, name, method="dpo", gold=1, proxy=0, kl=1, key=key)
        for name, key in (("one", "aaaaaaa1"), ("two", "bbbbbbb2"))
    ]
    rows = summarise({"dpo": runs}, baseline=None)
    assert [row.label for row in rows] == ["one-evaluate-aaaaaaa10", "two-evaluate-bbbbbbb20"]


def test_a_swept_class_is_labelled_by_its_name(tmp_path):
    runs = []
    for index, name in enumerate(("DPOLoss", "IPOLoss")):
        config = {"method": {"loss": {"_target_": f"alignlab.losses.preference.{name}", "beta": 0.1}}}
        runs.append(write_policy(tmp_path, name, method="dpo", gold=index, proxy=0, kl=1, config=config))
    assert [row.label for row in summarise({"dpo": runs}, baseline=None)] == ["dpo loss=DPOLoss", "dpo loss=IPOLoss"]


def chosen_losses(tmp_path, *options):
    """Runs of one need that say which loss they chose, and how: (option, class, beta, threads)."""
    runs = []
    for number, (option, name, beta, threads) in enumerate(options):
        config = {
            "method": {"loss": {"_target_": f"alignlab.losses.{name}", "beta": beta}},
            "hardware": {"threads": threads},
            "inert": ["hardware.threads"],
        }
        words = ["experiments=exact/dpo", "seed=0", f"method/loss={option}"]
        folder = tmp_path / f"run-{number}aaaaaa"
        runs.append(write_run(folder, config=config, task="train", method="dpo", seed=0, overrides=words))
    return [row.label for row in summarise({"pairs": runs}, baseline=None)]


def test_rows_are_named_by_the_options_that_were_typed_and_not_by_what_these_contain(tmp_path):
    rows = chosen_losses(tmp_path, ("dpo", "A", 0.1, None), ("exo", "B", 0.1, 1), ("mine", "C", 0.3, None))
    assert rows == ["pairs loss=dpo", "pairs loss=exo", "pairs loss=mine"]


def test_a_method_that_the_experiment_itself_names_is_an_option_too(tmp_path):
    runs = []
    for name, words in (("rloo", []), ("grpo", ["method=grpo"])):
        config = {"method": {"kl": name, "baseline": name}}
        runs.append(write_run(tmp_path / f"{name}-aaaaaa", config=config, method=name, seed=0, overrides=words))
    labels = [row.label for row in summarise({"rollouts": runs}, baseline=None)]
    assert labels == ["rollouts method=rloo", "rollouts method=grpo"]


def test_what_varies_within_an_option_is_named_beside_it(tmp_path):
    rows = chosen_losses(tmp_path, ("dpo", "A", 0.1, 1), ("dpo", "A", 0.5, 1), ("exo", "B", 0.1, 1))
    assert rows == ["pairs loss=dpo beta=0.1", "pairs loss=dpo beta=0.5", "pairs loss=exo beta=0.1"]


def test_what_never_changes_a_number_makes_no_row(tmp_path):
    runs = []
    for seed, threads in ((0, 1), (1, None)):
        config = {"method": {"lr": 0.1}, "hardware": {"threads": threads}, "inert": ["hardware.threads"]}
        runs.append(write_run(tmp_path / f"a-{seed}aaaaaa", config=config, task="train", method="dpo", seed=seed))
    [row] = summarise({"dpo": runs}, baseline=None)
    assert (row.label, row.num_seeds) == ("dpo", 2)


def test_the_win_rate_is_against_the_baseline_of_the_same_seed(tmp_path):
    # gold of the baseline is 1.0 at seed 0 and 2.0 at seed 1; ours 1.5 at both: all won, all lost
    base = sweep(tmp_path / "base", betas=(0.1,))
    ours = [write_policy(tmp_path, "ppo", method="ppo", seed=seed, gold=1.5, proxy=0, kl=1) for seed in (0, 1)]
    rows = {row.label: row for row in summarise({"sft": base, "ppo": ours}, baseline="sft")}
    assert rows["ppo"].values["win_rate"] == 0.5
    apart = summarise({"sft": base, "ppo": ours[:1]}, baseline="sft")[1]
    assert apart.values["win_rate"] == 1.0
    assert "win_rate" not in rows["sft"].values


def make_row(label, **values):
    interval = {"gold_reward_low": values["gold_reward"] - 0.5, "gold_reward_high": values["gold_reward"] + 0.5}
    return Row(
        label, label, (), {"response_length": 20.0, "distinct_2": 0.6, "repetition_rate": 0.0} | interval | values
    )


SFT = make_row("sft", gold_reward=0.0, proxy_reward=0.0, kl=0.0)
GOOD = make_row("good", gold_reward=5.0, proxy_reward=2.0, kl=6.0)


def test_a_good_policy_raises_no_warning():
    assert find_warnings([SFT, GOOD], baseline="sft") == {}


def test_proxy_up_and_gold_down_is_over_optimised_only_where_intervals_are_apart():
    near = make_row("near", gold_reward=4.5, proxy_reward=3.0, kl=9.0)
    hacked = make_row("hacked", gold_reward=3.0, proxy_reward=4.0, kl=12.0)
    assert list(find_warnings([SFT, GOOD, near], baseline="sft")) == []
    found = find_warnings([SFT, GOOD, near, hacked], baseline="sft")
    assert list(found) == ["hacked"]
    assert "above near's" not in found["hacked"][0] and "above good's" in found["hacked"][0]


def test_a_reward_that_is_its_own_gold_is_suspected_by_distance_and_sameness():
    hacked = make_row("hacked", gold_reward=63.0, proxy_reward=63.0, kl=76.0, response_length=64.0, distinct_2=0.1)
    found = find_warnings([SFT, hacked], baseline="sft")["hacked"]
    assert any("76.0 nats over 64 tokens" in text for text in found)
    assert any("distinct-2 0.10 against 0.60" in text for text in found)


def test_spoilt_replies_are_suspected_where_a_tenth_more_are_refused_than_of_the_baseline():
    base = make_row("sft", gold_reward=0.0, proxy_reward=0.0, kl=0.0, quality_rate=0.95)
    sound = make_row("sound", gold_reward=5.0, proxy_reward=2.0, kl=6.0, quality_rate=0.86)
    spoilt = make_row("spoilt", gold_reward=5.0, proxy_reward=2.0, kl=6.0, quality_rate=0.84)
    found = find_warnings([base, sound, spoilt], baseline="sft")
    assert found == {"spoilt": ["spoilt replies: quality rate 0.84 against 0.95 of sft"]}


def test_an_untrained_model_is_far_away_but_suspected_of_nothing():
    base = make_row("base", gold_reward=-3.0, proxy_reward=-2.0, kl=90.0, distinct_2=0.1, repetition_rate=0.9)
    assert find_warnings([base, SFT], baseline="sft") == {}
