"""`BudCache`: computes the steps that a search found."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from erta_framework import Profile, Profiler, SessionInfo, hookimpl
from erta_framework.budgets import StepSchedule
from erta_framework.errors import ProfileError
from erta_policies.budcache._profiler import KIND, BudCacheProfiler
from erta_policies.shared import FixedSchedule, PlanBudget, load_profile, require_match


class BudCache(FixedSchedule):
    """Computes the steps that a `BudCacheProfiler` found for its budget.

    The plan is one for the predictor that the search had; list the same one beside it.

    Source: BudCache, ICML 2026, from readings of its code; see `BudCacheProfiler` for what is ours.

    Attributes:
        profile: File or profile of a `BudCacheProfiler`.
        calls: Network calls of each branch: what a calibration for this policy searches for, and
            what its profile must have; None takes the profile as it is.
        allow: Fingerprint fields of the profile that may differ from the run.

    Example:
        >>> BudCache(profile="wan.safetensors").allow
        ()
    """

    profile: str | Path | Profile | None = None
    calls: int | None = None
    allow: tuple[str, ...] = ()

    def prepare(self) -> None:
        _ = self._profile

    def calibrator(self) -> Profiler | None:
        if self.calls is None:
            return None
        return BudCacheProfiler(budget=PlanBudget(calls=self.calls))

    @cached_property
    def _profile(self) -> Profile:
        return load_profile(self, self.profile, (KIND,))

    def computed_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps that were found.

        Raises:
            ProfileError: The profile has another number of steps, or of calls.
        """
        held = self._profile.statistics["computed"]
        if num_steps != len(held):
            raise ProfileError(
                f"{self!r} has a plan for {len(held)} steps, a schedule of {num_steps} was asked "
                "for; search for that number of steps"
            )
        steps = tuple(held.nonzero().flatten().tolist())
        if self.calls not in (None, len(steps)):
            raise ProfileError(
                f"{self!r} has a plan of {len(steps)} calls; search for {self.calls}, or leave "
                "calls out"
            )
        return steps

    def predict(self, schedule: StepSchedule) -> StepSchedule:
        """The schedule with the mean squared error that the search measured, and that it began at.

        Nothing is predicted where nothing was searched.
        """
        before, after = (self._profile.statistics["loss"] / self._profile.samples).tolist()
        return replace(schedule, predicted=after, facts={"start": before}) if after else schedule

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require_match(self._profile, session, self.allow)
        super().on_session_start(session)
