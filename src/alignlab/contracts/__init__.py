"""What every loss promises, as small functions that measure it: `check(loss)` runs those that fit its kind."""

from alignlab.contracts.catalogue import Contract, Outcome, check, contracts_of
from alignlab.contracts.finding import Finding, Violation

__all__ = ["Contract", "Finding", "Outcome", "Violation", "check", "contracts_of"]
