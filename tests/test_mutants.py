"""`docs/mutants.md` belongs to the present source: each seeded bug still fits, and was caught in this very code."""

from pathlib import Path

import pytest

from tests.mutants import table
from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Mutant
from tests.mutants.runner import Copy, Failure, Outcome

ROOT = Path(__file__).parents[1]
AGAIN = "run `python -m tests.mutants --stale`, which tries these again and writes the table"


def test_every_bug_still_fits_the_source():
    faults = []
    for mutant in MUTANTS:
        try:
            compile(mutant.applied((ROOT / mutant.path).read_text()), mutant.file, "exec")
            mutant.where(ROOT)
        except (OSError, ValueError, SyntaxError) as error:
            faults.append(str(error))
    assert not faults, "the source has changed: mend these in tests/mutants/\n" + "\n".join(faults)


def test_bugs_have_names_of_their_own_and_name_tests_that_exist():
    assert len({mutant.bug for mutant in MUTANTS}) == len(MUTANTS) >= 40
    named = {test.partition("::")[0] for mutant in MUTANTS for test in mutant.tests}
    assert all(mutant.tests and mutant.old != mutant.new for mutant in MUTANTS)
    assert not [file for file in named if not (ROOT / "tests" / file).is_file()]


def test_the_table_lists_exactly_these_bugs():
    assert [row.bug for row in table.read(ROOT)] == [mutant.bug for mutant in MUTANTS], AGAIN


def test_the_table_belongs_to_the_present_source():
    """The mutated function and the test that caught it are, but for comments, what they were."""
    changed = [f"{mutant.file}: {mutant.bug}" for mutant in table.stale(MUTANTS, ROOT)]
    assert not changed, f"{AGAIN}:\n" + "\n".join(changed)


def test_every_bug_is_caught():
    survivors = [row.bug for row in table.read(ROOT) if not row.test]
    assert not survivors, f"no test notices: {survivors}"
    assert f"**{len(MUTANTS)} of {len(MUTANTS)} caught.**" in (ROOT / table.PAGE).read_text(), AGAIN


# -- the machinery, on a package of one function -----------------------------------------------------------------------
SUMS = '''"""Sums."""


def total(x):
    """The sum of the positive ones."""
    # what is negative is left out
    return sum(part for part in x if part > 0)


def unused(x):
    return x
'''
TEST = """from alignlab.sums import total


def test_a_sum_by_hand():
    assert total([1, 2, -1]) == 3
"""
NOTICED = Mutant("negative ones counted", "sums.py", " if part > 0", "", ("test_sums.py",))
UNNOTICED = NOTICED._replace(bug="zeros counted", old="part > 0", new="part >= 0")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A package with one test."""
    root = tmp_path / "project"
    for path, text in (("src/alignlab/__init__.py", ""), ("src/alignlab/sums.py", SUMS), ("tests/test_sums.py", TEST)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_a_bug_is_caught_or_survives_in_a_copy_that_is_as_before_afterwards(project: Path):
    copy = Copy(project)
    try:
        caught, survived = copy.try_out(NOTICED), copy.try_out(UNNOTICED)
        assert caught.failure is not None and caught.failure.test == "test_sums.py::test_a_sum_by_hand"
        assert caught.was_foreseen and caught.where == "sums.py: total" and len(caught.digest) == 12
        assert survived.failure is None and survived.digest == ""
        assert (copy.root / "src/alignlab/sums.py").read_text() == SUMS
        assert copy.failures(["test_sums.py"]) == []
        with pytest.raises(RuntimeError, match=r"pytest ended with 2 on test_sums.py"):
            copy.try_out(NOTICED._replace(old="def total", new="def totals"))  # cannot even be imported: no bug at all
        assert (project / "src/alignlab/sums.py").read_text() == SUMS
    finally:
        copy.close()
    assert not copy.root.exists()


def test_a_digest_follows_the_function_the_change_and_the_test_and_nothing_else(project: Path):
    source, test = project / "src/alignlab/sums.py", project / "tests/test_sums.py"

    def digest(mutant: Mutant = NOTICED) -> str:
        return mutant.digest(project, "test_sums.py::test_a_sum_by_hand[some-parameter]")

    first = digest()
    source.write_text("import math\n" + SUMS.replace("    # what", "\n    # that").replace("return x", "return math.e"))
    source.write_text(source.read_text().replace("The sum of the positive ones.", "Their\n    sum.\n    "))
    test.write_text(TEST + "\n\ndef test_another():\n    pass\n")
    assert digest() == first
    assert digest(UNNOTICED) != first
    source.write_text(SUMS.replace("sum(", "math.fsum("))
    assert digest() != first
    source.write_text(SUMS)
    test.write_text(TEST.replace("== 3", "> 0"))
    assert digest() != first
    test.write_text(TEST.replace("by_hand", "anyhow"))
    with pytest.raises(KeyError):
        digest()


def test_a_text_that_is_there_twice_or_not_at_all_is_refused(project: Path):
    for old, times in (("sum", 2), ("product", 0)):
        with pytest.raises(ValueError, match=rf"src/alignlab/sums.py: 'negative ones counted' .* occurs {times} times"):
            NOTICED._replace(old=old).where(project)


def test_a_table_is_read_as_it_was_written_and_knows_what_is_stale(project: Path):
    (project / "docs").mkdir()
    test = "test_sums.py::test_a_sum_by_hand[a | b, c]"
    digest = NOTICED.digest(project, test)
    caught = Outcome(NOTICED, "sums.py: total", Failure(test, ""), digest, True, 1.0)
    message = "method.loss: DPOLoss(beta=0.1): per_pair: differs by 1"
    broken = Failure("contracts/test_every_loss.py::test_every_loss_keeps_its_contracts[method/loss=dpo]", message)
    others = [
        caught._replace(mutant=NOTICED._replace(bug="other"), failure=broken),
        Outcome(UNNOTICED, "sums.py: total", None, "", False, 1.0),
    ]
    rows = [table.Row.of(outcome) for outcome in (caught, *others)]
    assert [row.contract for row in rows] == ["", "per_pair", ""]
    table.write(rows, project)
    assert table.read(project) == rows
    assert "**2 of 3 caught.**" in (project / table.PAGE).read_text()
    assert list(table.stale([NOTICED, UNNOTICED, NOTICED._replace(bug="new")], project)) == [
        UNNOTICED,
        NOTICED._replace(bug="new"),
    ]
    (project / "src/alignlab/sums.py").write_text(SUMS.replace("sum(", "math.fsum("))
    assert list(table.stale([NOTICED], project)) == [NOTICED]
