"""`FittedReuse`: schedule and fitted velocities of one profile, as a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from erta_framework import Policy, Profile, Profiler
from erta_policies.fitted._profiler import FittedProfiler
from erta_policies.fitted._refined import EndToEndProfiler
from erta_policies.fitted._schedule import FittedSchedule
from erta_policies.fitted._velocity import FittedVelocity


class FittedReuse(Policy):
    """Fitted multistep reuse as a recipe: `FittedSchedule` + `FittedVelocity` on one profile.

    Source: ours. The schedule comes from another method, such as ERTACache's (arXiv 2508.21091),
    and is fixed when the profile is made.

    Attributes:
        profile: File or profile of a `FittedProfiler`.
        schedule: What `erta calibrate` fits to, as in `FittedProfiler`; sampling does not read it.
        target: What `erta calibrate` leads to, as in `FittedProfiler`; `"exact"` is the exact
            solution. Sampling does not read it.
        refine: How often `erta calibrate` refines the weights end to end, likewise.
        search: How many sweeps `erta calibrate` makes to move the steps of the schedule, likewise.
        judge: Let `erta calibrate` judge the profile, where it was added up from several batches,
            instead of making one; see `FittedProfiler.start`. Sampling does not read it.
        guard: As in `FittedVelocity`.
        allow: Fingerprint fields of the profile that may differ from the run.

    Example:
        >>> [part.name for part in FittedReuse(profile="fitted.safetensors").parts()]
        ['fitted_schedule', 'fitted_velocity']
    """

    profile: str | Path | Profile | None = None
    schedule: Policy | None = None
    target: float | Literal["exact"] | None = None
    refine: int = 0
    search: int = 0
    judge: bool = False
    guard: bool = False
    allow: tuple[str, ...] = ()

    def calibrator(self) -> Profiler | None:
        if self.judge:
            return self._make_profiler(0, start=self.profile)
        return self._make_profiler(self.search, schedule=self.schedule)

    def _make_profiler(self, search: int, **options: Any) -> Profiler:
        if self.refine or search:
            return EndToEndProfiler(
                target=self.target, refine=self.refine, search=search, **options
            )
        return FittedProfiler(target=self.target, **options)

    def parts(self) -> Sequence[Policy]:
        return (
            FittedSchedule(profile=self.profile, allow=self.allow),
            FittedVelocity(profile=self.profile, guard=self.guard, allow=self.allow),
        )
