"""`SkipPolicy`: an offline schedule, and `ResidualReuse`: what stands in."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from torch import Tensor

from erta_framework import (
    Call,
    Compute,
    Decision,
    Needs,
    Policy,
    Profile,
    Reuse,
    SessionInfo,
    Step,
    hookimpl,
)
from erta_framework.errors import InputError, PolicyError
from erta_policies.ertacache.source import loaded
from erta_policies.ertacache.statistics import (
    KIND,
    Plan,
    Signal,
    evenly,
    pair_errors,
    solve_threshold,
    walk,
)

REPLAY = "replay_profiler"


class SkipPolicy(Policy):
    """Computes the steps of a fixed schedule and reuses the others; step 0 and the last compute.

    Give one of `threshold`, `calls`, `evenly`, `every` or `steps`. The first two walk the errors of
    a profile (ERTACache, arXiv 2508.21091, offline policy, on logged residuals); a profile of
    `ReplayProfiler` carries its schedule and needs none of them.

    Attributes:
        profile: File or profile of a `ResidualProfiler` (or `ReplayProfiler`).
        threshold: lambda: reuse while the relative L1 error stays below it.
        calls: Solve lambda for this many network calls of each branch.
        evenly: This many calls spread evenly; needs no profile.
        every: Compute every n-th step; needs no profile.
        steps: Computed steps, listed; needs no profile.
        warmup: Steps at the start that are always computed.
        signal: Branch whose error decides: the first (conditional), the mean or the largest.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: None or several of the schedules are given.

    Example:
        >>> SkipPolicy(evenly=3).plan(5).computed
        (0, 2, 4)
    """

    static = True

    profile: str | Path | Profile | None = None
    threshold: float | None = None
    calls: int | None = None
    evenly: int | None = None
    every: int | None = None
    steps: tuple[int, ...] | None = None
    warmup: int = 1
    signal: Signal = "first"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        options = ("threshold", "calls", "evenly", "every", "steps")
        given = [name for name in options if getattr(self, name) is not None]
        if len(given) > 1 or (not given and self.profile is None):
            raise PolicyError(
                f"SkipPolicy got {', '.join(given) if given else 'no schedule'}; "
                f"give exactly one of {', '.join(options)}"
            )
        if self.every is not None and self.every < 1:
            raise PolicyError(f"SkipPolicy(every={self.every}): it must be at least 1")
        if self.warmup < 1:
            raise PolicyError(f"SkipPolicy(warmup={self.warmup}): step 0 is always computed")

    def prepare(self) -> None:
        if self._uses_profile:
            kind = self._profile.kind
            scheduled = self.threshold is not None or self.calls is not None
            if kind == KIND and not scheduled:
                raise PolicyError(f"{self!r} needs threshold=... or calls=... to read its profile")
            if kind == REPLAY and scheduled:
                raise PolicyError(
                    f"{self!r}: a replay profile carries the schedule of its own threshold "
                    f"({self._profile.provenance.get('threshold')}); drop threshold and calls"
                )
            self.plan(int(self._profile.fingerprint["num_steps"]))

    def needs(self) -> Needs:
        return Needs(evaluations=1)

    def calibrator(self) -> Policy | None:
        from erta_policies.ertacache.profiler import ResidualProfiler

        return ResidualProfiler() if self._uses_profile else None

    @property
    def _uses_profile(self) -> bool:
        return self.evenly is None and self.every is None and self.steps is None

    @cached_property
    def _profile(self) -> Profile:
        return loaded(self, self.profile, (KIND, REPLAY))

    def plan(self, num_steps: int) -> Plan:
        """The schedule for this number of steps.

        Raises:
            ProfileError: The number of calls cannot be scheduled.
            InputError: A listed step is outside the schedule.
        """
        if self.evenly is not None:
            return evenly(self.evenly, num_steps)
        if self.every is not None:
            return Plan.of(set(range(0, num_steps, self.every)), num_steps)
        if self.steps is not None:
            outside = [step for step in self.steps if not 0 <= step < num_steps]
            if outside:
                raise InputError(f"{self!r} lists steps {outside}, outside 0..{num_steps - 1}")
            return Plan.of(set(self.steps), num_steps)
        if self._profile.kind == REPLAY:
            return self._replayed()
        errors = pair_errors(self._profile, self.signal)
        if self.threshold is not None:
            return walk(errors, self.threshold, self.warmup)
        assert self.calls is not None
        return solve_threshold(errors, self.calls, self.warmup)

    def _replayed(self) -> Plan:
        share = self._profile.statistics["computed"] / self._profile.samples
        computed = {i for i, part in enumerate(share.tolist()) if part >= 0.5}
        threshold = self._profile.provenance.get("threshold")
        return Plan.of(computed, len(share), None if threshold is None else float(threshold))

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if self._uses_profile:
            self._profile.require(session, self.allow)
        plan = self.plan(session.num_steps)
        session.state_of(self, lambda: self._decisions(plan))

    def _decisions(self, plan: Plan) -> tuple[Decision, ...]:
        errors = None
        if plan.threshold is not None and self._profile.kind == KIND:
            errors = pair_errors(self._profile, self.signal).tolist()
        decisions: list[Decision] = []
        newest = 0
        for index, source in enumerate(plan.sources):
            why = "schedule"
            if errors is not None and index > 0:
                error = errors[newest][index]
                sign = "<" if error < (plan.threshold or 0) else ">="
                why = f"error {error:.3f} {sign} {plan.threshold:.3f}"
            if source == index:
                last = index == len(plan.sources) - 1
                decisions.append(Compute("last step" if last else why))
                newest = index
            else:
                decisions.append(Reuse(why))
        return tuple(decisions)

    @hookimpl
    def decide(self, step: Step) -> Decision:
        decisions: tuple[Decision, ...] = step.session.state_of(self, tuple)
        return decisions[step.index]


class ResidualReuse(Policy):
    """Predicts a reused output as `x + residual` of the newest evaluation, as core does unasked.

    Listing it makes the choice visible, and keeps predictors behind it from answering.
    Source: ERTACache, arXiv 2508.21091; the same rule as EasyCache, arXiv 2507.02860.
    """

    static = True

    def needs(self) -> Needs:
        return Needs(evaluations=1)

    @hookimpl
    def forward(self, call: Call) -> Tensor | None:
        return call.x + call.history[0].residual if call.reused else None
