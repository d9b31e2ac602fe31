"""`Planner`: the protocol of policies that know their schedule before sampling."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, Self, runtime_checkable

from erta_framework.budgets._step_schedule import StepSchedule
from erta_framework.errors import ErtaError, PolicyError
from erta_framework.plugins import Policy, flatten, list_budgeted

MEMBERS = {
    "plan": "plan(num_steps)",
    "schedules": "schedules(num_steps)",
    "with_calls": "with_calls(calls)",
}


@runtime_checkable
class Planner(Protocol):
    """A policy that knows, before anything is sampled, which steps it computes.

    `erta plan`, `erta explain`, exports and fronts ask a planner and sample nothing. Derive from
    `Policy` and `Planner` and write `plan`; a policy that takes a budget writes `with_calls` too.
    A policy that has some of the three members and lacks others is refused by name.

    Example:
        >>> from erta_framework import Compute, Policy, Reuse, hookimpl
        >>> class FirstSteps(Policy, Planner):
        ...     steps: int = 4
        ...
        ...     def plan(self, num_steps):
        ...         return StepSchedule.of(range(min(self.steps, num_steps)), num_steps)
        ...
        ...     def with_calls(self, calls):
        ...         return FirstSteps(steps=calls)
        ...
        ...     @hookimpl
        ...     def decide(self, step):
        ...         return Compute("early") if step.index < self.steps else Reuse("late")
        >>> FirstSteps(steps=2).plan(5).computed
        (0, 1)
        >>> [schedule.calls for schedule in FirstSteps().schedules(3).values()]
        [1, 2, 3]
    """

    @abstractmethod
    def plan(self, num_steps: int) -> StepSchedule:
        """The schedule for so many steps, with whatever the policy predicts of it.

        Raises:
            ErtaError: There is none, such as for another number of steps than the profile's.
        """

    def schedules(self, num_steps: int) -> Mapping[int, StepSchedule]:
        """The schedule of every budget, by its number of calls.

        By default it comes from `with_calls`, called with each number. Numbers that cannot be
        planned are left out. A policy that takes no budget has its own schedule alone.
        """
        found: dict[int, StepSchedule] = {}
        for calls in range(1, num_steps + 1):
            try:
                other = self.with_calls(calls)
                if other is None:
                    own = self.plan(num_steps)
                    return {own.calls: own}
                found[calls] = other.plan(num_steps)
            except ErtaError:  # fewer calls than the forced steps
                continue
        return found

    def with_calls(self, calls: int) -> Self | None:
        """The same policy for a number of network calls; None if it takes no budget."""
        return None


def as_planner(policy: Policy) -> Planner | None:
    """The policy if it plans, None if it decides while sampling.

    Raises:
        PolicyError: It has some members of a planner and lacks others.

    Example:
        >>> from erta_framework.testing import AlternateSteps
        >>> as_planner(AlternateSteps()) is None
        True
    """
    held = [name for name in MEMBERS if callable(getattr(type(policy), name, None))]
    if "plan" not in held and "with_calls" not in held:
        return None
    lacking = [name for name in MEMBERS if name not in held]
    if lacking or not isinstance(policy, Planner):
        raise PolicyError(
            f"{policy.name} has {' and '.join(f'{name}()' for name in held)} but no "
            f"{' and no '.join(f'{name}()' for name in lacking)}; a planner has "
            f"{', '.join(MEMBERS.values())}: derive {type(policy).__name__} from Policy and "
            "erta_framework.budgets.Planner, which brings schedules() and with_calls()"
        )
    return policy


def find_planner(policies: Sequence[Policy]) -> Planner | None:
    """The first part of the policies that plans, None without one; recipes are expanded.

    Raises:
        PolicyError: A part has some members of a planner and lacks others.
    """
    found = (as_planner(part) for part in flatten(policies))
    return next((planner for planner in found if planner is not None), None)


def with_calls(policies: Sequence[Policy], calls: int) -> tuple[Policy, ...]:
    """The policies, where the one that takes a budget gets this number of network calls.

    Raises:
        PolicyError: None of them takes a budget.
    """
    found = list(policies)
    for place, policy in enumerate(found):
        planner = as_planner(policy)
        other = None if planner is None else planner.with_calls(calls)
        if isinstance(other, Policy):
            found[place] = other
            return tuple(found)
    names = ", ".join(policy.name for policy in found) or "no policies"
    raise PolicyError(
        f"none of the policies takes a budget ({names}); use one of {', '.join(list_budgeted())}"
    )


def sign_schedule(schedule: StepSchedule, planner: Planner, num_steps: int) -> StepSchedule:
    """A planner's schedule with the planner's name, and its unit where it has none of its own.

    Raises:
        PolicyError: It is no `StepSchedule`, or has another number of steps.
    """
    assert isinstance(planner, Policy)
    if not isinstance(schedule, StepSchedule):
        raise PolicyError(
            f"{planner!r} planned {schedule!r} of type {type(schedule).__name__}; return an "
            "erta_framework.budgets.StepSchedule, such as StepSchedule.of(steps, num_steps)"
        )
    if schedule.num_steps != num_steps:
        raise PolicyError(
            f"{planner!r} was asked to plan {num_steps} steps and planned {schedule.num_steps}; "
            "return a schedule with a source for each step"
        )
    return replace(schedule, policy=planner.name, unit=schedule.unit or planner.name)
