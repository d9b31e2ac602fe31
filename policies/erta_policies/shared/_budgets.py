"""Budgets: what a request may cost, or how good it must be, in place of a threshold.

`PlanBudget` is the value; `BudgetedPlanner` and `BudgetedRecipe` are the bases of the policies that
have it as a field; `solve_setting` finds the threshold or interval that keeps a number of calls.
The file is long so that all that a policy needs for a budget is in one place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, ClassVar, Self

from erta_framework import Policy, Profile, SessionInfo
from erta_framework.budgets import (
    REMEDY,
    MeasuredFront,
    Planner,
    StepSchedule,
    count_asked_calls,
    find_planner,
    forecast,
    list_measured_units,
)
from erta_framework.errors import MissingProfileError, PolicyError, ProfileError, suggest

QUALITIES = {"high": 40.0, "medium": 35.0, "low": 30.0}
"""Names of qualities, and the least mean PSNR that each stands for, in dB; see `psnr`."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PlanBudget:
    """What a schedule is planned for; exactly one of the six is given.

    A plan is made once, before the request, and costs the same for every request. Planners make
    exactly so many calls; rules with a published threshold (`MagCache`, `TeaCacheSchedule`) come as
    close from below as a threshold can. The policy `Budget` is something else: a cap that a rule
    runs into while it decides.

    Attributes:
        calls: Network calls of each branch.
        speedup: Least number of steps for each network call; 2.0 computes half of the steps.
        psnr: Least mean PSNR in dB, as measured on calibration samples: to the full run, or to the
            exact solution if the profile was measured to that.
        seconds: Longest time of a request, as measured on this device.
        work: Most work of each branch, in network calls' worth of floating-point operations. A
            schedule of whole steps costs as many as it has calls; one of modules costs less in each
            call, see `At`.
        quality: `"high"`, `"medium"` or `"low"`: a `psnr` of 40, 35 or 30 dB.

    Raises:
        PolicyError: None or several are given, or a number is out of range.

    Example:
        >>> PlanBudget(speedup=2.0).calls_for(50)
        25
        >>> PlanBudget(quality="high").psnr
        40.0
    """

    calls: int | None = None
    speedup: float | None = None
    psnr: float | None = None
    seconds: float | None = None
    work: float | None = None
    quality: str | None = None

    def __post_init__(self) -> None:
        names = [f.name for f in fields(self)]
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise PolicyError(
                f"a budget got {' and '.join(given) or 'nothing'}; give exactly one of "
                f"{', '.join(names)}, as in budget={{calls: 20}}"
            )
        if self.quality is not None:
            object.__setattr__(self, "psnr", read_quality(self.quality))
            object.__setattr__(self, "quality", None)
            return
        amount = getattr(self, given[0])
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise PolicyError(f"a budget of {given[0]} {amount!r}: it must be a number")
        least = {"calls": 1, "speedup": 1.0, "work": 1.0}.get(given[0], 0.0)
        if not (least <= amount < math.inf) or amount == 0:
            raise PolicyError(
                f"a budget of {given[0]} {amount}: it must be finite and {spell_bound(least)}"
            )

    def __repr__(self) -> str:
        (given,) = (f.name for f in fields(self) if getattr(self, f.name) is not None)
        return f"PlanBudget({given}={getattr(self, given)!r})"

    @classmethod
    def of(cls, value: PlanBudget | Mapping[str, Any] | None) -> PlanBudget | None:
        """A budget from a mapping such as `{"calls": 20}`.

        Raises:
            PolicyError: Unknown keys, or not exactly one.
        """
        if value is None or isinstance(value, PlanBudget):
            return value
        names = [f.name for f in fields(cls)]
        for key in value:
            if key not in names:
                raise PolicyError(f"a budget has no {key!r}; {suggest(str(key), names)}")
        return cls(**value)

    @property
    def measured(self) -> bool:
        """Whether its number of calls follows from a measurement only."""
        return self.psnr is not None or self.seconds is not None

    def calls_for(
        self,
        num_steps: int,
        profile: Profile | None = None,
        predicted: Callable[[int], float] | None = None,
        unit: str = "",
    ) -> int:
        """Network calls of each branch.

        Args:
            num_steps: Steps of the schedule.
            profile: Holds the measured plans of a budget in dB or seconds.
            predicted: The planner's error for a number of calls; by default fewer calls are worse.
            unit: What that error is in, as in `StepSchedule.unit`.

        Raises:
            MissingProfileError: There is no profile that could hold measurements.
            ProfileError: It holds none, or the budget is out of reach.
        """
        asked = count_asked_calls(num_steps, calls=self.calls, speedup=self.speedup, work=self.work)
        if asked is not None:
            return asked
        front = self.front(profile, unit)
        if self.seconds is not None:
            return front.calls_for_seconds(self.seconds, num_steps)
        assert self.psnr is not None
        return front.calls_for_psnr(self.psnr, predicted or (lambda calls: 1.0 / calls))

    def front(self, profile: Profile | None, unit: str = "") -> MeasuredFront:
        """The measured plans of a profile that this budget is read from.

        Seconds are read from any, those of the same unit first: they follow from the calls.

        Raises:
            MissingProfileError: There is no profile.
            ProfileError: It holds none, or for a budget in dB none of this unit.
        """
        kind = "seconds" if self.seconds is not None else "psnr"
        if profile is None:
            raise MissingProfileError(
                f"a budget in {kind} needs a profile in which plans were measured, and this policy "
                "has no profile; give calls or speedup"
            )
        held = {name: MeasuredFront.of(profile, name) for name in list_measured_units(profile)}
        fronts = {name: front for name, front in held.items() if front is not None}
        if self.seconds is not None:
            fronts = {name: front for name, front in fronts.items() if front.timed}
        if unit in fronts:
            return fronts[unit]
        if self.seconds is not None and fronts:
            return next(iter(fronts.values()))
        if self.seconds is not None:
            raise ProfileError(
                f"a budget in seconds needs plans that were timed on this device, and {profile!r} "
                f"holds none; {REMEDY} here, or give calls or speedup"
            )
        known = f"only those of {' and '.join(fronts)}" if fronts else "none"
        raise ProfileError(
            f"a budget in psnr needs plans that were measured with {unit}, and {profile!r} holds "
            f"{known}; {REMEDY}, or give calls or speedup"
        )


