"""What a judge is: it says of two replies to one prompt which is the better one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from alignlab.rows import Prompt

FIRST, TIE, SECOND = 1.0, 0.5, 0.0
"""Values of a verdict: how much of a win the first reply has."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`value` is FIRST, SECOND or TIE, or None where the judge could not be understood.

    `why` is what stands behind it, ready for JSON: scores, or the judge's answers.
    """

    value: float | None
    why: dict[str, Any] = field(default_factory=dict)


class Judge(Protocol):
    """Compares replies in text."""

    @property
    def name(self) -> str:
        """What tells this judge from another, for people."""
        ...

    def compare(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Verdict]:
        """A verdict per prompt on `first[i]` against `second[i]`."""
        ...

    def figures(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """What verdicts of this judge say of the judge itself; may be empty."""
        ...
