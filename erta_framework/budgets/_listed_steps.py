"""`ListedSteps`: the planner that is a list of computed steps, and putting it for another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from erta_framework.budgets._planner import Planner, find_planner
from erta_framework.budgets._step_schedule import StepSchedule
from erta_framework.errors import PolicyError
from erta_framework.plugins import Policy, Traits, flatten, hookimpl
from erta_framework.session import Compute, Decision, Needs, Reuse, SessionInfo, Step


class ListedSteps(Policy, Planner):
    """Computes the listed steps and step 0, and reuses all others.

    Refining replays moved steps with it.

    Source: ours.

    Attributes:
        steps: Computed steps in any order.

    Example:
        >>> ListedSteps(steps=(0, 2)).plan(4).sources
        (0, 0, 2, 2)
    """

    traits = Traits(static=True, memory=Needs(evaluations=1))

    steps: tuple[int, ...]

    def plan(self, num_steps: int) -> StepSchedule:
        """The listed steps.

        Raises:
            InputError: A step is outside the schedule.
        """
        return StepSchedule.of(self.steps, num_steps)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        schedule = self.plan(session.num_steps)
        session.state_of(self, lambda: frozenset(schedule.computed))

    @hookimpl
    def decide(self, step: Step) -> Decision:
        computed: frozenset[int] = step.session.state_of(self, frozenset)
        return Compute("schedule") if step.index in computed else Reuse("schedule")


def with_steps(policies: Sequence[Policy], steps: Sequence[int]) -> tuple[Policy, ...]:
    """The parts of the policies with the planner replaced by a list of computed steps.

    Raises:
        PolicyError: There is no planner, or another part reads its plan.
    """
    parts = flatten(policies)
    planner = find_planner(parts)
    if not isinstance(planner, Policy):
        raise PolicyError("none of the policies plans ahead; there is nothing to replay")
    for part in parts:
        if any(getattr(part, f.name, None) is planner for f in fields(part)):
            raise PolicyError(
                f"{part!r} reads the plan of {planner.name}, whose steps can therefore not be "
                "moved; measure without refining"
            )
    listed = ListedSteps(steps=tuple(steps))
    return tuple(listed if part is planner else part for part in parts)
