"""`CenteredSteps`: DeepCache's non-uniform 1:N schedule, denser around one step."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np

from erta_framework.errors import PolicyError
from erta_policies.shared import BudgetedPlanner, FixedSchedule, PlanBudget

Formula = Literal["release", "signed"]
LOWERING = 0.02
"""How much the released search lowers the power at each attempt."""


class CenteredSteps(BudgetedPlanner, FixedSchedule):
    """Computes one step in `interval`, denser around the step `center`.

    With T steps, N for `interval`, c for `center` and p for `power`, n = ceil(T / N) steps are
    computed: x runs evenly from -c^(1/p) to (T - c)^(1/p), and each x gives the step
    sign(x) |x|^p + c. The first of them is replaced by 0, and the last one is left out. While two
    fall on one step, p is lowered by 0.02.

    The released code raises negative numbers to fractional powers. It works on with the complex
    results and cuts their real parts off, so its early steps are not those of the formula.
    `release` gives its steps, `signed` those of the formula.

    Source: DeepCache, arXiv 2312.00858, section 3.3 (non-uniform 1:N); `sample_from_quad_center` of
    horseee/DeepCache at 1691a3ab. Its scripts for Stable Diffusion take N = 5, c = 15, p = 1.4.

    Attributes:
        interval: N, at least 1; 1 computes every step. 5 unless a budget is given.
        budget: Instead of `interval`: `calls` or `speedup`, which give n.
        center: c. 0 gives the one-sided form of the release's scripts for latent diffusion.
        power: p, above 1; higher is denser around the center.
        formula: Whose steps.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> CenteredSteps(interval=10).plan(50).computed
        (0, 9, 17, 26, 37)
    """

    solved_fields: ClassVar[tuple[str, ...]] = ("interval",)

    interval: int | None = None
    center: int = 15
    power: float = 1.4
    formula: Formula = "release"

    def __post_init__(self) -> None:
        self._settle_budget()
        low = self.interval is not None and self.interval < 1
        if low or self.center < 0 or not 1.0 < self.power < math.inf:
            raise PolicyError(
                f"CenteredSteps has interval {self.interval}, center {self.center} and power "
                f"{self.power}; they must be at least 1, at least 0, and above 1"
            )
        budget = PlanBudget.of(self.budget)
        if budget is not None and budget.measured:
            budget.front(None)  # says that there is no profile

    def computed_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps that the rule computes.

        Raises:
            PolicyError: There are no such steps for this number of steps.
        """
        calls = self._calls_for(num_steps)
        if calls is None:
            calls = -(-num_steps // (5 if self.interval is None else self.interval))
        return center_steps(num_steps, calls, self.center, self.power, self.formula)


def center_steps(
    num_steps: int, count: int, center: int, power: float, formula: Formula = "release"
) -> tuple[int, ...]:
    """So many of `num_steps` steps, denser around `center`; see `CenteredSteps`.

    Raises:
        PolicyError: The center is no step, or two steps coincide for every power above 1.

    Example:
        >>> center_steps(50, 10, 15, 1.4, "signed")
        (0, 6, 11, 14, 15, 19, 24, 29, 35, 42)
    """
    if count == num_steps:
        return tuple(range(num_steps))
    if center >= num_steps:
        raise PolicyError(
            f"centered steps have center {center}, but there are {num_steps} steps; give a step"
        )
    tried = power
    while tried > 1:
        nodes = np.unique(place_nodes(num_steps, count, center, tried, formula))
        steps = (0, *(int(node) + center for node in nodes[1:-1]))
        if len(steps) == count:
            return steps
        tried -= LOWERING
    raise PolicyError(
        f"no {count} of {num_steps} steps lie around step {center} with a power from {power} down "
        "to 1; give another center, a higher interval, or an even schedule"
    )


def place_nodes(
    num_steps: int, count: int, center: int, power: float, formula: Formula
) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """The `count + 1` steps relative to `center`, cut off towards 0."""
    if formula == "release":
        bounds = (-center) ** (1 / power), (num_steps - center) ** (1 / power)
        found = np.real(np.linspace(*bounds, count + 1) ** power)
    else:
        low, high = -(center ** (1 / power)), (num_steps - center) ** (1 / power)
        spaced = np.linspace(low, high, count + 1)
        found = np.sign(spaced) * np.abs(spaced) ** power
    return found.astype(np.int32)
