"""Every loss that conf/ has keeps its contracts, with the settings of its yaml. New yamls are found by themselves."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from alignlab.app.commands.check import losses_of, with_method
from alignlab.app.configs.paths import roots
from alignlab.app.planning.targets import Planner
from alignlab.contracts import Outcome, check

CONF = Path(__file__).parents[2] / "conf"
PAIRWISE = sorted(f"method/loss={path.stem}" for path in (CONF / "method" / "loss").glob("*.yaml"))
METHODS = sorted(f"method={path.stem}" for path in (CONF / "method").glob("*.yaml"))


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(roots())


@pytest.fixture(scope="module")
def checked() -> dict[str, Sequence[Outcome]]:
    """What became of each loss: several methods share one."""
    return {}


@pytest.mark.parametrize("option", [*PAIRWISE, *METHODS])
def test_every_loss_keeps_its_contracts(option: str, planner: Planner, checked: dict[str, Sequence[Outcome]]):
    target = planner.target(with_method(planner, [option]))
    broken = []
    for named in losses_of(target):
        outcomes = checked[named.described] = checked.get(named.described) or check(named.loss)
        assert all(outcome.findings for outcome in outcomes), "a contract that measured nothing"
        broken += [f"{named.described}: {violation}" for outcome in outcomes for violation in outcome.violations]
    assert not broken, "\n".join(broken)


def test_the_catalogue_is_not_empty():
    assert {"method/loss=dpo", "method/loss=ipo", "method/loss=kto"} <= set(PAIRWISE)
    assert {"method=sft", "method=reward", "method=ppo"} <= set(METHODS)
