"""`Search`: how strict the calibration is, found from the work that its table leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from erta_framework.errors import PolicyError


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Where the search for the scale of the tolerance stands.

    The work falls as the scale grows, step by step and not quite steadily, because each scale has
    trajectories of its own. So the best scale so far is remembered.

    Attributes:
        scale: The scale of this round: the relative error that is tolerated at the last step.
        low: A scale that leaves too much work.
        high: A scale that leaves too little; None before one was found.
        best: The best scale so far.
        gap: How far its work is from what was asked for; None before a round.
        rounds: Rounds before this one.

    Raises:
        PolicyError: A scale is not above 0.
    """

    scale: float = 0.05
    low: float = 0.0
    high: float | None = None
    best: float = 0.05
    gap: float | None = None
    rounds: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.scale < math.inf:
            raise PolicyError(f"the scale of the tolerance is {self.scale}, it must be above 0")

    def narrow(self, found: float, wanted: float) -> Self:
        """The search after a round whose table leaves this work.

        Example:
            >>> Search().narrow(0.9, 0.5).scale
            0.2
        """
        gap, scale = abs(found - wanted), self.scale
        low, high = (scale, self.high) if found > wanted else (self.low, scale)
        following = 4.0 * low
        if high is not None:
            following = math.sqrt(low * high) if low else high / 4.0
        better = self.gap is None or gap < self.gap
        return replace(
            self,
            scale=following,
            low=low,
            high=high,
            best=scale if better else self.best,
            gap=gap if better else self.gap,
            rounds=self.rounds + 1,
        )
