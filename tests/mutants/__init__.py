"""Bugs that are put into a copy of the package one by one, and the tests that notice them.

A framework is trusted for what its tests would not let pass. Each mutant here is an error that somebody has really made
in code of this kind: a shift, a sign, a denominator, a mask. `make mutants` applies each to a copy of the package, runs
the tests that ought to fail, and writes down which one did, in `docs/mutants.md`.

To add one: append a `Mutant` to the list of its room, run `python -m tests.mutants <words of its name>`.
"""
