"""`TeaCacheSchedule`: TeaCache's steps, known before sampling."""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

from erta_framework import Profile, SessionInfo, hookimpl
from erta_framework.errors import PolicyError, ProfileError
from erta_policies.shared import (
    BudgetedPlanner,
    FixedSchedule,
    list_thresholds,
    require_match,
    solve_setting,
)
from erta_policies.teacache._profiler import TeaCacheProfiler
from erta_policies.teacache._recipe import TeaCache, make_forced_steps
from erta_policies.teacache._rule import OWN
from erta_policies.teacache._settings import Source, profile_of


class TeaCacheSchedule(BudgetedPlanner, FixedSchedule):
    """The steps that `TeaCache` computes, from the mean differences that a profile holds.

    Where the signal depends on the step alone, such as the timestep's embedding, these are the very
    differences that `TeaCache` would measure, and both compute the same steps. Here they are known
    before the request: nothing is read back, and no hook in the network is needed. With other
    signals this is the schedule of an average sample.

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
        >>> TeaCacheSchedule(profile="wan.safetensors", threshold=0.1).traits.static
        True
    """

    solved_fields: ClassVar[tuple[str, ...]] = ("threshold",)
    exact: ClassVar[bool] = False

    profile: str | Path | Profile
    model: str | None = None
    coefficients: tuple[float, ...] | None = None
    threshold: float | None = None
    first: int | None = None
    last: int | None = None
    absolute: bool | None = None
    clamp_nonnegative: bool = False
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._settle_budget()
        _ = self._rule

    @property
    def _rule(self) -> TeaCache:
        """The same settings as `TeaCache`, which checks them."""
        fitted = self.model is None and self.coefficients is None
        return TeaCache(
            model=self.model,
            coefficients=self.coefficients,
            profile=self.profile if fitted else None,
            # the threshold of a budget is solved for later; the rule only needs some value
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
        """The threshold that keeps the budget, once it is solved for."""
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
        forced_steps = list_forced_steps(source, self.first, self.last, num_steps)
        if self.budget is not None and "threshold" not in self._solved:
            calls = self._calls_for(num_steps, self._profile)
            assert calls is not None
            self._solved["threshold"] = solve_setting(
                list_thresholds(sum_runs(changes)),
                lambda value: len(walk_changes(changes, value, forced_steps)),
                calls,
                repr(self),
            )
        threshold = self._solved.get("threshold", threshold)
        return walk_changes(changes, threshold, forced_steps)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require_match(self._profile, session, (*self.allow, *OWN))
        self._require_device(self._profile, session)
        super().on_session_start(session)


def list_forced_steps(
    source: Source, first: int | None, last: int | None, num_steps: int
) -> set[int]:
    """The first and last steps, which are always computed."""
    warm, end = make_forced_steps(source, first, last)
    early, late = warm.count(num_steps), end.steps if end is not None else 0
    return {0, *range(early), *range(num_steps - late, num_steps)}


def sum_runs(changes: list[float]) -> list[float]:
    """The sum of changes over every run of steps.

    Example:
        >>> sum_runs([0.0, 1.0, 2.0])
        [1.0, 3.0, 2.0]
    """
    return [s for start in range(1, len(changes)) for s in accumulate(changes[start:])]


def walk_changes(changes: list[float], threshold: float, forced_steps: set[int]) -> tuple[int, ...]:
    """The steps at which the sum of changes since the last computed one reaches the threshold.

    Example:
        >>> walk_changes([0.0, 0.04, 0.04, 0.04, 0.04], 0.1, {0})
        (0, 3)
    """
    total, computed = 0.0, []
    for index, change in enumerate(changes):
        total += change
        if index in forced_steps or not total < threshold:
            total = 0.0
            computed.append(index)
    return tuple(computed)
