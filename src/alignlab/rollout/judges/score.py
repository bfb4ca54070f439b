"""A reward as a judge: the reply with the higher score is the better one."""

from collections.abc import Sequence

import torch

from alignlab.errors import ConfigError
from alignlab.rollout.judges.verdict import FIRST, SECOND, TIE, Verdict
from alignlab.rollout.scoring import Reward, checked_scores
from alignlab.rows import Prompt


class ScoreJudge:
    """Prefers the higher of two scores; a tie where they are at most `tolerance` apart (in the reward's own unit)."""

    def __init__(self, reward: Reward, *, tolerance: float = 0.0) -> None:
        """ConfigError for a tolerance below 0 or none at all."""
        if not tolerance >= 0:
            raise ConfigError(f"evaluation.judge.tolerance={tolerance}: expected 0 or more, in units of the reward")
        self.reward, self.tolerance = reward, tolerance

    @property
    def name(self) -> str:
        """The reward's class, and the folder of its model where it has one."""
        path = getattr(self.reward, "path", None)
        return type(self.reward).__name__ + (f" {path}" if path else "")

    def compare(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Verdict]:
        """A verdict per prompt; `why` has both scores. Scores that are not finite are refused by `checked_scores`."""
        scores = [checked_scores(self.reward, prompts, replies).tolist() for replies in (first, second)]
        return [Verdict(self._value(one, other), {"scores": [one, other]}) for one, other in zip(*scores)]

    def figures(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """None: a score does not depend on which reply is read first."""
        return {}

    def to(self, device: torch.device | str) -> "ScoreJudge":
        """Moves a reward that has weights."""
        if hasattr(self.reward, "to"):
            self.reward.to(device)  # pyright: ignore[reportFunctionMemberAccess]
        return self

    def _value(self, one: float, other: float) -> float:
        if abs(one - other) <= self.tolerance:
            return TIE
        return FIRST if one > other else SECOND
