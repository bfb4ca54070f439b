"""Composition: fast, equal to Hydra's own, and not tied to a Hydra application around it."""

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from alignlab.app.configs import paths
from alignlab.app.configs.compose import Composer
from alignlab.errors import ConfigError

LINES = [
    "",
    "experiments=quickstart/dpo method.loss.beta=0.3 adapter.rank=4 seed=1",
    "experiments=quickstart/dpo model=small +model.dropout=0.1 ++model.hidden=3 ~model.layers method/loss=ipo",
    "experiments=quickstart/ppo needs.sft.override.method.lr=1e-4 needs.sft.inherit=[model] fresh=true",
    "experiments=quickstart task.rows=5 hardware=cpu_ddp paths.runs=elsewhere",
]


@pytest.mark.parametrize("line", LINES)
def test_values_laid_on_a_copy_equal_the_whole_composition(toy, line):
    composer, overrides = Composer(paths.roots()), line.split()
    fast, whole = composer.compose(overrides), composer.choose(overrides)
    shown = [OmegaConf.to_container(cfg) for cfg in (fast.cfg, whole.cfg)]
    for one in shown:
        one["evaluation"].pop("needs")  # completed with the fields of a need, by us
    assert shown[0] == shown[1]
    assert fast.choices == whole.choices


def test_it_equals_plain_hydra(toy):
    overrides = ["method=dpo", "method/loss=ipo", "method.loss.beta=0.5", "seed=3"]
    with initialize_config_dir(str(toy.root / "conf"), version_base="1.3"):
        plain = OmegaConf.to_container(hydra_compose("config", overrides))
    assert OmegaConf.to_container(Composer(paths.roots()).compose(overrides).cfg) == plain


def test_values_cost_no_composition(toy):
    composer = Composer(paths.roots())
    for seed in range(5):
        composer.compose(["experiments=quickstart/dpo", f"seed={seed}"])
    assert composer.num_composed == 1


def test_experiments_are_one_flat_group(toy):
    composer = Composer(paths.roots())
    assert composer.options("experiments") == [
        *("quickstart", "quickstart/dpo", "quickstart/ppo", "quickstart/reward", "quickstart/sft")
    ]
    assert [group for group in composer.groups() if group.startswith("experiments")] == ["experiments"]
    jobs = composer.expand(["experiments=glob(quickstart/*)", "seed=0,1"])
    assert len(jobs) == 8 and jobs[0] == ("experiments=quickstart/dpo", "seed=0")


def test_what_only_the_swept_options_have_waits_for_its_job(toy):
    """Hydra composes what is fixed before it chooses what is swept: adapter.rank is there in one of them alone."""
    composer = Composer(paths.roots())
    typed = ["experiments=quickstart/dpo,quickstart/sft", "adapter.rank=4", "+method.names=[a, b]", "seed=0,1"]
    said = composer.launchable(typed)
    assert said == [typed[0], "adapter.rank=choice(4)", "+method.names=choice([a, b])", typed[3]]
    assert composer.expand(said) == composer.expand(typed)
    fixed = ["experiments=quickstart/dpo", "adapter.rank=4,8", "method.loss.beta=0.3"]
    assert composer.launchable(fixed) == fixed  # nothing is chosen by the sweep: as typed
    quoted = ["adapter=none,lora", "name='it\\'s, really'"]
    assert composer.expand(composer.launchable(quoted)) == composer.expand(quoted)


def test_an_experiment_that_forgot_its_package_fails_loudly(toy):
    (toy.root / "experiments" / "lost.yaml").write_text("defaults: [{override /method: dpo}]\nseed: 3\n")
    with pytest.raises(ConfigError):
        Composer(paths.roots()).compose(["experiments=lost"])


def test_an_experiments_seed_stands(toy):
    (toy.root / "experiments" / "nine.yaml").write_text("# @package _global_\nseed: 9\n")
    assert Composer(paths.roots()).compose(["experiments=nine"]).cfg.seed == 9


def test_composing_needs_no_global_hydra_and_leaves_none(toy):
    Composer(paths.roots()).compose(["seed=1"])
    assert not GlobalHydra.instance().is_initialized()
