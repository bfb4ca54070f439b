"""The benchmark measures what it says: the same data for everybody, our real training, ratios that are right."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import __main__ as benchmark
from benchmarks import floors, ours, report
from benchmarks.cases import CASES
from benchmarks.compare import compare, compare_all, same_work
from benchmarks.meter import Meter
from benchmarks.switches import SWITCHES
from benchmarks.workloads import EOS, WORKLOADS, load_batches, load_pairs, make_network, workload

TINY = WORKLOADS["T"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALIGNLAB_BENCH", str(tmp_path / "files"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def asked(case: str, **more: Any) -> argparse.Namespace:
    settings = {"case": case, "workload": TINY, "steps": 2, "threads": 1, "device": "cpu", "precision": "fp32"}
    return argparse.Namespace(**{**settings, "off": None, **more})


# -- the work --------------------------------------------------------------------------------------------------------
def test_the_data_of_a_workload_never_changes():
    """Figures of different days are of the same bytes."""
    load_pairs(WORKLOADS["S"], 1)
    content = (WORKLOADS["S"].folder / "pairs.jsonl").read_bytes()
    assert hashlib.sha256(content).hexdigest().startswith("cffc5977820bccde")


def test_replies_have_the_lengths_that_are_said_and_end_once():
    for pair in load_pairs(WORKLOADS["S"], 256):
        assert 20 <= len(pair.prompt_ids) <= 200
        for ids in (pair.chosen_ids, pair.rejected_ids):
            assert 20 <= len(ids) <= 300
            assert ids.index(EOS) == len(ids) - 1


def test_a_changed_workload_has_files_of_its_own():
    longer = workload("G", {"length": 2, "pairs": 8})
    assert longer.pairs == 8 and isinstance(longer.pairs, int)
    assert longer.folder != WORKLOADS["G"].folder


def test_the_talker_ends_its_replies_about_as_often_as_it_should():
    model = make_network(TINY, "talker")
    generator = torch.Generator().manual_seed(7)
    probe = torch.randint(3, TINY.vocabulary, (64, 12), generator=generator)
    share = model(probe).logits[:, -1].softmax(-1)[:, EOS].mean().detach()
    assert 0.5 < float(share) / TINY.rollouts.end_probability < 2


# -- ours ------------------------------------------------------------------------------------------------------------
def test_sft_trains_on_the_rows_of_the_workload_in_their_order():
    result = ours.measure(asked("sft"))
    model = make_network(TINY, "policy").eval()
    logprobs = []
    for pair in load_batches(TINY, 2)[0]:
        ids = torch.tensor([pair.prompt_ids + pair.chosen_ids])
        rows = torch.log_softmax(model(ids).logits[0, len(pair.prompt_ids) - 1 : -1].detach().double(), -1)
        logprobs.append(rows.gather(-1, ids[0, len(pair.prompt_ids) :, None])[:, 0])
    assert result["loss"][0] == pytest.approx(-torch.cat(logprobs).mean().item(), abs=1e-5)
    assert len(result["loss"]) == 3 and result["loss"][1] != result["loss"][0]
    real = [sum(len(p.prompt_ids) + len(p.chosen_ids) for p in batch) for batch in load_batches(TINY, 2)]
    assert result["tokens"] == real[1:]  # the warm step is not counted
    assert result["s_per_step"] > 0 and result["growth_mib"] >= 0


@pytest.mark.parametrize("switch", SWITCHES.values(), ids=lambda s: s.name)
def test_a_switch_that_is_off_changes_the_cost_and_not_the_losses(switch: Any):
    if not switch.is_there():
        pytest.skip("not in this version")
    case = next(name for name in switch.cases if name != "rollout")
    usual, off = (ours.measure(asked(case, steps=2, off=name)) for name in (None, switch.name))
    assert len(usual["loss"]) == 3 and usual["loss"][2] != usual["loss"][1]
    assert off["loss"] == pytest.approx(usual["loss"], abs=1e-6)
    assert usual["loss"][0] == pytest.approx({"dpo": 0.6931472}.get(case, usual["loss"][0]), abs=1e-6)


@pytest.mark.parametrize("switch", SWITCHES.values(), ids=lambda s: s.name)
def test_the_overrides_of_a_switch_compose(switch: Any, tmp_path: Path):
    import alignlab

    if not switch.is_there():
        pytest.skip("not in this version")
    case = CASES[switch.cases[0]]
    words = ours.overrides(case, TINY, tmp_path, asked(case.name)) + list(switch.overrides)
    cfg = alignlab.compose(words)
    key, value = switch.overrides[0].split("=")
    group, name = key.split(".")
    assert str(cfg[group][name]).lower().replace("'", "") == value


# -- the floor, by hand ----------------------------------------------------------------------------------------------
def test_the_floor_of_a_step_by_hand():
    """One layer of width 16 (3072 weights); prompt p, replies c and r; attention over p + c and p + r, p once."""
    [pairs] = load_batches(TINY, 1)[1:]
    tokens = head = scores = 0
    for p, c, r in ((len(x.prompt_ids), len(x.chosen_ids), len(x.rejected_ids)) for x in pairs):
        tokens, head = tokens + p + c + r, head + c + r
        scores += 32 * ((p + c) * (p + c + 1) + (p + r) * (p + r + 1) - p * (p + 1))
    found = floors.floor("dpo", TINY, 1)
    assert found.body == 6 * 3072 * tokens + 3 * scores
    assert found.head == 6 * 64 * 16 * head
    assert floors.floor("reward", TINY, 1) == (found.body, 0.0)
    assert floors.floor("dpo_lora", TINY, 1).head == pytest.approx(found.head * 4 / 6)
    assert found.seconds(2.0) == pytest.approx((found.body + found.head) / 2e9)


# -- clocks ----------------------------------------------------------------------------------------------------------
def test_the_meter_leaves_out_warm_steps_and_divides_by_tokens():
    meter = Meter(1)
    for number in range(3):
        if number == 0:
            sum(range(3_000_000))  # the warm step is a slow one
        meter.tick()
    result = meter.summary([10, 30])
    assert result["counted_steps"] == len(meter.steps) == 2
    assert result["s_per_step"] == pytest.approx(20 / result["tokens_per_s"])
    assert max(step.own for step in meter.steps) < 0.02


def test_the_meter_sees_memory_grow():
    meter = Meter(0)
    block = torch.ones(8 * 2**20)  # 32 MiB
    meter.tick()
    assert block.sum() > 0
    assert 25 < meter.peak_mib - meter.start_mib < 60


# -- ratios ----------------------------------------------------------------------------------------------------------
def record(system: str, turn: int, speed: float, **more: Any) -> dict[str, Any]:
    facts = {"kind": "table", "system": system, "round": turn, "workload": "S", "case": "dpo", "precision": "fp32"}
    facts |= {"tokens_per_s": speed, "s_per_step": 100 / speed, "growth_mib": 100.0, "counted_steps": 4}
    facts |= {"threads": 1, "time": "process CPU", "versions": {"torch": "2"}, "off": None}
    return {**facts, "loss": [0.5, 0.25], "chosen_logprob": [-9.0], "rejected_logprob": [-8.0], **more}


def test_ratios_are_of_medians_and_the_range_is_of_rounds():
    mine = [record("alignlab", i, speed, growth_mib=50.0) for i, speed in enumerate((30.0, 40.0, 90.0))]
    peer = [record("trl", i, speed, case="dpo_cached") for i, speed in enumerate((10.0, 20.0, 10.0))]
    row = compare(CASES["dpo"], mine, peer, floor_s=0.5)
    assert (row.speed, row.speed_low, row.speed_high) == (4.0, 2.0, 9.0)
    assert (row.growth, row.speed_bar, row.growth_bar) == (0.5, 3.3, 0.5)
    assert row.ours_over_floor == 5.0 and row.peer_over_floor == 20.0
    assert row.same


def test_a_ratio_beside_other_losses_is_marked(tmp_path: Path):
    records = [record("alignlab", 0, 30.0), record("trl", 0, 10.0, case="dpo_cached", loss=[0.5, 0.2502])]
    is_same, text = same_work(CASES["dpo"], *records)
    assert not is_same and text.startswith("losses to 2e-04")
    head = {"date": "today", "command": "python -m benchmarks", "machine": "here", "rounds": 1, "load": 0.0}
    rows = report.write(records, tmp_path / "x.jsonl", head=head)
    assert [row.same for row in rows] == [False]
    assert (
        "**3.00**" in (tmp_path / "x.md").read_text() and "**NO**: losses to 2e-04" in (tmp_path / "x.md").read_text()
    )
    assert (tmp_path / "x.csv").read_text().splitlines()[1].startswith("S,dpo,trl,30.0,10.0,3.0")


def test_two_cases_may_have_one_peer():
    sampled = {"sampler_gap": [1e-6], "response_length": [40.0]}
    records = [record("alignlab", 0, 30.0, case=name, **sampled) for name in ("ppo", "ppo_shared")]
    rows = compare_all([*records, record("trl", 0, 10.0, case="ppo", **sampled)], {})
    assert [row.case for row in rows] == ["ppo", "ppo_shared"]


def test_a_failed_run_is_told_and_the_exit_code_is_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    def fake(module: str, words: Any, arguments: Any) -> dict[str, Any]:
        return {"gflops": 50.0} if module == "floors" else {"error": "exit 1: no such thing"}

    monkeypatch.setattr(benchmark, "worker", fake)
    assert benchmark.main(["--methods", "sft", "--rounds", "1", "--out", str(tmp_path), "--name", "x"]) == 1
    assert "alignlab sft S: exit 1: no such thing" in capsys.readouterr().out
    head, *records = (json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines())
    assert head["gflops"] == 50.0 and records[0]["case"] == "sft"


def test_an_unknown_method_is_refused(capsys: Any):
    with pytest.raises(SystemExit):
        benchmark.main(["--methods", "sft,dop"])
    assert "--methods dop: allowed are sft, reward, dpo" in capsys.readouterr().err