BudgetLike = PlanBudget | Mapping[str, Any] | None
"""How a policy takes a budget: as a `PlanBudget`, or as a configuration writes it."""


class BudgetedPlanner(Policy, Planner):
    """Base of policies that take a budget in place of a setting.

    A subclass lists in `solved_fields` the settings that a budget replaces, calls
    `_settle_budget` in `__post_init__`, and gets its number of calls from `_calls_for`.

    Source: ours.

    Attributes:
        budget: One of `calls`, `speedup`, `work`, `psnr` and `seconds`.
    """

    solved_fields: ClassVar[tuple[str, ...]] = ()
    exact: ClassVar[bool] = True
    """Whether it makes exactly as many network calls as it is asked for, not just at most."""

    budget: BudgetLike = None

    @property
    def unit(self) -> str:
        """What its predicted errors are in; plans that were measured hold for the same unit."""
        return self.name

    def with_calls(self, calls: int) -> Self | None:
        """The same policy with a budget of so many network calls."""
        return replace(self, budget=PlanBudget(calls=calls), **dict.fromkeys(self.solved_fields))

    def with_budget(self, budget: Mapping[str, Any]) -> Self:
        """The same policy with this budget, such as `{"speedup": 2.0}`.

        Raises:
            PolicyError: It is no budget.
        """
        asked = PlanBudget.of(budget)
        return replace(self, budget=asked, **dict.fromkeys(self.solved_fields))

    def _settle_budget(self) -> None:
        """Read a written budget, and refuse it beside a setting that it stands for.

        Raises:
            PolicyError: The budget is none, or a setting that it solves for is given too.
        """
        object.__setattr__(self, "budget", PlanBudget.of(self.budget))
        given = [name for name in self.solved_fields if getattr(self, name) is not None]
        if self.budget is not None and given:
            name = given[0]
            raise PolicyError(
                f"{type(self).__name__} got {name}={getattr(self, name)} and budget={self.budget}; "
                f"a budget solves for {name}, give one of the two"
            )

    def _calls_for(
        self,
        num_steps: int,
        profile: Profile | None = None,
        predicted: Callable[[int], float] | None = None,
    ) -> int | None:
        """Network calls of the budget, None without one; see `PlanBudget.calls_for`."""
        budget = PlanBudget.of(self.budget)
        return (
            None if budget is None else budget.calls_for(num_steps, profile, predicted, self.unit)
        )

    def _require_device(self, profile: Profile | None, session: SessionInfo) -> None:
        """Refuse a budget in seconds that was measured elsewhere.

        Raises:
            ProfileError: Another device, or another number of samples.
        """
        budget = PlanBudget.of(self.budget)
        if budget is not None and budget.seconds is not None:
            budget.front(profile, self.unit).require_device(session)


