"""`SkipPolicy`: a schedule that is known before sampling.

The file is long because a schedule may be given in six ways, each documented and checked here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from erta_framework import (
    Compute,
    Decision,
    Needs,
    Profile,
    Profiler,
    Reuse,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.budgets import StepSchedule
from erta_framework.errors import InputError, PolicyError, ProfileError
from erta_policies.ertacache._predictions import errors_on_arrival, predict_errors, total_error
from erta_policies.ertacache._schedule import solve_threshold, spread_evenly, walk
from erta_policies.ertacache._statistics import KIND, REPLAY, Signal, pair_errors
from erta_policies.shared import (
    BudgetedPlanner,
    load_profile,
    require_match,
)


class SkipPolicy(BudgetedPlanner):
    """Computes the steps of a fixed schedule and reuses the others; step 0 is always computed.

    Give one of `budget`, `threshold`, `calls`, `evenly`, `every` or `steps`. The first three walk
    the errors of a profile, the offline policy of ERTACache (arXiv 2508.21091); that the errors are
    those of logged residuals, solving lambda for a budget and meeting it exactly, the warm-up and
    always computing the last step are ours. A profile of `ReplayProfiler` carries its schedule and
    needs none of them. A run that starts later (img2img) walks from its first step, and `evenly`
    and `every` count the steps that run.

    Attributes:
        profile: File or profile of a `ResidualProfiler` (or `ReplayProfiler`).
        budget: Solve lambda for this: one of `calls`, `speedup`, `psnr` and `seconds`.
        threshold: lambda: reuse while the relative L1 error stays below it.
        calls: Solve lambda for this many network calls of each branch. Calls that no lambda spends
            go to the reused steps with the largest errors.
        evenly: This many calls spread evenly; needs no profile.
        every: Compute every n-th step; needs no profile.
        steps: Computed steps, listed; needs no profile. Nothing but step 0 is added to them.
        warmup: Steps at the start that are always computed; for `budget`, `threshold`, `calls` and
            `every`.
        signal: Branch whose error decides: the largest, the mean or the first (conditional). The
            paper does not say; the default is what measured best on the reference model.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: None or several of the schedules are given, or a setting is out of range.

    Example:
        >>> SkipPolicy(evenly=3).plan(5).computed
        (0, 2, 4)
    """

    traits = Traits(static=True, memory=Needs(evaluations=1))
    solved_fields: ClassVar[tuple[str, ...]] = ("threshold", "calls", "evenly", "every", "steps")

    profile: str | Path | Profile | None = None
    threshold: float | None = None
    calls: int | None = None
    evenly: int | None = None
    every: int | None = None
    steps: tuple[int, ...] | None = None
    warmup: int = 1
    signal: Signal = "max"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        options = ("budget", "threshold", "calls", "evenly", "every", "steps")
        given = [name for name in options if getattr(self, name) is not None]
        if len(given) > 1 or (not given and self.profile is None):
            raise PolicyError(
                f"SkipPolicy got {', '.join(given) if given else 'no schedule'}; "
                f"give exactly one of {', '.join(options)}"
            )
        self._settle_budget()
        if self.every is not None and self.every < 1:
            raise PolicyError(f"SkipPolicy(every={self.every}): it must be at least 1")
        if self.threshold is not None and not self.threshold >= 0:
            raise PolicyError(f"SkipPolicy(threshold={self.threshold}): it must be >= 0")
        if self.warmup < 1:
            raise PolicyError(f"SkipPolicy(warmup={self.warmup}): step 0 is always computed")
        if self.warmup > 1 and not {*given} & {"budget", "threshold", "calls", "every"}:
            raise PolicyError(
                f"SkipPolicy(warmup={self.warmup}) has no effect on this schedule; "
                "it serves budget, threshold, calls and every"
            )

    def prepare(self) -> None:
        if self._uses_profile:
            kind = self._profile.kind
            scheduled = any(x is not None for x in (self.budget, self.threshold, self.calls))
            if kind == KIND.name and not scheduled:
                raise PolicyError(
                    f"{self!r} needs budget=..., threshold=... or calls=... to read its profile"
                )
            if kind == REPLAY.name and scheduled:
                raise PolicyError(
                    f"{self!r}: a replay profile carries the schedule of its own threshold "
                    f"({self._profile.provenance.get('threshold')}); drop budget, threshold and "
                    "calls"
                )
            self._schedule(self._profile.num_steps)

    def calibrator(self) -> Profiler | None:
        from erta_policies.ertacache._profiler import ResidualProfiler

        return ResidualProfiler() if self._uses_profile else None

    @property
    def _uses_profile(self) -> bool:
        return self.evenly is None and self.every is None and self.steps is None

    @cached_property
    def _profile(self) -> Profile:
        return load_profile(self, self.profile, (KIND, REPLAY))

    @cached_property
    def _decided(self) -> dict[StepSchedule, tuple[Decision, ...]]:
        return {}  # requests of the same number of steps share their decisions

    @cached_property
    def _errors(self) -> Tensor:
        return pair_errors(self._profile, self.signal)

    @cached_property
    def _profile_schedule(self) -> StepSchedule:
        if self._profile.kind == REPLAY.name:
            return self._replayed_schedule()
        if self.threshold is not None:
            return walk(self._errors, self.threshold, self.warmup)
        asked = self._calls_for(len(self._errors), self._profile, self._predicted_error)
        calls = self.calls if asked is None else asked
        assert calls is not None
        return solve_threshold(self._errors, calls, self.warmup)

    def _predicted_error(self, calls: int) -> float:
        """Sum of the errors of reuse with so many calls; infinite where they cannot be planned."""
        try:
            schedule = solve_threshold(self._errors, calls, self.warmup)
        except ProfileError:
            return math.inf
        return total_error(pair_errors(self._profile), schedule)

    def plan(self, num_steps: int) -> StepSchedule:
        """The schedule for this number of steps, with the errors that its profile predicts.

        The predictions are those of `predict_errors`; none without a profile.

        Raises:
            ProfileError: The number of calls cannot be scheduled, or the profile has another
                number of steps.
            InputError: A listed step is outside the schedule.

        Example:
            >>> SkipPolicy(every=3).plan(8).computed
            (0, 3, 6, 7)
        """
        schedule = self._schedule(num_steps)
        if self.profile is None:
            return schedule
        if self._profile.kind == REPLAY.name:
            errors = (self._profile.statistics["error"] / self._profile.samples).tolist()
            return replace(schedule, errors=(math.nan, *errors[1:]))
        schedule = predict_errors(self._profile, schedule)
        return replace(schedule, errors=errors_on_arrival(self._errors, schedule))

    def _schedule(self, num_steps: int) -> StepSchedule:
        """The schedule without predictions, which no request needs."""
        if self.evenly is not None:
            return spread_evenly(self.evenly, num_steps)
        if self.every is not None:
            steps = {*range(0, num_steps, self.every), *range(min(self.warmup, num_steps))}
            return StepSchedule.of(steps, num_steps, compute_last=True)
        if self.steps is not None:
            outside = [step for step in self.steps if not 0 <= step < num_steps]
            if outside:
                raise InputError(f"{self!r} lists steps {outside}, outside 0..{num_steps - 1}")
            return StepSchedule.of(self.steps, num_steps)
        schedule = self._profile_schedule
        if schedule.num_steps != num_steps:
            raise ProfileError(
                f"{self!r} has a profile of {schedule.num_steps} steps, a schedule of {num_steps} "
                "was asked for; calibrate for that number of steps"
            )
        return schedule

    def _schedule_from(self, first: int, num_steps: int) -> StepSchedule:
        """The schedule of a run that starts at step `first`; counted steps are those that run."""
        if first == 0 or (self.evenly is None and self.every is None):
            return self._schedule(num_steps)
        counted = self._schedule(num_steps - first)
        return StepSchedule.of((first + step for step in counted.computed), num_steps)

    def _replayed_schedule(self) -> StepSchedule:
        share = self._profile.statistics["computed"] / self._profile.samples
        computed = {i for i, part in enumerate(share.tolist()) if part >= 0.5}
        threshold = self._profile.provenance.get("threshold")
        try:
            walked = None if threshold is None else float(threshold)
        except ValueError as error:
            raise ProfileError(
                f"{self!r}: this replay profile was merged from walks at different thresholds "
                f"({threshold}); calibrate with one"
            ) from error
        return StepSchedule.of(computed, len(share), walked, compute_last=True)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if self._uses_profile:
            require_match(self._profile, session, self.allow)
            self._require_device(self._profile, session)
        schedule = self._schedule_from(session.first, session.num_steps)
        if session.first > 0 and self._walks and schedule.threshold is not None:
            schedule = walk(self._errors, schedule.threshold, max(self.warmup, session.first + 1))
        if schedule not in self._decided:
            self._decided[schedule] = self._decisions(schedule)
        session.state_of(self, lambda: self._decided[schedule])

    @property
    def _walks(self) -> bool:
        return self._uses_profile and self._profile.kind == KIND.name

    def _decisions(self, schedule: StepSchedule) -> tuple[Decision, ...]:
        decisions: list[Decision] = []
        newest, last = 0, schedule.num_steps - 1
        for index, source in enumerate(schedule.sources):
            computed = source == index
            if computed and index == last:
                why = "last step"
            elif not self._walks or schedule.threshold is None:
                why = "schedule"
            elif index < self.warmup:
                why = "warm-up"
            else:
                sign = ">=" if computed else "<"
                error = float(self._errors[newest, index])
                why = f"error {error:.4f} {sign} {schedule.threshold:.4f}"
                if computed and error < schedule.threshold:
                    why = "a call that lambda left over"
            decisions.append(Compute(why) if computed else Reuse(why))
            newest = index if computed else newest
        return tuple(decisions)

    @hookimpl
    def decide(self, step: Step) -> Decision:
        decisions: tuple[Decision, ...] = step.session.state_of(self, tuple)
        return decisions[step.index]
