"""`python -m tests.mutants`: try the seeded bugs and write the table."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Mutant
from tests.mutants.runner import Copy, Outcome
from tests.mutants.table import PAGE, Row, read, stale, write

ROOT = Path(__file__).parents[2]


def main() -> int:
    """0 where every bug that was tried was caught, by a test that passes without it."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only mutants that have all these words in their name or file")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="mutants tried at a time, each in a copy of its own")
    parser.add_argument(
        "--stale", action="store_true", help="only those whose code or test has changed since the table"
    )
    asked = parser.parse_args()
    mutants = list(stale(MUTANTS, ROOT)) if asked.stale else MUTANTS
    mutants = [m for m in mutants if all(word in f"{m.file} {m.bug}" for word in asked.words)]
    copies = [Copy(ROOT) for _ in range(max(1, min(asked.jobs, len(mutants))))]
    tried: list[Outcome] = []
    try:
        for outcome in _outcomes(mutants, copies):
            tried.append(outcome)
            print(f"{len(tried):3}/{len(mutants)} {_told(outcome)}", flush=True)
    finally:  # an hour's work is kept whatever ends it
        unsound = _fail_anyway(tried, copies[0])
        for copy in copies:
            copy.close()
        rows = {row.bug: row for row in read(ROOT)}
        rows |= {row.bug: row for row in map(Row.of, tried) if row.test not in unsound}
        write([rows[mutant.bug] for mutant in MUTANTS if mutant.bug in rows], ROOT)
    caught = sum(outcome.failure is not None for outcome in tried)
    print(f"{caught} of {len(tried)} caught; {PAGE} is written")
    if unsound:
        print("These tests fail without any bug, so what they caught is left out:", *unsound, sep="\n  ")
    return 0 if caught == len(tried) and not unsound else 1


def _outcomes(mutants: Sequence[Mutant], copies: Sequence[Copy]) -> Iterator[Outcome]:
    """What became of each mutant, in order; as many at a time as there are copies."""
    free: SimpleQueue[Copy] = SimpleQueue()
    for copy in copies:
        free.put(copy)

    def try_out(mutant: Mutant) -> Outcome:
        copy = free.get()
        try:
            return copy.try_out(mutant)
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as pool:
        yield from pool.map(try_out, mutants)


def _fail_anyway(tried: Sequence[Outcome], copy: Copy) -> list[str]:
    """The tests among those that caught something which fail on the package as it is."""
    caught = sorted({outcome.failure.test for outcome in tried if outcome.failure is not None})
    return [failure.test for failure in copy.failures(caught, only_first=False)] if caught else []


def _told(outcome: Outcome) -> str:
    how = f"{outcome.seconds:5.0f} s  {outcome.mutant.file}: {outcome.mutant.bug}"
    if outcome.failure is None:
        return f"SURVIVED {how}"
    hint = "" if outcome.was_foreseen else " (not among the tests that the mutant names)"
    contract = f" [{outcome.failure.contract}]" if outcome.failure.contract else ""
    return f"caught   {how}\n{'':18}{outcome.failure.test}{contract}{hint}"


if __name__ == "__main__":
    sys.exit(main())