class BudgetedRecipe(BudgetedPlanner):
    """Base of recipes whose schedule takes a budget: one of their parts plans for them.

    Source: ours.

    Attributes:
        budget: One of `calls`, `speedup`, `work`, `psnr` and `seconds`, for the part that plans.
    """

    def plan(self, num_steps: int) -> StepSchedule:
        """The schedule of the part that plans.

        Raises:
            PolicyError: No part plans ahead.
        """
        return forecast(self.parts(), num_steps)

    def schedules(self, num_steps: int) -> Mapping[int, StepSchedule]:
        """The schedules of the part that plans, by number of calls; none if no part does."""
        planner = find_planner(self.parts())
        return {} if planner is None else planner.schedules(num_steps)


def read_quality(name: object) -> float:
    """The least mean PSNR of a named quality, in dB.

    Raises:
        PolicyError: There is no such quality.

    Example:
        >>> read_quality("high")
        40.0
    """
    if not isinstance(name, str) or name not in QUALITIES:
        raise PolicyError(f"there is no quality {name!r}; {suggest(str(name), QUALITIES)}")
    return QUALITIES[name]


def solve_setting(
    candidates: Iterable[float], count: Callable[[float], float], calls: float, owner: str
) -> float:
    """The value of a setting whose schedule comes closest to `calls` without exceeding them.

    Calls need not fall as the value grows, so every candidate is counted. Of several that take as
    many calls, the smallest is returned.

    Args:
        candidates: One value for every schedule there can be.
        count: Network calls at a value, or work in network calls.
        calls: Most calls.
        owner: Name of the policy, for the message.

    Raises:
        ProfileError: Every value takes more.

    Example:
        >>> solve_setting([1, 2, 3, 4], lambda interval: int(12 / interval), calls=5, owner="x")
        3
    """
    counts = {value: count(value) for value in sorted(set(candidates))}
    fitting = {value: number for value, number in counts.items() if number <= calls}
    if not fitting:
        raise ProfileError(
            f"{owner} cannot be scheduled in {calls:.4g} network calls: at least "
            f"{min(counts.values()):.4g} are forced by its other settings; relax those, or ask "
            "for more"
        )
    most = max(fitting.values())
    return min(value for value, number in fitting.items() if number == most)


def list_thresholds(values: Iterable[float]) -> list[float]:
    """A threshold below, between and above all of the values, rising.

    Example:
        >>> list_thresholds([1.0, 3.0])[:2]
        [0.0, 2.0]
    """
    known = sorted({value for value in values if math.isfinite(value)})
    middles = [(low + high) / 2 for low, high in pairwise(known)]
    return [0.0, *middles, known[-1] * 1.01 + 1e-12] if known else [0.0]


def spell_bound(least: float) -> str:
    """A lower bound in words."""
    return f"at least {least:g}" if least else "above 0"
