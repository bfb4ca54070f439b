"""`docs/mutants.md`: which test caught which bug, and which code that was."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tests.mutants.mutant import Mutant
from tests.mutants.runner import Outcome

PAGE = Path("docs/mutants.md")
SURVIVED = "nothing"
_ROW = re.compile(
    r"\| (?P<bug>.+?) \| `(?P<where>.+?)` \| "
    r"(?:`(?P<test>.+?)`(?:, (?P<contract>.+?))? \| `(?P<digest>\w+)` \||nothing \|  \|)"
)
_HEAD = """# Seeded bugs

What would the tests let pass? Each line is an error of the kind that is made in this field. A script puts it into a
copy of the package, runs the tests that ought to notice, and writes down the first that failed.

**{caught} of {total} caught.**

```
make mutants                              # all of them, in about an hour on one core
python -m tests.mutants --stale           # those whose code or test has changed since
python -m tests.mutants -j 2 temperature  # those with a word in their name or file, two at a time
```

A test's name is that below `tests/`; where a loss broke one of its contracts (`alignlab check`), the contract stands
behind it. The last column is a digest of the mutated function, the change and the test, which CI compares with the
present source. It does not see what these call, so before a release all are tried anew. The changes themselves are in
`tests/mutants/`, most of them one line.

A bug that survives is a test that is missing: write it, then add the bug here, so that it stays noticed.
"""


class Row(NamedTuple):
    """One line of the table."""

    bug: str
    where: str
    test: str  # below tests/; empty: no test noticed
    contract: str  # that the loss broke; empty where the test is another one
    digest: str

    @classmethod
    def of(cls, outcome: Outcome) -> "Row":
        """The line of a mutant that was tried."""
        test, contract = ("", "") if outcome.failure is None else (outcome.failure.test, outcome.failure.contract)
        return cls(outcome.mutant.bug, outcome.where, test, contract, outcome.digest)

    def __str__(self) -> str:
        contract = f", {self.contract}" if self.contract else ""
        caught = f"`{self.test}`{contract} | `{self.digest}`" if self.test else f"{SURVIVED} | "
        return f"| {self.bug} | `{self.where}` | {caught} |"


def read(root: Path) -> list[Row]:
    """The rows of the table; none where there is no table yet."""
    page = root / PAGE
    found = _ROW.finditer(page.read_text()) if page.exists() else iter(())
    return [Row(*(match[name] or "" for name in Row._fields)) for match in found]


def write(rows: Sequence[Row], root: Path) -> None:
    """The page of these rows, by room."""
    caught = sum(bool(row.test) for row in rows)
    parts = [_HEAD.format(caught=caught, total=len(rows))]
    for room, own in groupby(rows, key=lambda row: row.where.split("/")[0].split(":")[0]):
        lines = "\n".join(map(str, own))
        parts.append(f"## {room}\n\n| bug | where | caught by | digest |\n|---|---|---|---|\n{lines}\n")
    (root / PAGE).write_text("\n".join(parts))


def stale(mutants: Sequence[Mutant], root: Path) -> Iterator[Mutant]:
    """The mutants that the table does not have, or has for other code than the present."""
    known = {row.bug: row for row in read(root)}
    return (mutant for mutant in mutants if not is_current(known.get(mutant.bug), mutant, root))


def is_current(row: Row | None, mutant: Mutant, root: Path) -> bool:
    """Whether a row is of this mutant, caught by a test that exists, in the code as it is."""
    if row is None or not row.test:
        return False
    try:
        return row.digest == mutant.digest(root, row.test) and row.where == mutant.where(root)
    except (KeyError, OSError):  # the test is gone
        return False
