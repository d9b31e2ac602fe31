"""`RefreshInterval`: one computed step every so many, as published codes count, or evenly."""

from __future__ import annotations

from typing import ClassVar, Literal

from erta_framework import SessionInfo
from erta_framework.errors import PolicyError
from erta_policies.shared import BudgetedPlanner, FixedSchedule, PlanBudget, solve_setting

Counting = Literal["release", "diffusers", "cache-dit", "fora", "even"]


class RefreshInterval(BudgetedPlanner, FixedSchedule):
    """Computes the first steps and then every `interval`-th, counted as a published code does.

    With n for `interval` and f for `first`, step i is computed if i < f or

    * `release` (TaylorSeer): n - 1 forecasts have been made: (i - f + 1) mod n is 0;
    * `cache-dit`: the same steps;
    * `diffusers` (`TaylorSeerCacheConfig`): (i - f - 1) mod n is 0, so that one forecast comes
      right after the first steps;
    * `fora`: (T - 1 - i) mod n is 0 with T steps, since FORA's index counts down; the last step is
      computed;
    * `even`: the same steps. A budget is always spread evenly from the first steps to the last
      step, to the nearest step, as uniform caching is, and `SkipPolicy(evenly=...)`.

    The last step is computed where the rule says so; list `last_step` before it to force it.

    Source: the published code of TaylorSeer (Shenyi-Z/TaylorSeer at 288776df), diffusers,
    cache-dit and FORA (prathebaselva/FORA at acde628e).

    Attributes:
        interval: n; 5 unless a budget is given.
        budget: Instead of `interval`: `calls` or `speedup`, met exactly. Where no whole interval
            makes so many calls, the steps after the first f are spread evenly, which is ours,
            rounded down.
        first: f, at least 1.
        counting: Whose count.

    Raises:
        PolicyError: The interval or the number of first steps is less than 1.

    Example:
        >>> RefreshInterval(interval=6, first=3).plan(20).computed
        (0, 1, 2, 8, 14)
    """

    solved_fields: ClassVar[tuple[str, ...]] = ("interval",)

    interval: int | None = None
    first: int = 3
    counting: Counting = "release"

    def __post_init__(self) -> None:
        self._settle_budget()
        if (self.interval is not None and self.interval < 1) or self.first < 1:
            raise PolicyError(
                f"RefreshInterval has interval {self.interval} and first {self.first}; both must "
                "be at least 1"
            )
        budget = PlanBudget.of(self.budget)
        if budget is not None and budget.measured:
            budget.front(None)  # says that there is no profile

    def computed_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps that the rule computes.

        Raises:
            ProfileError: No interval keeps the budget.
        """
        calls = self._calls_for(num_steps)
        if calls is None:
            return self._every(5 if self.interval is None else self.interval, num_steps)
        interval = solve_setting(
            range(1, num_steps + 1),
            lambda n: len({0, *self._every(int(n), num_steps)}),
            calls,
            repr(self),
        )
        steps = self._every(int(interval), num_steps)
        whole = self.counting != "even" and len({0, *steps}) == calls
        return steps if whole else self._spread(calls, num_steps)

    def _spread(self, calls: int, num_steps: int) -> tuple[int, ...]:
        """So many steps by the rule with an interval that is no whole number.

        The first f steps are computed; the k-th of the n others follows at k intervals, rounded
        down, from where the count of the rule begins; to the nearest step where it is `even`.
        """
        forced, others = range(min(self.first, num_steps)), calls - min(self.first, num_steps)
        if self.counting == "diffusers":
            left = num_steps - self.first - 1
            places = [self.first + 1 + k * left // others for k in range(others)]
        elif self.counting == "fora":
            left = num_steps - self.first
            places = [num_steps - 1 - k * left // others for k in range(others)]
        elif self.counting == "even":
            left = num_steps - self.first
            places = [self.first - 1 + round(k * left / others) for k in range(1, others + 1)]
        else:
            left = num_steps - self.first + 1
            places = [self.first - 1 + k * left // (others + 1) for k in range(1, others + 1)]
        return tuple(sorted({*forced, *places}))

    def steps_of(self, session: SessionInfo) -> tuple[int, ...]:
        """The computed steps of a run; one that starts later (img2img) is counted from there."""
        run = self.computed_steps(session.num_steps - session.first)
        return tuple(session.first + step for step in run)

    def _every(self, interval: int, num_steps: int) -> tuple[int, ...]:
        origin = {
            "release": self.first - 1,
            "cache-dit": self.first - 1,
            "diffusers": self.first + 1,
            "fora": num_steps - 1,
            "even": num_steps - 1,
        }[self.counting]
        return tuple(
            index
            for index in range(num_steps)
            if index < self.first or (index - origin) % interval == 0
        )
