"""`FixedSchedule`: the base of skip rules whose computed steps follow from the number of steps."""

from __future__ import annotations

from dataclasses import dataclass

from erta_framework import (
    Compute,
    Decision,
    Needs,
    Policy,
    Reuse,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.errors import InputError


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Which steps are computed.

    Attributes:
        computed: Indices of the computed steps, rising.
        sources: For every step, the newest computed one (itself if computed).
        threshold: None; no number made this schedule.

    Example:
        >>> StepPlan.of([2, 0], 4).sources
        (0, 0, 2, 2)
    """

    computed: tuple[int, ...]
    sources: tuple[int, ...]
    threshold: float | None = None

    @classmethod
    def of(cls, computed: list[int] | tuple[int, ...], num_steps: int) -> StepPlan:
        """A plan from its computed steps; step 0 is always one of them.

        Raises:
            InputError: A step is outside the schedule.
        """
        outside = sorted(step for step in computed if not 0 <= step < num_steps)
        if outside:
            raise InputError(f"steps {outside} are outside the schedule of {num_steps} steps")
        steps = sorted({0, *computed})
        sources, newest = [], 0
        for index in range(num_steps):
            newest = index if index in steps else newest
            sources.append(newest)
        return cls(tuple(steps), tuple(sources))

    @property
    def calls(self) -> int:
        """Network calls of each branch."""
        return len(self.computed)


class FixedSchedule(Policy):
    """Base of skip rules that compute a set of steps known before sampling; core for the rest.

    A subclass says which steps in `computed_steps`. Nothing is read back from the device.

    Source: ours; the step mask that many published methods share.
    """

    traits = Traits(static=True, memory=Needs(evaluations=1))

    def computed_steps(self, num_steps: int) -> tuple[int, ...]:
        """The computed steps of a schedule; step 0 is computed in any case."""
        raise NotImplementedError(f"{type(self).__name__} does not say which steps are computed")

    def plan(self, num_steps: int) -> StepPlan:
        """The schedule for this number of steps."""
        return StepPlan.of(self.computed_steps(num_steps), num_steps)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        plan = self.plan(session.num_steps)
        session.state_of(self, lambda: frozenset(plan.computed))

    @hookimpl
    def decide(self, step: Step) -> Decision:
        computed: frozenset[int] = step.session.state_of(self, frozenset)
        return Compute("schedule") if step.index in computed else Reuse("schedule")
