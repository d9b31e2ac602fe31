"""`StepSchedule` and `Planner`: what a schedule may be, and what core makes of a planner."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erta_framework import Policy, Reuse, hookimpl
from erta_framework.budgets import (
    ListedSteps,
    Planner,
    StepSchedule,
    as_planner,
    find_planner,
    forecast,
    plan_front,
    with_calls,
    with_steps,
)
from erta_framework.errors import InputError, PolicyError
from erta_framework.testing import AlternateSteps, toy_run


class FirstSteps(Policy, Planner):
    """Computes the first steps. Source: ours."""

    steps: int = 3

    def plan(self, num_steps):
        if self.steps == 2:
            raise InputError("two steps cannot be planned")
        return StepSchedule.of(range(self.steps), num_steps, predicted=1.0 / self.steps)

    def with_calls(self, calls):
        return FirstSteps(steps=calls)

    @hookimpl
    def decide(self, step):
        return Reuse("late") if step.index >= self.steps else None


# ------------------------------------------------------------------------------- schedules
@given(st.integers(1, 30), st.sets(st.integers(0, 29)), st.booleans())
def test_sources_are_the_newest_computed_steps(num_steps, steps, compute_last):
    listed = {step for step in steps if step < num_steps}
    schedule = StepSchedule.of(listed, num_steps, compute_last=compute_last)
    expected = listed | {0} | ({num_steps - 1} if compute_last else set())
    assert schedule.computed == tuple(sorted(expected))
    assert schedule.num_steps == num_steps
    for step, source in enumerate(schedule.sources):
        assert source == max(computed for computed in schedule.computed if computed <= step)
    assert schedule.speedup * schedule.calls == pytest.approx(num_steps)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StepSchedule((), ()), "must rise from step 0"),
        (lambda: StepSchedule((1, 2), (1, 1, 2)), "must rise from step 0"),
        (lambda: StepSchedule((0, 2, 1), (0, 1, 2)), "must rise from step 0"),
        (lambda: StepSchedule((0, 0), (0, 0)), "must rise from step 0"),
        (lambda: StepSchedule((0, 2), (0, 2, 2)), "step 1 of a schedule cannot use step 2"),
        (lambda: StepSchedule((0, 2), (0, 1, 2)), "step 1 of a schedule cannot use step 1"),
        (lambda: StepSchedule((0, 2), (0, 0, 0)), "step 2 of a schedule cannot use step 0"),
        (lambda: StepSchedule((0, 3), (0, 0)), "computes step 3 and has sources for 2 steps"),
        (lambda: StepSchedule((0,), (0, 0), errors=(1.0,)), "1 errors for 2 steps"),
        (lambda: StepSchedule.of({0, 4, -1}, 4), r"steps \[-1, 4\] are outside the schedule of 4"),
        (lambda: StepSchedule.of((), 0), "cannot|rise|computes step 0"),
    ],
)
def test_what_is_no_schedule_is_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_predictions_do_not_count_in_a_comparison():
    plain = StepSchedule.of({2}, 4)
    told = StepSchedule.of({2}, 4, predicted=0.5)
    assert plain == told
    assert len({plain, told}) == 1
    assert plain != StepSchedule.of({2}, 4, threshold=0.1)
    assert told.describe() == {"calls": 2.0, "predicted": 0.5}
    facts = StepSchedule((0,), (0,), facts={"error": math.nan, "peak": 2.0})
    assert facts.describe() == {"calls": 1.0, "peak": 2.0}


# -------------------------------------------------------------------------------- planners
def test_a_planner_of_a_third_party_has_a_front_and_a_forecast():
    planned = forecast([AlternateSteps(), FirstSteps(steps=4)], 6)
    assert (planned.policy, planned.unit, planned.computed) == (
        "first_steps",
        "first_steps",
        (0, 1, 2, 3),
    )
    assert [*FirstSteps().schedules(5)] == [1, 3, 4, 5]
    rows = plan_front([FirstSteps()], 5)
    assert [row.calls for row in rows] == [1, 3, 4, 5]
    assert all(a.predicted > b.predicted for a, b in pairwise(rows))
    (asked,) = with_calls([FirstSteps()], 5)
    assert toy_run([asked]).trace.computed_steps == (0, 1, 2, 3, 4)


def test_a_planner_without_a_budget_has_its_own_schedule_alone():
    listed = ListedSteps(steps=(0, 4))
    assert isinstance(listed, Planner)
    assert listed.with_calls(3) is None
    assert listed.schedules(6) == {2: listed.plan(6)}
    with pytest.raises(PolicyError, match=r"none of the policies takes a budget \(listed_steps\)"):
        plan_front([listed], 6)
    assert toy_run([listed]).trace.computed_steps == (0, 4)
    with pytest.raises(InputError, match=r"steps \[11\] are outside"):
        toy_run([ListedSteps(steps=(11,))])


def test_a_planner_that_lacks_a_member_is_refused_by_name():
    class HalfPlanner(Policy):
        def with_calls(self, calls):
            return self

    assert as_planner(AlternateSteps()) is None
    assert find_planner([AlternateSteps()]) is None
    message = (
        r"half_planner has with_calls\(\) but no plan\(\) and no schedules\(\); a planner has "
        r"plan\(num_steps\), schedules\(num_steps\), with_calls\(calls\): derive HalfPlanner"
    )
    for ask in (forecast, with_calls):
        with pytest.raises(PolicyError, match=message):
            ask([HalfPlanner()], 5)


def test_a_planner_returns_a_schedule_of_the_steps_that_were_asked_for():
    class Short(FirstSteps):
        def plan(self, num_steps):
            return StepSchedule.of({0}, num_steps - 1)

    class Loose(FirstSteps):
        def plan(self, num_steps):
            return [0, 2]

    with pytest.raises(
        PolicyError, match=r"Short\(steps=3\) was asked to plan 5 steps and planned"
    ):
        forecast([Short()], 5)
    with pytest.raises(PolicyError, match=r"Loose\(steps=3\) planned \[0, 2\] of type list"):
        forecast([Loose()], 5)


def test_moved_steps_stand_for_the_planner_and_leave_the_others():
    other = AlternateSteps()
    moved = with_steps([FirstSteps(steps=2), other], (0, 3))
    assert [part.name for part in moved] == ["listed_steps", "alternate_steps"]
    assert moved[0].plan(5).computed == (0, 3)
    assert moved[1] is other
    with pytest.raises(PolicyError, match="nothing to replay"):
        with_steps([other], (0, 3))
