"""`GrowingWindow`: computed steps that get rarer as the run goes on."""

from __future__ import annotations

import math
from typing import ClassVar

from erta_framework.errors import PolicyError
from erta_policies.shared import BudgetedPlanner, FixedSchedule, solve_setting

DEFAULT_GROWTH = 0.75
PLACES = 3
"""Decimals to which the released code rounds the window."""


class GrowingWindow(BudgetedPlanner, FixedSchedule):
    """Computes the first steps, and then one in a window that grows at each computed step.

    After the first steps, a step is computed if one more than the number of reused steps since the
    last computed one is a multiple of the window, rounded down. Then the window grows by `growth`.

    Source: Spectrum, arXiv 2603.01623, appendix B.1, as in its code (hanjq17/Spectrum at f7b7841,
    `pipelines/wan_forward.py`). There each guidance branch has counters of its own, which agree;
    the budget is ours.

    Attributes:
        growth: alpha; 0.75 unless a budget is given.
        budget: Instead of `growth`: `calls` or `speedup`. The growth that comes closest from below,
            so that no growth, with one step in `window`, is the most.
        window: N, the first window.
        first: Steps at the start that are computed.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> GrowingWindow(growth=1.5).plan(50).computed
        (0, 1, 2, 3, 4, 6, 9, 14, 20, 28, 37, 48)
    """

    solved_fields: ClassVar[tuple[str, ...]] = ("growth",)
    exact: ClassVar[bool] = False

    growth: float | None = None
    window: float = 2.0
    first: int = 5

    def __post_init__(self) -> None:
        self._settle_budget()
        if self.growth is not None and not 0.0 <= self.growth < math.inf:
            raise PolicyError(f"growth of GrowingWindow is {self.growth}, it must be at least 0")
        if not 1.0 <= self.window < math.inf or self.first < 1:
            raise PolicyError(
                f"GrowingWindow has window {self.window} and first {self.first}; both must be at "
                "least 1"
            )

    def computed_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps that the rule computes.

        Raises:
            ProfileError: No growth keeps the budget.
        """
        calls = self._calls_for(num_steps)
        growth = DEFAULT_GROWTH if self.growth is None else self.growth
        if calls is not None:
            growth = solve_setting(
                # of a hundredth each up to where the first window ends the run
                [k / 100 for k in range(100 * num_steps + 1)],
                lambda value: len(self._walk(value, num_steps)),
                calls,
                repr(self),
            )
        return self._walk(growth, num_steps)

    def _walk(self, growth: float, num_steps: int) -> tuple[int, ...]:
        computed, reused, window = list(range(min(self.first, num_steps))), 0, self.window
        for index in range(self.first, num_steps):
            if (reused + 1) % math.floor(window) == 0:
                computed.append(index)
                window, reused = round(window + growth, PLACES), 0
            else:
                reused += 1
        return tuple(computed)
