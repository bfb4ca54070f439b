"""docs/methods.md says what the code does: generated regions are up to date, links lead somewhere, names exist."""

import importlib
import math
import re
from pathlib import Path
from typing import Any

import pytest

from alignlab.errors import DataError

REPO = Path(__file__).parents[1]
PAGE = (REPO / "docs" / "methods.md").read_text()
LOSSES = {path.stem for path in (REPO / "conf" / "method" / "loss").glob("*.yaml")}
METHODS = {path.stem for path in (REPO / "conf" / "method").glob("*.yaml")}
HEADER = "policy,method,share,share_low,share_high,regret,kl,time,seeds\n"


@pytest.fixture(scope="module")
def pages() -> Any:
    """The script docs/build_methods.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / "docs"))
        yield importlib.import_module("build_methods")


@pytest.fixture(scope="module")
def facts(pages: Any) -> Any:
    return importlib.import_module("methods_facts")


# -- the page as it is --------------------------------------------------------------------------------------------
def test_the_generated_regions_are_up_to_date(pages: Any):
    found = pages.differences(PAGE, pages.build(PAGE))
    assert not found, "docs/methods.md is behind the code; run make docs-methods\n" + "\n".join(found)


def test_every_option_has_a_section():
    headings = re.findall(r"^### `(method(?:/loss)?)=(\w+)`$", PAGE, re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert {name for group, name in headings if group == "method/loss"} == LOSSES
    assert {name for group, name in headings if group == "method"} == METHODS


def test_every_link_leads_to_what_it_names():
    """The file exists and defines the function, class or table; a line, if given, is its first one, give or take."""
    links = re.findall(r"\[`?([\w.]+)`?\]\(([^)]+)\)", PAGE)
    assert len(links) > 100
    headings = {re.sub(r"[^a-z0-9_]", "", line) for line in re.findall(r"^### (.*)$", PAGE, re.MULTILINE)}
    for name, target in links:
        path, _, anchor = target.partition("#")
        if not path:
            assert anchor in headings, target
            continue
        text = (REPO / "docs" / path).read_text()
        for part in name.split("."):
            assert re.search(rf"^ *(def|class) {part}\b|^{part}\b.* = ", text, re.MULTILINE), f"{name} is not in {path}"


def test_every_script_and_setting_that_the_page_names_exists():
    for option in re.findall(r"method/kl=(\w+)", PAGE):
        assert (REPO / "conf" / "method" / "kl" / f"{option}.yaml").exists()
    said = (REPO / "conf" / "method").rglob("*.yaml")
    keys = {key for path in said for key in re.findall(r"^ *(\w+):", path.read_text(), re.MULTILINE)}
    named = set(re.findall(r"`(normalize|labels|missing_eos_\w+|gae_lambda|margin|center|nll_per|per)\b", PAGE))
    assert len(named) > 6 and named <= keys
    assert (REPO / "experiments" / "exact").is_dir()
    assert "docs-methods:" in (REPO / "Makefile").read_text()


def test_the_list_of_losses_in_the_yaml_of_dpo_is_complete(facts: Any):
    head = (REPO / "conf" / "method" / "dpo.yaml").read_text().split("- loss:")[0]
    rows = re.findall(r"^  # .*?:  +(.*)$", head, re.MULTILINE)
    named = [word for row in rows for word in row.split(" (")[0].split(" | ")]
    losses = facts.options("method/loss")
    assert sorted(named) == sorted(o.name for o in losses if issubclass(o.target, facts.PreferenceLoss))


# -- what counts as a difference ----------------------------------------------------------------------------------
def test_lines_may_move_and_figures_may_round(pages: Any):
    assert pages.differences(PAGE, PAGE) == []
    moved = re.sub(r"#L(\d+)", lambda m: f"#L{int(m[1]) + 7}", PAGE)
    assert moved != PAGE and pages.differences(PAGE, moved) == []
    rounded = PAGE.replace("| 0.7454 |", "| 0.7451 |")
    assert rounded != PAGE and pages.differences(PAGE, rounded) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| 0.7454 |", "| 0.7854 |"),  # another optimum
        ("reaches", "0.0123"),
        ("return F.relu(1 - self.beta", "return F.relu(2 - self.beta"),  # another equation
        ("`beta: 0.1`", "`beta: 0.2`"),
        ("rlhf_under_flips | reaches", "- | reaches"),
        ("eq. 16 of Ji", "eq. 17 of Ji"),
        ("### `method/loss=exo`\n", ""),
    ],
)
def test_everything_else_may_not_differ(pages: Any, old: str, new: str):
    assert old in PAGE
    found = pages.differences(PAGE, PAGE.replace(old, new, 1))
    assert any(line.startswith("-") and not line.startswith("---") for line in found)


def test_only_regions_are_written(pages: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pages, "REGIONS", {"one": lambda scores: "new", "two": lambda scores: "newer"})
    page = "a\n<!-- generated: one -->\nold\n<!-- end -->\nb\n<!-- generated: two -->\n<!-- end -->\nc\n"
    expected = "a\n<!-- generated: one -->\nnew\n<!-- end -->\nb\n<!-- generated: two -->\nnewer\n<!-- end -->\nc\n"
    assert pages.build(page) == expected == pages.build(expected)


# -- where its parts come from ------------------------------------------------------------------------------------
def test_figures_of_a_policy_are_those_of_plain_sums(facts: Any):
    """The reference against both closed forms, by loops over the 40 responses."""
    world = facts.small_world()
    mu, rewards, beta = world.ref_logprobs.exp().tolist(), world.rewards.tolist(), 0.5
    assert len(mu) == 40 and world.beta == beta
    wins = [sum(m / (1 + math.exp(s - r)) for m, s in zip(mu, rewards)) for r in rewards]
    kls = []
    for value in (rewards, wins):
        weights = [m * math.exp(v / beta) for m, v in zip(mu, value)]
        kls.append(sum(m * math.log(m * sum(weights) / w) for m, w in zip(mu, weights)))
    at_start = facts.against_closed_forms(world.ref_logprobs, world)
    assert at_start[1:4] == pytest.approx([*kls, beta * kls[0]], rel=1e-9)  # regret = beta KL(pi || pi*)


def test_losses_are_solved_at_the_beta_of_the_world_unless_theirs_is_per_token(facts: Any):
    world, betas = facts.small_world(), {}
    for option in facts.options("method/loss"):
        if option.name in ("ipo", "simpo", "dpo_sft"):
            betas[option.name] = facts.aim(option.config, world)
    assert {name: found.beta for name, found in betas.items()} == {"ipo": 0.5, "simpo": 2.0, "dpo_sft": 0.5}
    assert betas["ipo"].to_ipo == pytest.approx(0.0, abs=1e-12) and betas["ipo"].rests
    hinge = {"_target_": "alignlab.losses.HingeLoss", "beta": 0.1}
    assert not facts.aim(hinge, world).rests


def test_quoted_code_has_no_docstring_and_no_assertions(facts: Any):
    def computed(x: int) -> int:
        """Twice."""
        assert x
        y = 2 * x  # why
        return (
            y
        )  # fmt: skip

    assert facts.body(computed) == "y = 2 * x  # why\nreturn (\n    y\n)  # fmt: skip"


def test_the_head_of_a_yaml_is_a_title_and_remarks(facts: Any):
    head = "# A title. \n# Loss: x +\n# y.\n# Convention: z, and\n# more.\n# alignlab a=b\ndefaults:\n# not this\n"
    assert facts.remarks(head) == ["A title.", "Loss: x + y.", "Convention: z, and more.", "alignlab a=b"]


# -- the leaderboard ----------------------------------------------------------------------------------------------
def test_without_a_leaderboard_there_is_no_column_for_it(facts: Any, pages: Any, tmp_path: Path):
    assert facts.read_scores(tmp_path / "none.csv") is None
    assert pages.with_share({"loss": "dpo"}, "dpo", None) == {"loss": "dpo"}


def test_scores_stand_beside_their_policy(facts: Any, pages: Any, tmp_path: Path):
    path = tmp_path / "scores.csv"
    path.write_text(HEADER + "dpo,dpo,0.9312,0.92,0.9401,0.01,1,2,3\nppo,ppo,0.5,,,0.1,1,2,1\n")
    scores = facts.read_scores(path)
    assert [facts.score(name, scores) for name in ("dpo", "ppo", "sft")] == ["93.1 [92.0, 94.0]", "50.0", "-"]
    rows = pages.unpaired({"kto": {"share": "0.25", "share_low": "", "share_high": ""}}).split("\n\n")[0].splitlines()
    assert [row.split(" | ")[-1] for row in rows] == ["share |", "--- |", "25.0 |", "- |"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("policy,share\ndpo,0.9\n", "no column share_high, share_low"),
        (HEADER + "dpo,a,1,,,,,,\ndpo,b,1,,,,,,\n", "two rows for one policy"),
    ],
)
def test_a_leaderboard_that_cannot_be_read_is_refused(facts: Any, tmp_path: Path, content: str, said: str):
    path = tmp_path / "scores.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        facts.read_scores(path)
