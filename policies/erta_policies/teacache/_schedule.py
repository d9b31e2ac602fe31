"""`TeaCacheSchedule`: TeaCache's steps, known before sampling."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Self

from erta_framework import Profile, SessionInfo, hookimpl
from erta_framework.budgets import unit_of
from erta_framework.errors import PolicyError, ProfileError
from erta_policies.shared import (
    Budgeted,
    FixedSchedule,
    PlanBudget,
    between,
    budget_of,
    require_device,
    settle,
    solved,
)
from erta_policies.shared import require_match as require
from erta_policies.teacache._profiler import TeaCacheProfiler
from erta_policies.teacache._recipe import TeaCache, forced
from erta_policies.teacache._rule import OWN
from erta_policies.teacache._settings import Source, profile_of


class TeaCacheSchedule(FixedSchedule):
    """The steps that `TeaCache` computes, from the mean differences that a profile holds.

    Where the signal depends on the step alone, such as the timestep's embedding, these are the very
    differences that `TeaCache` would measure, so that it computes the same steps; here they are
    known before the request, nothing is read back, and the network is not looked into. With other
    signals it is the schedule of an average sample.

    Source: ours, on TeaCache, arXiv 2411.19108.

    Attributes:
        profile: File or profile of a `TeaCacheProfiler`; one request is enough for such signals.
        model: A published polynomial instead of the one fitted to the profile.
        coefficients: A polynomial of your own, highest power first.
        threshold: As in `TeaCache`.
        budget: Solve the threshold for this: one of `calls`, `speedup`, `psnr` and `seconds`.
        first: As in `TeaCache`.
        last: As in `TeaCache`.
        absolute: As in `TeaCache`.
        clamp_nonnegative: As in `TeaCache`.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: There is no threshold, or a setting is out of range.

    Example:
        >>> TeaCacheSchedule(profile="wan.safetensors", threshold=0.1).static
        True
    """

    profile: str | Path | Profile
    model: str | None = None
    coefficients: tuple[float, ...] | None = None
    threshold: float | None = None
    budget: Budgeted = None
    first: int | None = None
    last: int | None = None
    absolute: bool | None = None
    clamp_nonnegative: bool = False
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settle(self)
        if self.budget is not None and self.threshold is not None:
            raise PolicyError(
                f"TeaCacheSchedule got threshold={self.threshold} and budget={self.budget}; a "
                "budget solves the threshold, give one of the two"
            )
        _ = self._rule

    @property
    def _rule(self) -> TeaCache:
        """The same settings as a rule that measures, which checks them."""
        fitted = self.model is None and self.coefficients is None
        return TeaCache(
            model=self.model,
            coefficients=self.coefficients,
            profile=self.profile if fitted else None,
            # a budget's threshold comes later; until then any will do
            threshold=self.threshold if self.budget is None else 0.0,
            first=self.first,
            last=self.last,
            absolute=self.absolute,
        )

    @cached_property
    def _profile(self) -> Profile:
        return profile_of(self, self.profile)

    @cached_property
    def _resolved(self) -> tuple[Source, float]:
        rule = self._rule
        return rule.source, rule.effective_threshold

    @cached_property
    def _solved(self) -> dict[str, float]:
        """The threshold that a budget was solved for."""
        return {}

    def prepare(self) -> None:
        signal = self._profile.fingerprint["signal"]
        source, _ = self._resolved
        if self.model is not None and signal != source.signal:
            raise PolicyError(
                f"the polynomial of {self.model!r} is for the signal {source.signal!r}, the "
                f"profile has the differences of {signal!r}; calibrate with "
                f"TeaCacheProfiler(signal={source.signal!r})"
            )

    def calibrator(self) -> TeaCacheProfiler:
        return TeaCacheProfiler(signal="latents")  # which every driver has

    def differences(self) -> list[float]:
        """Mean relative L1 change of the signal into each step; 0 for the first."""
        samples = self._profile.statistics["samples"].sum(dim=0)
        distance = self._profile.statistics["distance"].sum(dim=0)
        found: list[float] = (distance / samples.clamp_min(1)).tolist()
        return found

    def computed_steps(self, num_steps: int) -> tuple[int, ...]:
        """The computed steps.

        Raises:
            ProfileError: The profile has another number of steps.
        """
        source, threshold = self._resolved
        differences = self.differences()
        if len(differences) != num_steps:
            raise ProfileError(
                f"{self!r} has the differences of {len(differences)} steps, a schedule of "
                f"{num_steps} was asked for; calibrate for that number of steps"
            )
        absolute = source.absolute if self.absolute is None else self.absolute
        changes = [source.change(d, absolute, self.clamp_nonnegative) for d in differences]
        forced_steps = kept(source, self.first, self.last, num_steps)
        budget = budget_of(self)
        if budget is not None and "threshold" not in self._solved:
            self._solved["threshold"] = solved(
                between(run_sums(changes)),
                lambda value: len(computed_at(changes, value, forced_steps)),
                budget.calls_for(num_steps, self._profile, unit=unit_of(self)),
                repr(self),
            )
        threshold = self._solved.get("threshold", threshold)
        return computed_at(changes, threshold, forced_steps)

    def with_calls(self, calls: int) -> Self:
        """The same rule with its threshold solved for a number of network calls."""
        return replace(self, threshold=None, budget=PlanBudget(calls=calls))

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require(self._profile, session, (*self.allow, *OWN))
        require_device(self, self._profile, session)
        plan = self.plan(session.num_steps)
        session.state_of(self, lambda: frozenset(plan.computed))


def kept(source: Source, first: int | None, last: int | None, num_steps: int) -> set[int]:
    """The first and last steps, which are always computed."""
    warm, end = forced(source, first, last)
    early, late = warm.count(num_steps), end.steps if end is not None else 0
    return {0, *range(early), *range(num_steps - late, num_steps)}


def run_sums(changes: list[float]) -> list[float]:
    """The sum of changes over every run of steps.

    Example:
        >>> run_sums([0.0, 1.0, 2.0])
        [1.0, 3.0, 2.0]
    """
    return [s for start in range(1, len(changes)) for s in accumulate(changes[start:])]


def computed_at(changes: list[float], threshold: float, forced_steps: set[int]) -> tuple[int, ...]:
    """The steps at which the sum of changes since the last computed one reaches the threshold.

    Example:
        >>> computed_at([0.0, 0.04, 0.04, 0.04, 0.04], 0.1, {0})
        (0, 3)
    """
    total, computed = 0.0, []
    for index, change in enumerate(changes):
        total += change
        if index in forced_steps or not total < threshold:
            total = 0.0
            computed.append(index)
    return tuple(computed)
