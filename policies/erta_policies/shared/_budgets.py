"""`PlanBudget`: what a request may cost, or how good it must be, instead of a threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from erta_framework import Policy, Profile, SessionInfo
from erta_framework.budgets import REMEDY, MeasuredFront, measured_units, unit_of
from erta_framework.errors import PolicyError, ProfileError, suggest


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanBudget:
    """What a schedule is planned for; exactly one of the four is given.

    A plan is made once, before the request, and costs the same for every request. The policy
    `Budget` is something else: a cap that a rule runs into while it decides.

    Attributes:
        calls: Most network calls of each branch.
        speedup: Least number of steps for each network call; 2.0 computes half of the steps.
        psnr: Least mean PSNR against the full run, in dB, as measured on calibration samples.
        seconds: Longest time of a request, as measured on this device.

    Raises:
        PolicyError: None or several are given, or a number is out of range.

    Example:
        >>> PlanBudget(speedup=2.0).calls_for(50)
        25
    """

    calls: int | None = None
    speedup: float | None = None
    psnr: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        names = [f.name for f in fields(self)]
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise PolicyError(
                f"a budget got {' and '.join(given) or 'nothing'}; give exactly one of "
                f"{', '.join(names)}, as in budget={{calls: 20}}"
            )
        amount = getattr(self, given[0])
        least = {"calls": 1, "speedup": 1.0}.get(given[0], 0.0)
        if not (least <= amount < math.inf) or amount == 0:
            raise PolicyError(
                f"a budget of {given[0]} {amount}: it must be finite and {said(least)}"
            )

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
        """Whether it takes a measurement to say how many calls it is."""
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
            unit: What that error is in, see `erta_framework.budgets.unit_of`.

        Raises:
            PolicyError: There is no profile that could hold measurements.
            ProfileError: It holds none, or the budget is out of reach.
        """
        if self.calls is not None:
            return min(self.calls, num_steps)
        if self.speedup is not None:
            return math.floor(num_steps / self.speedup + 1e-9)
        front = self.front(profile, unit)
        if self.seconds is not None:
            return front.calls_for_seconds(self.seconds, num_steps)
        assert self.psnr is not None
        return front.calls_for_psnr(self.psnr, predicted or (lambda calls: 1.0 / calls))

    def front(self, profile: Profile | None, unit: str = "") -> MeasuredFront:
        """The measured plans of a profile that this budget is read from.

        Seconds are read from any, those of the same unit first: they follow from the calls.

        Raises:
            PolicyError: There is no profile.
            ProfileError: It holds none, or for a budget in dB none of this unit.
        """
        kind = "seconds" if self.seconds is not None else "psnr"
        if profile is None:
            raise PolicyError(
                f"a budget in {kind} needs a profile in which plans were measured, and this policy "
                "has no profile; give calls or speedup"
            )
        held = {name: MeasuredFront.of(profile, name) for name in measured_units(profile)}
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


Budgeted = PlanBudget | Mapping[str, Any] | None
"""How policies take a budget: finished, or as it is written in a configuration."""


def settle(policy: Policy) -> None:
    """Put a finished budget in the place of a written one, when a policy is made."""
    object.__setattr__(policy, "budget", PlanBudget.of(getattr(policy, "budget")))  # noqa: B009


def budget_of(policy: Policy) -> PlanBudget | None:
    """The budget of a policy that was settled."""
    found = getattr(policy, "budget", None)
    assert found is None or isinstance(found, PlanBudget)
    return found


def require_device(policy: Policy, profile: Profile | None, session: SessionInfo) -> None:
    """Refuse a budget in seconds that was measured elsewhere.

    Raises:
        ProfileError: Another device, or another number of samples.
    """
    budget = budget_of(policy)
    if budget is not None and budget.seconds is not None:
        budget.front(profile, unit_of(policy)).require_device(session)


def solved(
    candidates: Iterable[float], count: Callable[[float], int], calls: int, owner: str
) -> float:
    """The threshold whose schedule comes closest to `calls` without exceeding them.

    Args:
        candidates: One threshold for every schedule there can be.
        count: Network calls at a threshold.
        calls: Most calls.
        owner: Who asks, for the message.

    Raises:
        ProfileError: Every threshold takes more.
    """
    counts = {value: count(value) for value in sorted(set(candidates))}
    fitting = {value: number for value, number in counts.items() if number <= calls}
    if not fitting:
        raise ProfileError(
            f"{owner} cannot be scheduled in {calls} network calls: at least "
            f"{min(counts.values())} are forced by its other settings; relax those, or ask for more"
        )
    most = max(fitting.values())
    return min(value for value, number in fitting.items() if number == most)


def between(values: Iterable[float]) -> list[float]:
    """A threshold below, between and above all of the values, rising."""
    known = sorted({value for value in values if math.isfinite(value)})
    middles = [(low + high) / 2 for low, high in pairwise(known)]
    return [0.0, *middles, known[-1] * 1.01 + 1e-12] if known else [0.0]


def said(least: float) -> str:
    """A lower bound in words."""
    return f"at least {least:g}" if least else "above 0"
