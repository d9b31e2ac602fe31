"""`MultistepSchedule`: computed steps for predictors that combine several earlier outputs."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from erta_framework import Profile, Profiler, SessionInfo, hookimpl
from erta_framework.budgets import StepSchedule
from erta_framework.errors import PolicyError, ProfileError
from erta_policies.ertacache import KIND, Signal, spread_evenly
from erta_policies.planning._combinations import CombinationErrors, search_shifts
from erta_policies.planning._plans import plan_all_calls, take_within
from erta_policies.shared import (
    BudgetedPlanner,
    FixedSchedule,
    PlanBudget,
    load_profile,
    require_match,
)


class MultistepSchedule(BudgetedPlanner, FixedSchedule):
    """Computes the steps after which combinations of the last few outputs err least.

    `FittedVelocity` and a `Forecaster` of higher order combine several computed steps, so no cost
    of single edges prices a schedule for them. Here every reused step is charged the error of the
    best combination, with weights that add up to 1, of the `depth` newest computed velocities, on
    the calibrated full run. Errors between two computed steps add up, those of different gaps add
    up as squares, and a gap that starts at the share s of the noise counts
    `exp(growth * s / s_max)` times: an early error grows until the end. For flows s is sigma; where
    sigma is the ratio of noise and clean part, s is `sigma / (1 + sigma)`. A search moves one
    computed step at a time, from an even schedule and from two planned ones, until no move helps.

    Source: ours.

    Attributes:
        profile: File or profile of a `ResidualProfiler`.
        budget: `calls`, `speedup` or `work`.
        depth: How many computed velocities a reused step combines.
        growth: How much more an error counts in the noisiest step than at the end, as a power of e.
        signal: How guidance branches combine, as in `SkipPolicy`.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: There is no budget in calls or speed-up, or a setting is out of range.

    Example:
        >>> MultistepSchedule(profile="wan.safetensors", budget={"calls": 12}).budget
        PlanBudget(calls=12)
    """

    profile: str | Path | Profile | None = None
    depth: int = 4
    growth: float = 3.0
    signal: Signal = "max"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._settle_budget()
        budget = PlanBudget.of(self.budget)
        if budget is None or budget.measured:
            raise PolicyError(
                f"MultistepSchedule got the budget {self.budget}; give budget={{calls: 12}} or "
                "speedup or work; for psnr and seconds, planned_schedule reads measured plans"
            )
        if self.depth < 1 or not math.isfinite(self.growth):
            raise PolicyError(
                f"MultistepSchedule(depth={self.depth}, growth={self.growth}): depth must be at "
                "least 1 and growth finite"
            )

    def prepare(self) -> None:
        _ = self._steps

    def calibrator(self) -> Profiler | None:
        from erta_policies.ertacache import ResidualProfiler

        return ResidualProfiler()

    @cached_property
    def _profile(self) -> Profile:
        return load_profile(self, self.profile, (KIND,))

    @cached_property
    def _errors(self) -> CombinationErrors:
        return CombinationErrors.of(self._profile, self.depth, self.growth, self.signal)

    @cached_property
    def _steps(self) -> tuple[int, ...]:
        num_steps = self._profile.num_steps
        calls = self._calls_for(num_steps)
        assert calls is not None
        if calls == 1:
            return (0,)
        errors = self._errors
        starts = [spread_evenly(calls, num_steps).computed]
        for cost in ("forecast", "integrated"):
            plans = plan_all_calls(self._profile, cost, signal=self.signal)
            plan = take_within(plans, calls).computed
            starts += [plan] if len(plan) == calls else []
        return min((search_shifts(errors, start) for start in starts), key=errors.total)

    def computed_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps of the plan.

        Raises:
            ProfileError: The profile has another number of steps.
        """
        planned = self._profile.num_steps
        if num_steps != planned:
            raise ProfileError(
                f"{self!r} has a profile of {planned} steps, a schedule of {num_steps} was asked "
                "for; calibrate for that number of steps"
            )
        return self._steps

    def predict(self, schedule: StepSchedule) -> StepSchedule:
        """The predicted error: that of the latents at the end, up to a factor."""
        return replace(schedule, predicted=self._errors.total(schedule.computed) ** 0.5)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require_match(self._profile, session, self.allow)
        super().on_session_start(session)
