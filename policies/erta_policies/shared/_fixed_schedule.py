"""`FixedSchedule`: the base of skip rules whose computed steps follow from the number of steps."""

from __future__ import annotations

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
from erta_framework.budgets import Planner, StepSchedule


class FixedSchedule(Policy, Planner):
    """Base of skip rules that compute a set of steps known before sampling; core for the rest.

    A subclass names the steps in `computed_steps`, and may predict errors in `predict`. Nothing is
    read back from the device.

    Source: ours; the step mask that many published methods share.
    """

    traits = Traits(static=True, memory=Needs(evaluations=1))

    def computed_steps(self, num_steps: int) -> tuple[int, ...]:
        """The computed steps of a schedule; step 0 is computed in any case."""
        raise NotImplementedError(f"{type(self).__name__} does not say which steps are computed")

    def steps_of(self, session: SessionInfo) -> tuple[int, ...]:
        """The computed steps of a run, which may start later than the schedule (img2img)."""
        return self.computed_steps(session.num_steps)

    def predict(self, schedule: StepSchedule) -> StepSchedule:
        """The schedule with what the policy predicts of it; by default nothing."""
        return schedule

    def plan(self, num_steps: int) -> StepSchedule:
        """The schedule for this number of steps."""
        return self.predict(StepSchedule.of(self.computed_steps(num_steps), num_steps))

    def check_session(self, session: SessionInfo) -> None:
        """Refuse a run that the schedule was not made for; by default none."""

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        self.check_session(session)
        # without predictions, which no request needs
        schedule = StepSchedule.of(self.steps_of(session), session.num_steps)
        session.state_of(self, lambda: frozenset(schedule.computed))

    @hookimpl
    def decide(self, step: Step) -> Decision:
        computed: frozenset[int] = step.session.state_of(self, frozenset)
        return Compute("schedule") if step.index in computed else Reuse("schedule")
