"""Plans: how they are written and listed, by brute force where that is possible."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from erta_framework.errors import PolicyError
from erta_policies.shared import FULL, REUSE, SELECT, PlanFamily, StepPlan

DIT = "(FcSc)x6 (FcS)x4 (Fc)x7"
PIXART = "(FcS)x6 Fc"


@pytest.mark.parametrize(
    ("family", "number"),
    [
        ((50, 17, 1, 4), 30),
        ((50, 17, 1, 3), 9),
        ((50, 13, 1, 4), 25),
        ((50, 11, 2, 5), 21),
        ((50, 21, 1, 4), 10),
        ((20, 7, 1, 4), 7),
        ((28, 10, 1, 4), 10),
    ],
)
def test_a_family_has_as_many_plans_as_there_are(family, number):
    segments = PlanFamily(*family).segments
    assert len(segments) == len(set(segments)) == number


@pytest.mark.parametrize("family", [(12, 4, 0, 5), (11, 5, 1, 4), (9, 3, 2, 3), (4, 2, 1, 1)])
def test_a_family_is_what_brute_force_finds(family):
    steps, full, shortest, longest = family
    lengths = range(shortest + 1, longest + 2)
    found = {
        chosen
        for chosen in product(lengths, repeat=full)
        if sum(chosen) == steps and all(a >= b for a, b in pairwise(chosen))
    }
    assert set(PlanFamily(*family).segments) == found


def test_a_family_that_has_no_plan_says_what_would_have_one():
    with pytest.raises(PolicyError, match="from 10 to 25 full steps are possible"):
        PlanFamily(50, 26)
    with pytest.raises(PolicyError, match="none are"):
        PlanFamily(5, 2, shortest=2, longest=2)
    with pytest.raises(PolicyError, match="closer bounds"):
        _ = PlanFamily(1000, 300, shortest=0, longest=20).segments


def test_published_plans_are_read_and_written_in_the_order_of_execution():
    dit, pixart = StepPlan.parse(DIT), StepPlan.parse(PIXART)
    assert len(dit) == 50
    assert [dit.count(state) for state in (FULL, SELECT, REUSE)] == [17, 10, 23]
    assert dit.states.startswith("FcScFcSc")
    assert dit.states.endswith("FcFc")
    assert (len(pixart), pixart.count(FULL)) == (20, 7)
    for text, plan in ((DIT, dit), (PIXART, pixart)):
        assert str(plan) == text
        assert StepPlan.parse(str(plan)) == plan
        # refreshed steps are put in after a plan of the family was chosen
        assert plan.without_select().with_select() == plan
        assert plan.segments in PlanFamily(len(plan), plan.count(FULL)).segments


@pytest.mark.parametrize(
    ("plain", "injected"),
    [("F", "F"), ("Fc", "Fc"), ("Fcc", "FcS"), ("Fccccc", "FcScSc"), ("FFccFccc", "FFcSFcSc")],
)
def test_every_second_step_of_a_run_is_refreshed(plain, injected):
    assert StepPlan(plain).with_select().states == injected


def test_a_plan_is_told_by_its_steps_its_segments_and_its_runs():
    plan = StepPlan("FcScFFc")
    assert plan.full == (0, 4, 5)
    assert plan.segments == (4, 1, 2)
    assert plan.newest == (0, 0, 0, 0, 4, 5, 5)
    assert plan.reversed_segments().states == "FcFFcSc"
    assert StepPlan.of_runs(plan.runs) == plan
    assert StepPlan.of_steps(plan.full, 7) == StepPlan.of_segments(plan.segments)
    assert StepPlan.of_steps(plan.full, 7) == plan.without_select()


@pytest.mark.parametrize("full", range(1, 21))
def test_even_plans_differ_by_one_step_at_most(full):
    plan = StepPlan.evenly(20, full)
    assert plan.count(FULL) == full
    assert max(plan.segments) - min(plan.segments) <= 1


def test_the_gradual_plan_is_one_of_the_family():
    for steps, full in ((50, 17), (20, 7), (28, 10), (4, 2)):
        family = PlanFamily(steps, full)
        assert family.gradual in family.plans
    assert [PlanFamily(4, 2, 1, 1).gradual.states] == ["FcFc"]


def test_places_that_are_taken_are_spread_and_hold_the_ends():
    family = PlanFamily(50, 17)
    assert family.take(100) == tuple(range(30))
    assert family.take(2) == (0, 29)
    assert family.take(1) == (15,)


@pytest.mark.parametrize(
    "text", ["", "cF", "FxS", "(Fc)x", "(Fc)x0", "Fc)", "F (c", "(F)x100000 F", "(Fc)x99999"]
)
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(PolicyError, match="plan"):
        StepPlan.parse(text)


def test_a_plan_is_not_rescaled():
    with pytest.raises(PolicyError, match="a plan of 4 steps, this run has 5"):
        StepPlan("FcFc").require_steps(5, "somebody")
    with pytest.raises(PolicyError, match="already"):
        StepPlan("FcS").with_select()
    with pytest.raises(PolicyError, match="outside"):
        StepPlan.of_steps((0, 5), 5)
    with pytest.raises(PolicyError, match="at least 1"):
        StepPlan.of_segments((2, 0))
