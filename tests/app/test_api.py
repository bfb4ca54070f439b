"""alignlab from Python."""

import sys

import pytest
from omegaconf import OmegaConf

import alignlab
from alignlab.errors import ConfigError, RunFailed

DPO = ["experiments=quickstart/dpo", "seed=2"]


def test_compose_then_run_is_the_same_as_the_command(toy, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--not", "ours"])
    run = alignlab.run(alignlab.compose(DPO))
    assert run.path == toy.folder("quickstart-dpo").relative_to(toy.root) and run.metrics["test/accuracy"] == 2.5
    assert alignlab.run(DPO) == run
    assert toy.run(" ".join(DPO)) == 0 and "already there" in toy.out


def test_a_composed_config_resolves_with_the_folders_of_its_needs(toy):
    cfg = alignlab.compose(DPO)
    assert cfg.model.init_from.startswith("runs/quickstart-sft-") and cfg.model.max_length == 16


def test_an_edited_config_has_the_key_that_typing_it_has(toy):
    cfg = alignlab.compose(DPO)
    cfg.method.loss.beta = 0.7
    cfg.method.loss.pop("label_smoothing")
    cfg.model.settings.more = [1, "a,b"]
    run = alignlab.run(OmegaConf.merge(cfg, {"data": {"size": 9}}))
    typed = ["method.loss.beta=0.7", "~method.loss.label_smoothing", "+model.settings.more=[1,'a,b']", "data.size=9"]
    assert alignlab.run([*DPO, *typed]).path == run.path


def test_faults_are_raised_all_at_once(toy):
    with pytest.raises(ConfigError) as caught:
        alignlab.run([*DPO, "method.loss.beta=x", "data.size=y"])
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(ConfigError, match="did you mean seed"):
        alignlab.compose(["sed=1"])


def test_an_edit_that_nobody_reads_is_a_fault(toy):
    cfg = alignlab.compose(DPO)
    OmegaConf.update(cfg, "method.lrr", 3, force_add=True)
    with pytest.raises(ConfigError, match="did you mean lr"):
        alignlab.run(cfg)


def test_a_failed_run_names_its_log(toy):
    toy.control(fail=["quickstart-sft"])
    with pytest.raises(
        RunFailed,
        match=r"quickstart-dpo-\w+: not built, for it needs quickstart-sft-\w+, which failed: ValueError.*train.log",
    ):
        alignlab.run(DPO)


def test_a_config_from_elsewhere_is_refused(toy):
    with pytest.raises(ConfigError, match="does not come from"):
        alignlab.run(OmegaConf.create({"seed": 1}))
